//! `[node]`: the agent of a cluster's nodes (`larder node`), and nothing else.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Fault, within};
use larder_model::image_cache::{CacheName, TenantName};
use larder_model::runtime::Runtime;

/// The section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// Name of the node; empty is that of the variable `NODE_NAME`, which the DaemonSet sets.
    pub name: String,
    /// How the API server is reached; without it, as the pod that the agent runs in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of claims and of the pods that hold them: the `node_namespace` of the daemons' `[[cluster]]`.
    pub namespace: String,
    /// Image of the pods that hold claims: Larder's own.
    pub image: String,
    /// StorageClass of claims, of the snapshots' driver; empty is the cluster's default.
    pub storage_class: String,
    /// Access mode of claims: each node has its own, so `ReadWriteOnce` does, and is mounted read-only all the same.
    pub access_mode: String,
    /// Image caches that are attached before any pod asks, each `namespace/name`.
    pub caches: Vec<String>,
    /// Most image caches at once; a node takes so many disks only.
    pub max_caches: usize,
    /// Minutes for which an image cache stays that no pod asks for any more.
    pub keep_minutes: u32,
    /// Minutes until it is told that a volume does not come.
    pub pending_timeout_minutes: u32,
    /// Where volumes are attached.
    pub mounts: PathBuf,
    /// Directory of the kubelet.
    pub kubelet: PathBuf,
    /// Public keys one of which has to have signed a volume, or files of them, as for `larder attach --trust`; empty asks for no
    /// signature.
    pub trust: Vec<String>,
    /// Whether every layer is read and proven before a volume is attached. A volume that was proven is not read again as long as no
    /// file of it changes.
    pub verify_layers: bool,
    /// Runtimes that are told of volumes by files in their configuration, as by `larder attach`; the snapshotter needs none.
    pub runtimes: Vec<Runtime>,
    /// Whether images of volumes are made known to containerd before anybody pulls them.
    pub preload: bool,
    /// Where the file system of the node is, for what runtimes are told by files of `/etc`.
    pub root: PathBuf,
    /// Whether the Node object gets a label for each image cache that is attached, a condition, and loses its startup taint when all of
    /// `caches` are attached. Needs the rights of `config/kubernetes/node/readiness`.
    pub readiness: bool,
    /// Whether containerd is answered by the agent itself, and not by a `larder snapshotter` beside it.
    pub snapshotter: bool,
    /// Where `/readyz`, `/healthz` and `/metrics` are answered; absent is nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
}

impl Default for Node {
    fn default() -> Self {
        Node {
            name: String::new(),
            kubeconfig: None,
            namespace: "larder-volumes".to_owned(),
            image: String::new(),
            storage_class: String::new(),
            access_mode: "ReadWriteOnce".to_owned(),
            caches: Vec::new(),
            max_caches: 16,
            keep_minutes: 30,
            pending_timeout_minutes: 10,
            mounts: PathBuf::from("/icv"),
            kubelet: PathBuf::from("/var/lib/kubelet"),
            trust: Vec::new(),
            verify_layers: true,
            runtimes: Vec::new(),
            preload: false,
            root: PathBuf::from("/"),
            readiness: false,
            snapshotter: true,
            listen: None,
        }
    }
}

impl Node {
    pub(super) fn check(&self, faults: &mut Vec<Fault>) {
        let mut fault = |key: &str, reason: &str| {
            faults.push(Fault { key: format!("node.{key}"), reason: reason.to_owned() });
        };
        if self.namespace.parse::<TenantName>().is_err() {
            fault("namespace", "want a name of Kubernetes: a-z 0-9 '-'");
        }
        if !["ReadWriteOnce", "ReadOnlyMany"].contains(&self.access_mode.as_str()) {
            fault("access_mode", "want ReadWriteOnce or ReadOnlyMany");
        }
        for (key, path) in [("mounts", &self.mounts), ("kubelet", &self.kubelet), ("root", &self.root)] {
            if !path.is_absolute() {
                fault(key, "want an absolute path");
            }
        }
        for (at, cache) in self.caches.iter().enumerate() {
            if parse(cache).is_none() {
                fault(&format!("caches[{at}]"), "want namespace/name of an image cache");
            }
        }
        within(faults, "node.max_caches", self.max_caches, 1..=1000);
        within(faults, "node.keep_minutes", self.keep_minutes, 0..=10_080);
        within(faults, "node.pending_timeout_minutes", self.pending_timeout_minutes, 0..=10_080);
    }
}

/// The parts of `namespace/name`.
pub fn parse(cache: &str) -> Option<(TenantName, CacheName)> {
    let (namespace, name) = cache.split_once('/')?;
    Some((namespace.parse().ok()?, name.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_told() {
        let keys = |node: &Node| {
            let mut faults = Vec::new();
            node.check(&mut faults);
            faults.into_iter().map(|fault| fault.key).collect::<Vec<_>>()
        };
        assert!(keys(&Node { caches: vec!["team-a/web".into()], ..Node::default() }).is_empty());
        let bad = Node {
            namespace: String::new(),
            access_mode: "ReadWriteMany".into(),
            mounts: "icv".into(),
            caches: vec!["team-a/web".into(), "web".into(), "team-a/../x".into()],
            max_caches: 0,
            ..Node::default()
        };
        assert_eq!(
            keys(&bad),
            [
                "node.namespace",
                "node.access_mode",
                "node.mounts",
                "node.caches[1]",
                "node.caches[2]",
                "node.max_caches"
            ]
        );
    }
}
