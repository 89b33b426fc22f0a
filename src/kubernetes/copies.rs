//! Snapshots offered in other namespaces: a VolumeSnapshot there, and a pre-provisioned content with the handle of the owner
//! and the policy Retain, so that deleting a copy leaves the storage alone.
//!
//! The namespace of the tenant gets one. So does each namespace that `spec.share` names, if its annotation
//! [`ACCEPT_FROM`](super::names::ACCEPT_FROM) lists the tenant: a copy counts against the quota of the namespace that receives
//! it, and nodes give its layers to the pods of that namespace. Larder also needs the right to make VolumeSnapshots there.

use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard};

use super::client::ApiServer;
use super::crd::CopyState;
use super::fault::{Fault, ask, opt};
use super::names::{MANAGER, Names, copy, object};
use super::snapshot::{VolumeSnapshot, VolumeSnapshotContent};
use crate::caches::record::ClusterSnapshot;
use crate::caches::volumes::VolumeId;

/// The copies of an installation.
#[derive(Debug)]
pub struct Copies {
    client: ApiServer,
    names: Names,
    turn: Mutex<()>,
}

impl Copies {
    /// Those that `names` made.
    pub fn new(client: Client, names: Names) -> Self {
        Copies { client: client.into(), names, turn: Mutex::default() }
    }

    /// Held from the look at what a record asks for until it is done: who offers and who takes back must not meet, or a copy
    /// would be made of what goes.
    pub async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    fn contents(&self) -> Api<VolumeSnapshotContent> {
        Api::all(self.client.clone())
    }

    fn snapshots(&self, namespace: &str) -> Api<VolumeSnapshot> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Offers a snapshot in a namespace, if it is not there yet, and says whether it can be used.
    pub async fn offer(&self, volume: &VolumeId, snapshot: &ClusterSnapshot, namespace: &str) -> CopyState {
        match self.try_offer(volume, snapshot, namespace).await {
            Ok(ready) => CopyState { namespace: namespace.to_owned(), ready, message: None },
            Err(fault) => {
                let message = fault.to_string().chars().take(1000).collect();
                CopyState { namespace: namespace.to_owned(), ready: false, message: Some(message) }
            }
        }
    }

    async fn try_offer(
        &self,
        volume: &VolumeId,
        snapshot: &ClusterSnapshot,
        namespace: &str,
    ) -> Result<bool, Fault> {
        let (name, content_name) = (object(volume), copy(volume, namespace));
        let parameters = PatchParams::apply(MANAGER).force().validation_strict();
        let labels = self.names.labels(volume);
        let snapshots = self.snapshots(namespace);
        let doing = format!("offering the snapshot {name} in {namespace}");
        let present = opt(ask!(&doing, snapshots.get(&name)))?;
        let present = present
            .filter(|one| one.spec.source.volume_snapshot_content_name.as_deref() == Some(&content_name));
        if let Some(present) = &present
            && (present.is_ready() || present.metadata.deletion_timestamp.is_some())
        {
            return Ok(present.metadata.deletion_timestamp.is_none());
        }
        let contents = self.contents();
        if present.is_some() && opt(ask!(&doing, contents.get(&content_name)))?.is_some() {
            return Ok(false);
        }
        let content = json!({
            "apiVersion": "snapshot.storage.k8s.io/v1",
            "kind": "VolumeSnapshotContent",
            "metadata": {"name": content_name, "labels": labels},
            "spec": {
                "deletionPolicy": "Retain",
                "driver": snapshot.driver,
                "source": {"snapshotHandle": snapshot.handle},
                "sourceVolumeMode": "Filesystem",
                "volumeSnapshotRef": {"name": name, "namespace": namespace},
            },
        });
        // The content first: whoever finds it knows of the copy. Both are new, or as they were; a content whose copy somebody
        // has deleted is free again, for the reference in it is written as a whole (its schema says atomic).
        let content = ask!(&doing, contents.patch(&content_name, &parameters, &Patch::Apply(&content)))?;
        let copied = json!({
            "apiVersion": "snapshot.storage.k8s.io/v1",
            "kind": "VolumeSnapshot",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": labels,
                // Should this come late, after somebody has taken it back, the cluster collects it.
                "ownerReferences": [{
                    "apiVersion": "snapshot.storage.k8s.io/v1",
                    "kind": "VolumeSnapshotContent",
                    "name": content_name,
                    "uid": content.uid(),
                }],
            },
            "spec": {"source": {"volumeSnapshotContentName": content_name}},
        });
        let made = ask!(&doing, snapshots.patch(&name, &parameters, &Patch::Apply(&copied)))?;
        Ok(made.is_ready())
    }

    /// Takes back the copies in namespaces that `unwanted` names, and says how many are not gone yet.
    pub async fn remove(&self, volume: &VolumeId, unwanted: impl Fn(&str) -> bool) -> Result<usize, Fault> {
        let contents = self.contents();
        let found = ask!("listing snapshot contents", contents.list(&self.names.of(volume)))?;
        let mut left = 0;
        for content in found.items {
            let (name, reference) = (content.name_any(), &content.spec.volume_snapshot_ref);
            if !unwanted(&reference.namespace) {
                continue;
            }
            left += 1;
            let snapshots = self.snapshots(&reference.namespace);
            let doing = format!("taking back the snapshot {} from {}", reference.name, reference.namespace);
            let present = match opt(ask!(&doing, snapshots.get(&reference.name))) {
                // The right was taken away, or the namespace: the content alone is of no use to anybody.
                Err(fault) if fault.code() == 403 => None,
                other => other?,
            };
            // Not one that somebody else made under that name.
            if present
                .is_some_and(|one| one.spec.source.volume_snapshot_content_name.as_deref() == Some(&name))
            {
                opt(ask!(&doing, snapshots.delete(&reference.name, &DeleteParams::default())))?;
            }
            let doing = format!("deleting the snapshot content {name}");
            if opt(ask!(&doing, contents.delete(&name, &DeleteParams::default())))?.is_none() {
                left -= 1;
            }
        }
        Ok(left)
    }
}
