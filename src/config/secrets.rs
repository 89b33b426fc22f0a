//! `[secrets]`: the location of this host's pull secrets.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The `[secrets]` section of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Secrets {
    /// Directory in Kubernetes' format: `<namespace>/<name>/.dockerconfigjson` or `.dockercfg`. A systemd
    /// credential with the name `pull-secret.<namespace>.<name>` takes precedence.
    pub dir: PathBuf,
}

impl Default for Secrets {
    fn default() -> Self {
        Secrets { dir: PathBuf::from("/etc/larder/secrets") }
    }
}
