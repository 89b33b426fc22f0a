//! `[state]`: where the daemon keeps what must outlive it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Fault;

/// The section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct State {
    /// Records and volumes. One daemon at a time.
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
            let reason = "want an absolute path: a daemon has no directory of its own".to_owned();
            faults.push(Fault { key: "state.dir".to_owned(), reason });
        }
    }
}
