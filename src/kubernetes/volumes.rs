//! The objects of an image cache in the cluster, and their deletion. Copies are deleted before their owner,
//! because they share its storage: a copy without its owner still reports that it is ready.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::client::ApiServer;
use super::convert::created;
use super::copies::Copies;
use super::fault::{Fault, opt, request};
use super::inventory::Inventory;
use super::names::{MANAGER, Names, RESULT, VOLUME, object, verifier};
use super::snapshot::{VolumeSnapshot, VolumeSnapshotContent};
use super::uses::Uses;
use crate::caches::imports::Imports;
use crate::caches::record::{ClusterSnapshot, Record};
use crate::caches::volumes::{
    BuildDirs, Discarded, Kind, Sealed, Snapshot, StateError, UNLIMITED, VolumeId, Volumes,
};
use larder_model::class::Class;
use larder_model::event::Outcome;
use larder_model::image_cache::CacheId;

/// Implements volumes as snapshots of a cluster.
#[derive(Debug)]
pub struct KubeVolumes {
    client: ApiServer,
    names: Names,
    copies: Arc<Copies>,
    inventory: Inventory,
    uses: Arc<Uses>,
}

impl KubeVolumes {
    /// Returns the volumes of the installation `names`.
    pub fn new(
        client: Client,
        names: Names,
        copies: Arc<Copies>,
        inventory: Inventory,
        uses: Arc<Uses>,
    ) -> Self {
        KubeVolumes { copies, client: client.into(), names, inventory, uses }
    }

    fn own<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.names.namespace)
    }

    async fn made<K>(&self, api: Api<K>, kind: &str, id: CacheId) -> Result<Vec<VolumeId>, Fault>
    where
        K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        let found = request!(&format!("listing {kind}"), api.list_metadata(&self.names.of_cache(id)))?;
        Ok(found.items.iter().filter_map(|object| self.names.volume(&object.metadata)).collect())
    }

    /// Lists the volumes of an image cache from the API server. Secrets are not listed, because permission to
    /// list them includes reading them. They are deleted together with their Job.
    async fn made_for(&self, id: CacheId) -> Result<Vec<VolumeId>, Fault> {
        let mut all = self.made::<Job>(self.own(), "jobs", id).await?;
        all.extend(self.made::<PersistentVolumeClaim>(self.own(), "volume claims", id).await?);
        all.extend(self.made::<VolumeSnapshot>(self.own(), "snapshots", id).await?);
        let contents: Api<VolumeSnapshotContent> = Api::all(self.client.clone());
        all.extend(self.made(contents, "snapshot contents", id).await?);
        all.sort_by_key(|volume| volume.generation);
        all.dedup();
        Ok(all)
    }

    async fn snapshot(&self, volume: &VolumeId) -> Result<Option<VolumeSnapshot>, Fault> {
        let api: Api<VolumeSnapshot> = self.own();
        let name = object(volume);
        opt(request!(&format!("reading the snapshot {name}"), api.get(&name)))
    }

    async fn content(&self, snapshot: &VolumeSnapshot) -> Result<Option<VolumeSnapshotContent>, Fault> {
        let Some(name) = snapshot.content() else { return Ok(None) };
        let api: Api<VolumeSnapshotContent> = Api::all(self.client.clone());
        opt(request!(&format!("reading the snapshot content {name}"), api.get(name)))
    }

    async fn sealed(&self, volume: &VolumeId) -> Result<Sealed, StateError> {
        let incomplete = |problem: &str| StateError::Cluster {
            reason: format!("the snapshot {} {problem}", object(volume)),
            class: Class::Transient,
        };
        let snapshot = self.snapshot(volume).await?.ok_or_else(|| incomplete("is gone"))?;
        let content = self.content(&snapshot).await?.ok_or_else(|| incomplete("has no content"))?;
        let of = &content.spec.volume_snapshot_ref;
        if (&of.namespace, &of.name) != (&self.names.namespace, &object(volume)) || of.uid != snapshot.uid() {
            return Err(incomplete("is bound to the content of another snapshot"));
        }
        let status = content.status.unwrap_or_default();
        let handle = status.snapshot_handle.ok_or_else(|| incomplete("has no handle"))?;
        let snapshot = ClusterSnapshot {
            namespace: self.names.namespace.clone(),
            name: object(volume),
            handle,
            driver: content.spec.driver,
            restore_size: status.restore_size.and_then(|size| u64::try_from(size).ok()),
        };
        Ok(Sealed { content: None, snapshot: Some(snapshot) })
    }

    async fn look(&self, volume: &VolumeId) -> Result<Option<Snapshot>, Fault> {
        let Some(snapshot) = self.snapshot(volume).await?.filter(VolumeSnapshot::is_ready) else {
            return Ok(None);
        };
        let result =
            snapshot.annotations().get(RESULT).and_then(|text| serde_json::from_str::<Outcome>(text).ok());
        let Some((Some(digest), totals)) = result.map(|result| (result.digest, result.totals)) else {
            return Ok(None);
        };
        let content = self.content(&snapshot).await?.and_then(|content| content.status);
        Ok(Some(Snapshot {
            generation: volume.generation,
            served: false,
            in_use: is_held(&snapshot),
            digest,
            sealed_at: created(&snapshot.metadata),
            kind: Kind::VolumeSnapshot,
            size: totals.map_or(0, |totals| totals.size),
            image_size: content.and_then(|status| u64::try_from(status.restore_size?).ok()),
            image_allocated: None,
            path: None,
        }))
    }

    async fn discard(&self, volume: &VolumeId) -> Result<Discarded, Fault> {
        let name = object(volume);
        self.uses.release(volume);
        let _turn = self.copies.turn().await;
        if self.copies.remove(volume, |_| true).await? > 0 {
            return Ok(Discarded::Going);
        }
        let job = self.delete::<Job>(&name, &DeleteParams::foreground()).await?;
        // Normally deleted together with the Job of the build, like the claim.
        let job = self.delete::<Job>(&verifier(volume), &DeleteParams::foreground()).await? || job;
        // Deleted together with the Job, unless the Job is gone or never owned the claim.
        let claim = self.delete::<PersistentVolumeClaim>(&name, &DeleteParams::default()).await?;
        let Some(snapshot) = self.snapshot(volume).await? else {
            return Ok(if job || claim { Discarded::Going } else { Discarded::Gone });
        };
        if let Some(content) = self.content(&snapshot).await?
            && content.spec.deletion_policy != "Delete"
        {
            self.set_deletion_policy(&content).await?;
        }
        let going = snapshot.metadata.deletion_timestamp.is_some();
        self.delete::<VolumeSnapshot>(&name, &DeleteParams::default()).await?;
        Ok(match going && is_held(&snapshot) {
            true => Discarded::InUse("a disk is being restored from it".to_owned()),
            false => Discarded::Going,
        })
    }

    /// Deletes an object. Returns `false` if it did not exist.
    async fn delete<K>(&self, name: &str, parameters: &DeleteParams) -> Result<bool, Fault>
    where
        K: kube::Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
        K::DynamicType: Default,
    {
        let api: Api<K> = self.own();
        let kind = K::kind(&K::DynamicType::default()).to_lowercase();
        Ok(opt(request!(&format!("deleting the {kind} {name}"), api.delete(name, parameters)))?.is_some())
    }

    /// With a class that retains snapshots, the storage would keep a snapshot that no object refers to.
    async fn set_deletion_policy(&self, content: &VolumeSnapshotContent) -> Result<(), Fault> {
        let api: Api<VolumeSnapshotContent> = Api::all(self.client.clone());
        let name = content.name_any();
        let patch = json!({"spec": {"deletionPolicy": "Delete"}});
        let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let doing = format!("changing the deletion policy of the snapshot content {name}");
        request!(&doing, api.patch(&name, &parameters, &Patch::Merge(&patch)))?;
        Ok(())
    }
}

