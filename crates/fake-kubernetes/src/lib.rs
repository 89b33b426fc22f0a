//! A Kubernetes API server in this process, for tests: real HTTP on loopback, so that the real client talks to it.
//!
//! ```text
//!  kube::Client ──HTTP──► route → who → fault? → may he? → write.rs: decode, defaults, validation, admission, owners of
//!                                                          fields ──► store.rs: objects, one revision, the changes
//!  watches ◄───────────────── lines of changes, bookmarks ◄───────────────────────────────┘
//! ```
//!
//! It answers as a real server does where a client of Larder's can tell the difference; each such behaviour names its source,
//! a section of the facts on Kubernetes that were tried on a real cluster, or the file upstream (paths without a repository
//! are of kubernetes/kubernetes).
//!
//! # What it is not
//!
//! No etcd, no TLS, no aggregation, webhooks, conversion between versions, strategic merge patches, protobuf, priority and
//! fairness. Built-in objects are read by the types of `k8s-openapi` at the API level that is compiled in; of their defaults
//! and validation only what is written in `rules` exists, so that an object which passes here may still be refused by a
//! server. Quantities are not brought into their canonical form. What is proven here has to be proven again on a cluster: the
//! tests can run there too.

#![forbid(unsafe_code)]

mod access;
mod builtin;
mod components;
mod custom;
mod discovery;
mod fault;
mod fields;
mod http;
mod kind;
mod logs;
mod managed;
mod object;
mod read;
mod route;
mod rules;
mod select;
mod server;
mod shape;
mod snapshot_kinds;
mod status;
mod store;
mod watch;
mod write;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kube::config::AuthInfo;
use kube::{Client, Config};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;

pub use components::Timing;
pub use components::driver::{DRIVER, SnapshotFate, Stored};
pub use components::kubelet::Node;
pub use fault::{Fault, Harm, Meets, Seen};

use kind::Id;
use object::{meta, text};
use server::Shared;
use store::State;
use write::How;

/// A running API server; dropped, it stops and closes its connections.
pub struct Cluster {
    address: SocketAddr,
    shared: Arc<Shared>,
    admin: String,
    _stop: oneshot::Sender<()>,
    /// Volumes, snapshots and pods.
    root: TempDir,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Cluster::new()
    }
}

impl Cluster {
    /// Starts a server on a free port of 127.0.0.1, on a thread of its own. It has the namespaces of a new cluster.
    pub fn new() -> Self {
        Cluster::with_timing(Timing::default())
    }

    /// The same, in which things take as long as is said.
    pub fn with_timing(timing: Timing) -> Self {
        Cluster::start(timing, true)
    }

    /// An API server without controllers, scheduler, kubelets and storage: objects change when a client changes them. For
    /// measurements with tens of thousands of objects, which the components would look at again after each change.
    pub fn without_components(timing: Timing) -> Self {
        Cluster::start(timing, false)
    }

