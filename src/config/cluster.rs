//! `[[cluster]]`: the valid UIDs of `building_config.cluster`, with the runner that builds for each.

use std::collections::HashSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Fault;
use larder_model::image_cache::TenantName;

/// One `[[cluster]]`. Without any, every UID means this host.
///
/// A daemon serves either this host, under any number of UIDs, or one cluster, because all its records are in
/// one store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cluster {
    /// UID of the cluster in requests.
    pub uid: String,
    /// Runner that builds for the cluster. The keys below apply only to `kubernetes`.
    pub runner: Runner,
    /// File with the address and credentials of the API server; `None` uses the ServiceAccount of the
    /// daemon's pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of Larder: builders, their secrets and the snapshots that own storage. Must not belong to a
    /// tenant.
    pub namespace: String,
    /// Container image of the builder.
    pub builder_image: String,
    /// ServiceAccount of the builder. It needs no permissions.
    pub builder_service_account: String,
    /// StorageClass of volumes; empty means the cluster's default.
    pub storage_class: String,
    /// Access mode of volumes: `ReadWriteOncePod` if the driver supports it, otherwise `ReadWriteOnce`.
    pub access_mode: String,
    /// Secret in [`namespace`](Cluster::namespace) whose `key.pem` signs volumes; if empty, volumes are not
    /// signed. Builders mount it, and Larder itself does not read it.
    pub sign_secret: String,
    /// VolumeSnapshotClass of snapshots, with deletionPolicy Delete.
    pub snapshot_class: String,
    /// Namespace in which snapshots are offered to nodes (`larder node`); empty means none. Must not belong
    /// to a tenant.
    pub node_namespace: String,
    /// `true` if pods that require an image cache are held back until it is attached on a node. Needs the
    /// permissions of `config/kubernetes/node/required`.
    pub hold_pods: bool,
    /// Minutes before a builder that does not start fails.
    pub pending_timeout_minutes: u32,
    /// Minutes before a snapshot that does not become ready fails.
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

/// The environment in which builders run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Runner {
    /// Child processes of the daemon on this host.
    #[default]
    Host,
    /// Pods of the cluster, whose own store contains the records.
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
                    "the runner \"host\" supports only the key uid: want runner = \"kubernetes\"".to_owned(),
                ));
            }
            return faults;
        }
        for (key, name) in
            [("namespace", &self.namespace), ("builder_service_account", &self.builder_service_account)]
        {
            if name.parse::<TenantName>().is_err() {
                faults.push((key, "want a Kubernetes name: a-z 0-9 '-'".to_owned()));
            }
        }
        if !self.node_namespace.is_empty() && self.node_namespace.parse::<TenantName>().is_err() {
            faults.push(("node_namespace", "want a Kubernetes name: a-z 0-9 '-'".to_owned()));
        }
        for (key, text) in [("builder_image", &self.builder_image), ("snapshot_class", &self.snapshot_class)]
        {
            if text.is_empty() {
                faults.push((key, "required, but missing".to_owned()));
            }
        }
        if self.hold_pods && self.node_namespace.is_empty() {
            faults.push(("hold_pods", "it needs the node agents: set node_namespace".to_owned()));
        }
        if !self.sign_secret.is_empty() && self.sign_secret.parse::<TenantName>().is_err() {
            faults.push(("sign_secret", "want a Kubernetes name: a-z 0-9 '-'".to_owned()));
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

/// Returns the Kubernetes cluster that the daemon serves; `None` if it serves this host.
pub fn kubernetes(clusters: &[Cluster]) -> Option<&Cluster> {
    clusters.iter().find(|cluster| cluster.runner == Runner::Kubernetes)
}

/// Checks all clusters, alone and together.
pub(super) fn check(clusters: &[Cluster], faults: &mut Vec<Fault>) {
    let mut uids = HashSet::new();
    for (i, cluster) in clusters.iter().enumerate() {
        let mut fault = |key: &str, reason: String| {
            faults.push(Fault { key: format!("cluster[{i}].{key}"), reason });
        };
        match cluster.uid.as_str() {
            "" => fault("uid", "required, but missing".to_owned()),
            uid if !uids.insert(uid) => fault("uid", "another cluster has the same UID".to_owned()),
            _ => {}
        }
        for (key, reason) in cluster.faults() {
            fault(key, reason);
        }
        if clusters.len() > 1 && kubernetes(clusters).is_some() && cluster.runner == Runner::Kubernetes {
            let reason =
                "a daemon serves either this host or one cluster: remove the other [[cluster]] tables";
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