/// Reports whether a disk is being restored from a snapshot. Until then, the snapshot is not deleted
/// (external-snapshotter, volumesnapshot-as-source-protection).
fn is_held(snapshot: &VolumeSnapshot) -> bool {
    let mut finalizers = snapshot.finalizers().iter();
    snapshot.metadata.deletion_timestamp.is_some()
        && finalizers.any(|one| one.ends_with("volumesnapshot-as-source-protection"))
}

impl Volumes for KubeVolumes {
    fn capacity_gib(&self) -> Result<u64, StateError> {
        Ok(UNLIMITED)
    }

    fn places(&self, _: VolumeId) -> BoxFuture<'_, Result<BuildDirs, StateError>> {
        // Each pod has its own volume, and nothing is shared.
        Box::pin(async { Ok(BuildDirs { volume: VOLUME.into(), share: VOLUME.into() }) })
    }

    fn imports(&self) -> Option<&Imports> {
        // A pod could receive an archive only over the network.
        None
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<VolumeId>, StateError>> {
        Box::pin(self.inventory.volumes())
    }

    fn list_of(&self, record: &Record) -> BoxFuture<'_, Result<Vec<VolumeId>, StateError>> {
        let id = record.id;
        Box::pin(async move { Ok(self.made_for(id).await?) })
    }

    fn is_sealed(&self, volume: VolumeId) -> BoxFuture<'_, Result<bool, StateError>> {
        Box::pin(async move {
            // A new leader checks every image cache; the inventory has most of them.
            Ok(self.inventory.is_sealed(&volume)
                || self.snapshot(&volume).await?.is_some_and(|snapshot| snapshot.is_ready()))
        })
    }

    fn sealed(&self, volume: VolumeId) -> BoxFuture<'_, Result<Sealed, StateError>> {
        Box::pin(async move { self.sealed(&volume).await })
    }

    fn discard(&self, volume: VolumeId) -> BoxFuture<'_, Result<Discarded, StateError>> {
        Box::pin(async move { Ok(self.discard(&volume).await?) })
    }

    fn look(&self, volume: VolumeId, _: bool) -> BoxFuture<'_, Result<Option<Snapshot>, StateError>> {
        Box::pin(async move { Ok(self.look(&volume).await?) })
    }

    fn in_use(&self, volume: VolumeId) -> BoxFuture<'_, Result<Option<String>, StateError>> {
        Box::pin(async move { Ok(self.uses.of(&volume).await?) })
    }

    fn tidy(&self, _: bool) {}
}
