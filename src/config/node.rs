//! `[node]`: the settings of the node agent of a cluster (`larder node`).

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Fault, check_range};
use larder_model::image_cache::{CacheName, TenantName};
use larder_model::runtime::Runtime;

/// The `[node]` section of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// Name of the node; if empty, the variable `NODE_NAME`, which the DaemonSet sets.
    pub name: String,
    /// File with the address and credentials of the API server; `None` uses the ServiceAccount of the agent's
    /// pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of claims and of the pods that mount them: the `node_namespace` in `[[cluster]]` of the
    /// daemon.
    pub namespace: String,
    /// Image of the pods that mount claims: Larder's own.
    pub image: String,
    /// StorageClass of claims. It must use the driver of the snapshots. Empty means the cluster's default.
    pub storage_class: String,
    /// Access mode of claims. `ReadWriteOnce` is enough because each node has its own; volumes are mounted
    /// read-only in any case.
    pub access_mode: String,
    /// Image caches that are always attached, each `namespace/name`, even if no pod requests them.
    pub caches: Vec<String>,
    /// Maximum number of attached image caches; the number of disks of a node is limited.
    pub max_caches: usize,
    /// Minutes for which an image cache stays attached after the last pod that requested it.
    pub keep_minutes: u32,
    /// Minutes before a missing volume is reported.
    pub pending_timeout_minutes: u32,
    /// Directory in which volumes are mounted.
    pub mounts: PathBuf,
    /// Directory of the kubelet.
    pub kubelet: PathBuf,
    /// Public keys, or files of public keys, as for `larder attach --trust`. A volume must be signed by one
    /// of them; empty requires no signature.
    pub trust: Vec<String>,
    /// `true` if every layer is read and verified before a volume is attached. A verified volume is not read
    /// again until one of its files changes.
    pub verify_layers: bool,
    /// Runtimes that are configured by files to use volumes, as by `larder attach`; not needed with the
    /// snapshotter.
    pub runtimes: Vec<Runtime>,
    /// `true` if images of volumes are added to containerd, so that no pull is needed.
    pub preload: bool,
    /// Path of the node's file system, in which configuration files of runtimes are written to `/etc`.
    pub root: PathBuf,
    /// `true` if the agent updates the Node object: a label for each attached image cache, a condition, and
    /// removal of the startup taint when all of `caches` are attached. Needs the permissions of
    /// `config/kubernetes/node/readiness`.
    pub readiness: bool,
    /// `true` if the agent itself serves containerd as its snapshotter, instead of a separate
    /// `larder snapshotter`.
    pub snapshotter: bool,
    /// Address for `/readyz`, `/healthz` and `/metrics`; `None` disables them.
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
            fault("namespace", "want a Kubernetes name: a-z 0-9 '-'");
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
        check_range(faults, "node.max_caches", self.max_caches, 1..=1000);
        check_range(faults, "node.keep_minutes", self.keep_minutes, 0..=10_080);
        check_range(faults, "node.pending_timeout_minutes", self.pending_timeout_minutes, 0..=10_080);
    }
}

/// Parses the parts of `namespace/name`; `None` if one of them is invalid.
pub fn parse(cache: &str) -> Option<(TenantName, CacheName)> {
    let (namespace, name) = cache.split_once('/')?;
    Some((namespace.parse().ok()?, name.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_reported() {
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
