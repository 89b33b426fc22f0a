//! The suite of all stores, and what is this one's alone: objects that others write.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::Arc;

use kube::CustomResourceExt as _;

use super::*;
use crate::caches::store::suite::{self, ROOM, at};
use crate::testing::kubernetes::{Cluster, Fault as Trouble, Harm};

/// A cluster with the custom resource and the namespaces of the suite.
fn cluster() -> Cluster {
    let cluster = Cluster::new();
    cluster.install(&serde_json::to_value(ImageCache::crd()).unwrap());
    let teams = (0..60).map(|i| format!("team-{i}"));
    for name in ["larder", "a", "b", "c", "d"].into_iter().map(str::to_owned).chain(teams) {
        cluster.install(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    }
    cluster
}

fn store(cluster: &Cluster, identity: &str) -> Arc<KubeStore> {
    Arc::new(KubeStore::new(cluster.admin(), "here", "larder", identity))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite() {
    let clusters = Mutex::new(Vec::new());
    let fresh = || {
        let cluster = cluster();
        let store = store(&cluster, "one");
        clusters.lock().unwrap().push(cluster);
        store as Arc<dyn Store>
    };
    suite::all(&fresh).await;
}
