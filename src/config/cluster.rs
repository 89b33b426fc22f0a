//! `[[cluster]]`: which UIDs of `building_config.cluster` there are, and what builds for them.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::Fault;

/// One `[[cluster]]`. Without any, every UID means this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cluster {
    /// Its UID.
    pub uid: String,
    /// What builds for it.
    pub runner: Runner,
}

/// What starts builders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Runner {
    /// This host, as child processes of the daemon.
    #[default]
    Host,
}

/// Checks all clusters together.
pub(super) fn check(clusters: &[Cluster], faults: &mut Vec<Fault>) {
    let mut uids = HashSet::new();
    for (i, cluster) in clusters.iter().enumerate() {
        let reason = match cluster.uid.as_str() {
            "" => "it is absent",
            uid if !uids.insert(uid) => "another cluster has it",
            _ => continue,
        };
        faults.push(Fault { key: format!("cluster[{i}].uid"), reason: reason.to_owned() });
    }
}