    fn start(timing: Timing, components: bool) -> Self {
        let (listener, address) = server::listen();
        let root = tempfile::tempdir().expect("a temporary directory");
        let mut state = State::new(root.path(), timing);
        let admin = state.access.issue(access::ADMIN);
        let shared = Shared::new(state);
        let (stop, stopped) = oneshot::channel();
        let served = Arc::clone(&shared);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be started").block_on(async move {
                tokio::select! {
                    () = server::serve(listener, Arc::clone(&served)) => {}
                    () = components::run(served), if components => {}
                    _ = stopped => {}
                }
            });
        });
        let cluster = Cluster { address, shared, admin, _stop: stop, root };
        for name in ["default", "kube-system"] {
            cluster.install(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
        }
        cluster
    }

    /// `http://127.0.0.1:1234`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Configuration for who holds a token; none asks as nobody.
    pub fn config(&self, token: Option<&str>) -> Config {
        let mut config = Config::new(self.url().parse().expect("a URL of our own"));
        config.auth_info =
            AuthInfo { token: token.map(|token| token.to_owned().into()), ..AuthInfo::default() };
        config
    }

    /// A client who may do everything.
    pub fn admin(&self) -> Client {
        Client::try_from(self.config(Some(&self.admin))).expect("a client needs no file")
    }

    /// The token of who may do everything.
    pub fn admin_token(&self) -> &str {
        &self.admin
    }

    /// A client of a user with a new token: `system:serviceaccount:<namespace>:<name>`, or a plain name.
    pub fn client(&self, user: &str) -> Client {
        Client::try_from(self.config(Some(&self.token(user)))).expect("a client needs no file")
    }

    /// A new token of a user.
    pub fn token(&self, user: &str) -> String {
        self.shared.write(|state| state.access.issue(user))
    }

    /// Makes a token worthless; 401 from now on.
    pub fn revoke(&self, token: &str) {
        self.shared.write(|state| state.access.revoke(token));
    }

    /// Whether a token was shown yet.
    pub fn was_used(&self, token: &str) -> bool {
        self.shared.read(|state| state.access.was_used(token))
    }

    /// The text of a kubeconfig whose token is read from a file, as that of a service account in a pod is.
    pub fn kubeconfig(&self, token_file: &Path, namespace: &str) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url()}}],
            "users": [{"name": "test", "user": {"tokenFile": token_file}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
        })
        .to_string()
    }

    /// Creates an object of any kind that is served, as its administrator would.
    ///
    /// # Panics
    ///
    /// When the server refuses it.
    pub fn install(&self, object: &Value) -> Value {
        let (group, version) = match text(object, "/apiVersion").split_once('/') {
            Some((group, version)) => (group, version),
            None => ("", text(object, "/apiVersion")),
        };
        self.shared.write(|state| {
            let mut kinds = state.kinds.iter();
            let kind = kinds
                .find(|kind| {
                    kind.group == group && kind.version == version && kind.kind == text(object, "/kind")
                })
                .cloned()
                .unwrap_or_else(|| panic!("no such kind: {object}"));
            let how = How::component("install");
            let written = state.create(&kind, meta(object, "namespace"), object.clone(), &how);
            let written = written.unwrap_or_else(|e| panic!("{}: {object}", e.message));
            if kind.is("", "resourcequotas") {
                // An administrator waits until a new quota limits something.
                components::quotas(state);
            }
            written.object.as_ref().clone()
        })
    }

    /// Writes an object with its status and UID as they are given, as a restored backup of etcd would have them.
    pub fn restore(&self, group: &str, plural: &str, object: Value) {
        let id = Id::new(group, plural, meta(&object, "namespace"), meta(&object, "name"));
        self.shared.write(|state| state.put(id.clone(), object));
    }

    /// Reads an object past all access control; none where it is not there.
    pub fn peek(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let id = Id::new(group, plural, namespace, name);
        self.shared.read(|state| state.get(&id).map(|object| object.as_ref().clone()))
    }

    /// Reads all objects of a kind, of one namespace or (empty) of all.
    pub fn peek_all(&self, group: &str, plural: &str, namespace: &str) -> Vec<Value> {
        self.shared
            .read(|state| state.all(group, plural, namespace).map(|object| object.as_ref().clone()).collect())
    }

    /// Adds a node, ready to run pods.
    pub fn add_node(&self, node: Node) {
        self.shared.write(|state| state.add_node(node));
    }

    /// A machine is switched off: its pods end and nobody tells. After [`Timing::eviction`] they are deleted, and stay.
    pub fn lose_node(&self, name: &str) {
        self.shared.write(|state| state.lose_node(name));
    }

    /// A node that is no more: its pods fail, and go.
    pub fn remove_node(&self, name: &str) {
        self.shared.write(|state| state.remove_node(name));
    }

    /// Kills the container of a pod, as the kernel does when memory has run out, or otherwise.
    pub fn kill(&self, namespace: &str, pod: &str, out_of_memory: bool) {
        self.shared.write(|state| {
            if let Some(pod) = state.get(&Id::new("", "pods", namespace, pod)) {
                state.node.kill(meta(pod, "uid"), out_of_memory);
            }
        });
    }

    /// Installs the snapshot kinds, a storage class and a snapshot class, both named `csi`, for the driver [`DRIVER`].
    pub fn install_storage(&self, deletion_policy: &str) {
        for definition in snapshot_kinds::definitions() {
            self.install(&definition);
        }
        self.install(&json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "csi"},
            "provisioner": DRIVER,
        }));
        self.install(&json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass", "metadata": {"name": "csi"},
            "driver": DRIVER, "deletionPolicy": deletion_policy,
        }));
    }

    /// Puts volumes that are made from now on below another directory, for example of a small file system.
    pub fn put_volumes(&self, root: &Path) {
        self.shared.write(|state| state.driver.move_to(root));
    }

    /// Decides about the next snapshot that has no fate yet.
    pub fn decide_snapshot(&self, fate: SnapshotFate) {
        self.shared.write(|state| state.driver.decide(fate));
    }

    /// The storage takes all snapshots from now on, also those that it has refused or not answered.
    pub fn heal_snapshots(&self) {
        self.shared.write(|state| state.driver.heal());
    }

    /// What the storage has under a handle.
    pub fn stored(&self, handle: &str) -> Option<Stored> {
        self.shared.read(|state| state.driver.snapshot(handle).cloned())
    }

    /// How many snapshots the storage has.
    pub fn stored_snapshots(&self) -> usize {
        self.shared.read(|state| state.driver.snapshots())
    }

    /// How many snapshots went from the storage while another content still offered them: what has such a copy says that it is
    /// ready, and is not (facts/kubernetes.md, 1).
    pub fn torn_snapshots(&self) -> usize {
        self.shared.read(|state| state.driver.torn())
    }

    /// The kubelet of a node mounts volumes below `kubelet` from now on, where it would (`/var/lib/kubelet`). Takes root, and a
    /// mount namespace in which that may be done.
    pub fn mount_volumes(&self, node: &str, kubelet: &Path) {
        self.shared.write(|state| state.mount_volumes(node, kubelet));
    }

    /// How many disks were taken from a node while something of them was mounted there.
    pub fn unplugged_disks(&self) -> usize {
        self.shared.read(|state| state.driver.unplugged())
    }

    /// The directory of a volume of the driver.
    pub fn volume(&self, handle: &str) -> PathBuf {
        self.shared.read(|state| state.driver.volume(handle))
    }

    /// Where volumes, snapshots and pods are.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// Lets something go wrong.
    pub fn fault(&self, fault: Fault) {
        self.shared.write(|state| state.faults.add(fault));
    }

    /// Ends all faults that wait.
    pub fn heal(&self) {
        self.shared.write(|state| state.faults.clear());
    }

    /// All requests that were seen since the start.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.read(|state| state.faults.seen.clone())
    }

    /// Forgets old versions: what reads on from one is told 410.
    pub fn compact(&self) {
        self.shared.write(State::compact);
    }

    /// Ends the connections of all running watches.
    pub fn cut_watches(&self) {
        self.shared.cut_watches();
    }

    /// Tells all running watches 410.
    pub fn expire_watches(&self) {
        self.shared.expire_watches();
    }
}
