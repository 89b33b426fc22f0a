//! Kubernetes API server in this process, for tests. It uses real HTTP on loopback, so that tests use the
//! real client.
//!
//! ```text
//!  kube::Client ──HTTP──► route → user → fault? → access? → write.rs: decode, defaults, validation, admission,
//!                                                          field owners ──► store.rs: objects, revision, changes
//!  watches ◄───────────────── lines of changes, bookmarks ◄───────────────────────────────┘
//! ```
//!
//! Its responses match a real server wherever a client of Larder can see the difference. Each such behaviour
//! names its source: a section of the facts on Kubernetes that were verified on a real cluster, or the
//! upstream file (paths without a repository are in kubernetes/kubernetes).
//!
//! # Limits
//!
//! There is no etcd, TLS, aggregation, webhooks, conversion between versions, strategic merge patches,
//! protobuf, or priority and fairness. Built-in objects are decoded with the types of `k8s-openapi` at the
//! API level that is compiled in. Only the defaults and the validation in `rules` exist, so a real server
//! might refuse an object that passes here. Quantities are not converted to their canonical form. What passes
//! here must also be verified on a cluster; the tests can run there, too.

#![forbid(unsafe_code)]

mod access;
mod body;
mod builtin;
mod cause;
mod components;
mod custom;
mod definition;
mod discovery;
mod driver;
mod fault;
mod fields;
mod http;
mod kind;
mod logs;
mod managed;
mod node;
mod object;
mod read;
mod route;
mod rules;
mod select;
mod server;
mod shape;
mod shared;
mod snapshot_kinds;
mod status;
mod store;
mod timing;
mod tokens;
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

pub use driver::{DRIVER, SnapshotOutcome, Stored};
pub use fault::{Effect, Fault, RequestMatcher, Seen};
pub use node::Node;
pub use timing::Timing;

use kind::Id;
use object::{meta, text};
use shared::Shared;
use store::State;
use write::WriteOptions;

/// A running API server. Dropping it closes its connections.
pub struct Cluster {
    address: SocketAddr,
    shared: Arc<Shared>,
    admin: String,
    _stop: oneshot::Sender<()>,
    /// Directory of volumes, snapshots and pods.
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
    /// Starts a server on a free port of 127.0.0.1, on its own thread. It has the namespaces of a new
    /// cluster.
    pub fn new() -> Self {
        Cluster::with_timing(Timing::default())
    }

    /// Starts a server like [`Cluster::new`], with the given delays.
    pub fn with_timing(timing: Timing) -> Self {
        Cluster::start(timing, true)
    }

    /// Starts an API server without controllers, scheduler, kubelets and storage: only clients change
    /// objects. Use it for measurements with tens of thousands of objects, which the components would read
    /// after each change.
    pub fn without_components(timing: Timing) -> Self {
        Cluster::start(timing, false)
    }

