//! `[[cluster]]`: which UIDs of `building_config.cluster` there are, and what builds for them.

use std::collections::HashSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Fault;
use larder_model::image_cache::TenantName;

/// One `[[cluster]]`. Without any, every UID means this host.
///
/// A daemon serves either this host, by whatever UIDs, or one cluster: records lie in one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cluster {
    /// Its UID.
    pub uid: String,
    /// What builds for it. The keys below are for `kubernetes`.
    pub runner: Runner,
    /// How the API server is reached; without it, as the pod that the daemon runs in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of Larder itself: builders, their secrets and the snapshots that own. No tenant's.
    pub namespace: String,
    /// Image of the builder.
    pub builder_image: String,
    /// ServiceAccount of the builder. It needs no right at all.
    pub builder_service_account: String,
    /// StorageClass of volumes; empty is the cluster's default.
    pub storage_class: String,
    /// Access mode of volumes: `ReadWriteOncePod` where the driver can, else `ReadWriteOnce`.
    pub access_mode: String,
    /// Secret in [`namespace`](Cluster::namespace) whose `key.pem` signs volumes; empty is none. Builders mount it, Larder itself
    /// does not read it.
    pub sign_secret: String,
    /// VolumeSnapshotClass of snapshots, with deletionPolicy Delete.
    pub snapshot_class: String,
    /// Namespace in which snapshots are offered to nodes (`larder node`); empty is none. No tenant's.
    pub node_namespace: String,
    /// Whether pods that require an image cache are held back until it is attached on a node. Needs the rights of
    /// `config/kubernetes/node/required`.
    pub hold_pods: bool,
    /// Minutes until a builder that does not start is given up.
    pub pending_timeout_minutes: u32,
    /// Minutes until a snapshot that does not become ready is given up.
    pub snapshot_timeout_minutes: u32,
}

impl Default for Cluster {
    fn default() -> Self {
        Cluster {
            uid: String::new(),
            runner: Runner::default(),
            kubeconfig: None,
            namespace: "larder".to_owned(),
            builder_image: String::new(),
            builder_service_account: "larder-builder".to_owned(),
            storage_class: String::new(),
            access_mode: "ReadWriteOncePod".to_owned(),
            sign_secret: String::new(),
            snapshot_class: String::new(),
            node_namespace: String::new(),
            hold_pods: false,
            pending_timeout_minutes: 10,
            snapshot_timeout_minutes: 60,
        }
    }
}

/// What starts builders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Runner {
    /// This host, as child processes of the daemon.
    #[default]
    Host,
    /// Pods of the cluster, whose own store has the records.
    Kubernetes,
}

impl Cluster {
    fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        if self.runner == Runner::Host {
            let plain = Cluster { uid: self.uid.clone(), ..Cluster::default() };
            if *self != plain {
                faults.push((
                    "runner",
                    "this host takes no key but uid: want runner = \"kubernetes\"".to_owned(),
                ));
            }
            return faults;
        }
        for (key, name) in
            [("namespace", &self.namespace), ("builder_service_account", &self.builder_service_account)]
        {
            if name.parse::<TenantName>().is_err() {
                faults.push((key, "want a name of Kubernetes: a-z 0-9 '-'".to_owned()));
            }
        }
        if !self.node_namespace.is_empty() && self.node_namespace.parse::<TenantName>().is_err() {
            faults.push(("node_namespace", "want a name of Kubernetes: a-z 0-9 '-'".to_owned()));
        }
        for (key, text) in [("builder_image", &self.builder_image), ("snapshot_class", &self.snapshot_class)]
        {
            if text.is_empty() {
                faults.push((key, "it is absent".to_owned()));
            }
        }
        if self.hold_pods && self.node_namespace.is_empty() {
            faults.push(("hold_pods", "pods wait for agents of nodes: set node_namespace".to_owned()));
        }
        if !self.sign_secret.is_empty() && self.sign_secret.parse::<TenantName>().is_err() {
            faults.push(("sign_secret", "want a name of Kubernetes: a-z 0-9 '-'".to_owned()));
        }
        if !["ReadWriteOncePod", "ReadWriteOnce"].contains(&self.access_mode.as_str()) {
            faults.push(("access_mode", "want ReadWriteOncePod or ReadWriteOnce".to_owned()));
        }
        for (key, minutes) in [
            ("pending_timeout_minutes", self.pending_timeout_minutes),
            ("snapshot_timeout_minutes", self.snapshot_timeout_minutes),
        ] {
            if !(1..=10_080).contains(&minutes) {
                faults.push((key, format!("{minutes} is out of range, want 1 to 10080")));
            }
        }
        faults
    }
}

/// The cluster that is served, if it is not this host.
pub fn kubernetes(clusters: &[Cluster]) -> Option<&Cluster> {
    clusters.iter().find(|cluster| cluster.runner == Runner::Kubernetes)
}

/// Checks all clusters together.
pub(super) fn check(clusters: &[Cluster], faults: &mut Vec<Fault>) {
    let mut uids = HashSet::new();
    for (i, cluster) in clusters.iter().enumerate() {
        let mut fault = |key: &str, reason: String| {
            faults.push(Fault { key: format!("cluster[{i}].{key}"), reason });
        };
        match cluster.uid.as_str() {
            "" => fault("uid", "it is absent".to_owned()),
            uid if !uids.insert(uid) => fault("uid", "another cluster has it".to_owned()),
            _ => {}
        }
        for (key, reason) in cluster.faults() {
            fault(key, reason);
        }
        if clusters.len() > 1 && kubernetes(clusters).is_some() && cluster.runner == Runner::Kubernetes {
            let reason = "a daemon serves either this host or one cluster: want no other [[cluster]]";
            fault("runner", reason.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(clusters: &[Cluster]) -> Vec<String> {
        let mut faults = Vec::new();
        check(clusters, &mut faults);
        faults.into_iter().map(|fault| fault.key).collect()
    }

    #[test]
    fn a_host_or_one_cluster() {
        let host = Cluster { uid: "a".into(), ..Cluster::default() };
        let cluster = Cluster {
            uid: "b".into(),
            runner: Runner::Kubernetes,
            builder_image: "larder:1".into(),
            snapshot_class: "fast".into(),
            ..Cluster::default()
        };
        assert!(keys(&[host.clone(), Cluster { uid: "c".into(), ..Cluster::default() }]).is_empty());
        assert!(keys(std::slice::from_ref(&cluster)).is_empty());
        assert_eq!(keys(&[host.clone(), cluster.clone()]), ["cluster[1].runner"]);
        assert_eq!(
            keys(&[Cluster { uid: "a".into(), ..cluster.clone() }, host.clone()]),
            ["cluster[0].runner", "cluster[1].uid"]
        );
        assert_eq!(keys(&[Cluster { namespace: "x".into(), ..host }]), ["cluster[0].runner"]);
        let empty = Cluster {
            namespace: "A_".into(),
            sign_secret: "a/b".into(),
            access_mode: "Any".into(),
            hold_pods: true,
            ..cluster
        };
        let bare = Cluster { builder_image: String::new(), snapshot_class: String::new(), ..empty };
        assert_eq!(
            keys(&[Cluster { pending_timeout_minutes: 0, ..bare }]),
            [
                "cluster[0].namespace",
                "cluster[0].builder_image",
                "cluster[0].snapshot_class",
                "cluster[0].hold_pods",
                "cluster[0].sign_secret",
                "cluster[0].access_mode",
                "cluster[0].pending_timeout_minutes",
            ]
        );
    }
}
