//! VolumeSnapshots and their contents (`snapshot.storage.k8s.io/v1`). Only the fields that Larder uses are
//! declared.

use kube::CustomResource;
use serde::{Deserialize, Serialize};

/// Spec of a VolumeSnapshot.
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
    /// Name of the VolumeSnapshotClass; `None` in a copy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_snapshot_class_name: Option<String>,
    /// Origin of the snapshot: a claim or a content.
    pub source: Source,
}

/// Origin of a snapshot. Exactly one field is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// Name of a PVC in the same namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim_name: Option<String>,
    /// Name of a content that already exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_snapshot_content_name: Option<String>,
}

/// Status of a VolumeSnapshot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotStatus {
    /// Name of the content that the snapshot is bound to.
    pub bound_volume_snapshot_content_name: Option<String>,
    /// `true` if the snapshot can be used. The controller does not check it again afterwards.
    pub ready_to_use: Option<bool>,
    /// Minimum size of a volume that is restored from the snapshot, as a quantity.
    pub restore_size: Option<String>,
    /// The last failure. The controller retries after it.
    pub error: Option<SnapshotError>,
}

/// Failure of a snapshot operation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SnapshotError {
    /// Explanation of the failure for people.
    pub message: Option<String>,
}

/// Spec of a VolumeSnapshotContent, the snapshot in the storage system.
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
    /// `Delete` or `Retain`: whether the storage system keeps the snapshot when this object is deleted.
    pub deletion_policy: String,
    /// Name of the CSI driver.
    pub driver: String,
    /// Origin of the content.
    #[serde(default)]
    pub source: ContentSource,
    /// The VolumeSnapshot that the content is bound to.
    pub volume_snapshot_ref: Reference,
    /// Mode of the volume; always `Filesystem`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_volume_mode: Option<String>,
}

/// Origin of a VolumeSnapshotContent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContentSource {
    /// Handle of a snapshot that already exists in the storage system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_handle: Option<String>,
}

/// Reference to a VolumeSnapshot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// Name of the VolumeSnapshot.
    #[serde(default)]
    pub name: String,
    /// Namespace of the VolumeSnapshot.
    #[serde(default)]
    pub namespace: String,
    /// UID of the VolumeSnapshot, once the two are bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// Status of a VolumeSnapshotContent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotContentStatus {
    /// Handle of the snapshot in the storage system.
    pub snapshot_handle: Option<String>,
    /// `true` if the snapshot can be used.
    pub ready_to_use: Option<bool>,
    /// Minimum size of a volume that is restored from the snapshot, bytes.
    pub restore_size: Option<i64>,
}

impl VolumeSnapshot {
    /// Reports whether the snapshot can be used.
    pub fn is_ready(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.ready_to_use == Some(true))
    }

    /// Returns the message of the last failure.
    pub fn error(&self) -> Option<&str> {
        self.status.as_ref()?.error.as_ref()?.message.as_deref()
    }

    /// Returns the name of the bound content. `None` until it is bound.
    pub fn content(&self) -> Option<&str> {
        self.status.as_ref()?.bound_volume_snapshot_content_name.as_deref()
    }
}