    fn start(timing: Timing, components: bool) -> Self {
        let (listener, address) = server::listen();
        let root = tempfile::tempdir().expect("a temporary directory can be created");
        let mut state = State::new(root.path(), timing);
        let admin = state.tokens.issue(access::ADMIN);
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

    /// Returns the base URL: `http://127.0.0.1:1234`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the configuration of a client with this token. `None` is an anonymous client.
    pub fn config(&self, token: Option<&str>) -> Config {
        let mut config = Config::new(self.url().parse().expect("the server's own URL is valid"));
        config.auth_info =
            AuthInfo { token: token.map(|token| token.to_owned().into()), ..AuthInfo::default() };
        config
    }

    /// Returns a client with all permissions.
    pub fn admin(&self) -> Client {
        Client::try_from(self.config(Some(&self.admin))).expect("a client needs no file")
    }

    /// Returns the token of the user with all permissions.
    pub fn admin_token(&self) -> &str {
        &self.admin
    }

    /// Returns a client of a user with a new token. The user is `system:serviceaccount:<namespace>:<name>` or
    /// a plain name.
    pub fn client(&self, user: &str) -> Client {
        Client::try_from(self.config(Some(&self.token(user)))).expect("a client needs no file")
    }

    /// Issues a new token for a user.
    pub fn token(&self, user: &str) -> String {
        self.shared.write(|state| state.tokens.issue(user))
    }

    /// Revokes a token, which is refused with 401 from now on.
    pub fn revoke(&self, token: &str) {
        self.shared.write(|state| state.tokens.revoke(token));
    }

    /// Reports whether a token has been used.
    pub fn was_used(&self, token: &str) -> bool {
        self.shared.read(|state| state.tokens.was_used(token))
    }

    /// Returns the text of a kubeconfig that reads its token from a file, like that of a service account in a
    /// pod.
    pub fn kubeconfig(&self, token_file: &Path, namespace: &str) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url()}}],
            "users": [{"name": "test", "user": {"tokenFile": token_file}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
        })
        .to_string()
    }

    /// Creates an object of any kind, as an administrator would.
    ///
    /// # Panics
    ///
    /// Panics if the server refuses the object.
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
            let how = WriteOptions::component("install");
            let written = state.create(&kind, meta(object, "namespace"), object.clone(), &how);
            let written = written.unwrap_or_else(|e| panic!("{}: {object}", e.message));
            if kind.is("", "resourcequotas") {
                // An administrator waits until a new quota is effective.
                components::quotas(state);
            }
            written.object.as_ref().clone()
        })
    }

    /// Writes an object with the given status and UID, as if restored from a backup of etcd.
    pub fn restore(&self, group: &str, plural: &str, object: Value) {
        let id = Id::new(group, plural, meta(&object, "namespace"), meta(&object, "name"));
        self.shared.write(|state| state.put(id.clone(), object));
    }

    /// Reads an object without access control. `None` if it does not exist.
    pub fn peek(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let id = Id::new(group, plural, namespace, name);
        self.shared.read(|state| state.get(&id).map(|object| object.as_ref().clone()))
    }

    /// Reads all objects of a kind in a namespace. An empty namespace means all namespaces.
    pub fn peek_all(&self, group: &str, plural: &str, namespace: &str) -> Vec<Value> {
        self.shared
            .read(|state| state.all(group, plural, namespace).map(|object| object.as_ref().clone()).collect())
    }

    /// Adds a node that is ready to run pods.
    pub fn add_node(&self, node: Node) {
        self.shared.write(|state| state.add_node(node));
    }

    /// Switches a node off: its pods end and no status is reported. After [`Timing::eviction`] they are
    /// marked as deleted but remain.
    pub fn lose_node(&self, name: &str) {
        self.shared.write(|state| state.lose_node(name));
    }

    /// Removes a node from the cluster. Its pods fail and are deleted.
    pub fn remove_node(&self, name: &str) {
        self.shared.write(|state| state.remove_node(name));
    }

    /// Kills the container of a pod, with `out_of_memory` as the kernel does when memory runs out.
    pub fn kill(&self, namespace: &str, pod: &str, out_of_memory: bool) {
        self.shared.write(|state| {
            if let Some(pod) = state.get(&Id::new("", "pods", namespace, pod)) {
                state.node.kill(meta(pod, "uid"), out_of_memory);
            }
        });
    }

    /// Installs the snapshot kinds, and a storage class and a snapshot class for the driver [`DRIVER`]. Both
    /// classes are named `csi`.
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

    /// Places new volumes below another directory, for example on a small file system.
    pub fn put_volumes(&self, root: &Path) {
        self.shared.write(|state| state.driver.move_to(root));
    }

    /// Sets the outcome of the next new snapshot.
    pub fn decide_snapshot(&self, fate: SnapshotOutcome) {
        self.shared.write(|state| state.driver.decide(fate));
    }

    /// Lets all snapshots succeed from now on, including those that were refused or not answered.
    pub fn heal_snapshots(&self) {
        self.shared.write(|state| state.driver.heal());
    }

    /// Returns the stored snapshot with this handle.
    pub fn stored(&self, handle: &str) -> Option<Stored> {
        self.shared.read(|state| state.driver.snapshot(handle).cloned())
    }

    /// Returns the number of snapshots in the storage.
    pub fn stored_snapshots(&self) -> usize {
        self.shared.read(|state| state.driver.snapshots())
    }

    /// Returns the number of snapshots deleted while another content still offered them. Such a content
    /// reports ready although its data is gone (facts/kubernetes.md, 1).
    pub fn torn_snapshots(&self) -> usize {
        self.shared.read(|state| state.driver.torn())
    }

    /// Makes the kubelet of a node mount volumes below `kubelet`, as it does in `/var/lib/kubelet`. Requires
    /// root and a mount namespace that allows mounts.
    pub fn mount_volumes(&self, node: &str, kubelet: &Path) {
        self.shared.write(|state| state.mount_volumes(node, kubelet));
    }

    /// Returns the number of disks detached from a node while they were mounted there.
    pub fn unplugged_disks(&self) -> usize {
        self.shared.read(|state| state.driver.unplugged())
    }

    /// Returns the directory of a volume of the driver.
    pub fn volume(&self, handle: &str) -> PathBuf {
        self.shared.read(|state| state.driver.volume(handle))
    }

    /// Returns the directory of volumes, snapshots and pods.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// Adds a deliberate fault.
    pub fn fault(&self, fault: Fault) {
        self.shared.write(|state| state.faults.add(fault));
    }

    /// Removes all pending faults.
    pub fn heal(&self) {
        self.shared.write(|state| state.faults.clear());
    }

    /// Returns all requests received since the start.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.read(|state| state.faults.seen.clone())
    }

    /// Discards old versions: requests that continue from one are refused with 410.
    pub fn compact(&self) {
        self.shared.write(State::compact);
    }

    /// Closes the connections of all running watches.
    pub fn cut_watches(&self) {
        self.shared.cut_watches();
    }

    /// Ends all running watches with 410.
    pub fn expire_watches(&self) {
        self.shared.expire_watches();
    }
}
