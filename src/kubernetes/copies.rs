//! Copies of snapshots in other namespaces: a VolumeSnapshot there, and a pre-provisioned content with the
//! handle of the owner's snapshot. The content has the policy Retain, so that deleting a copy does not delete
//! the storage.
//!
//! The tenant's namespace always gets a copy. Each namespace in `spec.share` also gets one if its annotation
//! [`ACCEPT_FROM`](super::names::ACCEPT_FROM) lists the tenant: a copy counts against the quota of the
//! namespace that receives it, and nodes serve its layers to the pods of that namespace. Larder also needs
//! permission to create VolumeSnapshots there.

use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard};

use super::client::ApiServer;
use super::crd::CopyState;
use super::fault::{Fault, opt, request};
use super::names::{MANAGER, Names, copy, object};
use super::snapshot::{VolumeSnapshot, VolumeSnapshotContent};
use crate::caches::record::ClusterSnapshot;
use crate::caches::volumes::VolumeId;

/// Creates and deletes the copies of one installation.
#[derive(Debug)]
pub struct Copies {
    client: ApiServer,
    names: Names,
    turn: Mutex<()>,
}

impl Copies {
    /// Returns the copies of the installation `names`.
    pub fn new(client: Client, names: Names) -> Self {
        Copies { client: client.into(), names, turn: Mutex::default() }
    }

    /// Locks the copies. The lock must be held from reading the record until the copies match it. Otherwise
    /// one task could create a copy that another one is deleting.
    pub async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    fn contents(&self) -> Api<VolumeSnapshotContent> {
        Api::all(self.client.clone())
    }

    fn snapshots(&self, namespace: &str) -> Api<VolumeSnapshot> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Creates the copy of a snapshot in a namespace if it does not exist, and returns its state.
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
        let doing = format!("copying the snapshot {name} to {namespace}");
        let present = opt(request!(&doing, snapshots.get(&name)))?;
        let present = present
            .filter(|one| one.spec.source.volume_snapshot_content_name.as_deref() == Some(&content_name));
        if let Some(present) = &present
            && (present.is_ready() || present.metadata.deletion_timestamp.is_some())
        {
            return Ok(present.metadata.deletion_timestamp.is_none());
        }
        let contents = self.contents();
        if present.is_some() && opt(request!(&doing, contents.get(&content_name)))?.is_some() {
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
        // The content is created first, so that a copy can always be found by its content. Both objects are
        // new or unchanged. If a user deleted the copy, its content is free again, because the reference in
        // it is written as a whole (atomic in its schema).
        let content = request!(&doing, contents.patch(&content_name, &parameters, &Patch::Apply(&content)))?;
        let copied = json!({
            "apiVersion": "snapshot.storage.k8s.io/v1",
            "kind": "VolumeSnapshot",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": labels,
                // If the copy is created after its content was deleted, the garbage collector deletes it.
                "ownerReferences": [{
                    "apiVersion": "snapshot.storage.k8s.io/v1",
                    "kind": "VolumeSnapshotContent",
                    "name": content_name,
                    "uid": content.uid(),
                }],
            },
            "spec": {"source": {"volumeSnapshotContentName": content_name}},
        });
        let made = request!(&doing, snapshots.patch(&name, &parameters, &Patch::Apply(&copied)))?;
        Ok(made.is_ready())
    }

    /// Deletes the copies in the namespaces for which `unwanted` returns `true`. Returns the number of copies
    /// that still exist.
    ///
    /// # Errors
    /// A request failed.
    pub async fn remove(&self, volume: &VolumeId, unwanted: impl Fn(&str) -> bool) -> Result<usize, Fault> {
        let contents = self.contents();
        let found = request!("listing snapshot contents", contents.list(&self.names.of(volume)))?;
        let mut left = 0;
        for content in found.items {
            let (name, reference) = (content.name_any(), &content.spec.volume_snapshot_ref);
            if !unwanted(&reference.namespace) {
                continue;
            }
            left += 1;
            let snapshots = self.snapshots(&reference.namespace);
            let doing = format!("deleting the copy {} in {}", reference.name, reference.namespace);
            let present = match opt(request!(&doing, snapshots.get(&reference.name))) {
                // The permission was revoked or the namespace deleted: without the copy, its content is
                // unused.
                Err(fault) if fault.code() == 403 => None,
                other => other?,
            };
            // A VolumeSnapshot of the same name that another program created is kept.
            if present
                .is_some_and(|one| one.spec.source.volume_snapshot_content_name.as_deref() == Some(&name))
            {
                opt(request!(&doing, snapshots.delete(&reference.name, &DeleteParams::default())))?;
            }
            let doing = format!("deleting the snapshot content {name}");
            if opt(request!(&doing, contents.delete(&name, &DeleteParams::default())))?.is_none() {
                left -= 1;
            }
        }
        Ok(left)
    }
}
