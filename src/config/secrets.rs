//! `[secrets]`: where pull secrets of this host lie.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Secrets {
    /// Directory in Kubernetes' form: `<namespace>/<name>/.dockerconfigjson` or `.dockercfg`. A credential that systemd
    /// loads under the name `pull-secret.<namespace>.<name>` comes before it.
    pub dir: PathBuf,
}

impl Default for Secrets {
    fn default() -> Self {
        Secrets { dir: PathBuf::from("/etc/larder/secrets") }
    }
}
