//! VolumeSnapshots and their contents (`snapshot.storage.k8s.io/v1`), as far as Larder reads and writes them.

use kube::CustomResource;
use serde::{Deserialize, Serialize};

/// What a snapshot is made of.
#[derive(Clone, Debug, Default, PartialEq, CustomResource, Serialize, Deserialize)]
#[kube(
    group = "snapshot.storage.k8s.io",
    version = "v1",
    kind = "VolumeSnapshot",
    plural = "volumesnapshots",
    namespaced,
    schema = "disabled",
    status = "VolumeSnapshotStatus"
)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotSpec {
    /// The class; none in a copy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_snapshot_class_name: Option<String>,
    /// The volume or the content.
    pub source: Source,
}

/// One of the two.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// A PVC of the same namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim_name: Option<String>,
    /// A content that is there already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_snapshot_content_name: Option<String>,
}

/// What became of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotStatus {
    /// Its content.
    pub bound_volume_snapshot_content_name: Option<String>,
    /// Whether it can be used. Not looked at again afterwards.
    pub ready_to_use: Option<bool>,
    /// Smallest volume that it can be restored to: a quantity.
    pub restore_size: Option<String>,
    /// The last failure. Not the end: the controller tries again.
    pub error: Option<SnapshotError>,
}

/// A failure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SnapshotError {
    /// Why.
    pub message: Option<String>,
}

/// What the storage has.
#[derive(Clone, Debug, Default, PartialEq, CustomResource, Serialize, Deserialize)]
#[kube(
    group = "snapshot.storage.k8s.io",
    version = "v1",
    kind = "VolumeSnapshotContent",
    plural = "volumesnapshotcontents",
    schema = "disabled",
    status = "VolumeSnapshotContentStatus"
)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotContentSpec {
    /// What becomes of the snapshot in the storage when this goes: `Delete` or `Retain`.
    pub deletion_policy: String,
    /// The CSI driver.
    pub driver: String,
    /// Where it comes from.
    #[serde(default)]
    pub source: ContentSource,
    /// The VolumeSnapshot that it belongs to.
    pub volume_snapshot_ref: Reference,
    /// `Filesystem`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_volume_mode: Option<String>,
}

/// Where a content comes from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContentSource {
    /// A snapshot that the storage has already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_handle: Option<String>,
}

/// Names an object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its namespace.
    #[serde(default)]
    pub namespace: String,
    /// Its UID, once it is bound to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// What the storage says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotContentStatus {
    /// What the storage calls it.
    pub snapshot_handle: Option<String>,
    /// Whether it can be used.
    pub ready_to_use: Option<bool>,
    /// Smallest volume that it can be restored to, bytes.
    pub restore_size: Option<i64>,
}

impl VolumeSnapshot {
    /// Whether it can be used.
    pub fn is_ready(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.ready_to_use == Some(true))
    }

    /// The last failure.
    pub fn error(&self) -> Option<&str> {
        self.status.as_ref()?.error.as_ref()?.message.as_deref()
    }

    /// Name of its content, once it has one.
    pub fn content(&self) -> Option<&str> {
        self.status.as_ref()?.bound_volume_snapshot_content_name.as_deref()
    }
}
