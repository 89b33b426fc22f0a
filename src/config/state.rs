//! `[state]`: the location of the daemon's persistent state.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Fault;

/// The `[state]` section of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct State {
    /// Directory of records and volumes. Only one daemon can use it at a time.
    pub dir: PathBuf,
}

impl Default for State {
    fn default() -> Self {
        State { dir: PathBuf::from("/var/lib/larder") }
    }
}

impl State {
    pub(super) fn check(&self, faults: &mut Vec<Fault>) {
        if !self.dir.is_absolute() {
            let reason = "want an absolute path".to_owned();
            faults.push(Fault { key: "state.dir".to_owned(), reason });
        }
    }
}
