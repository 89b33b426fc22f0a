//! The status of an `ImageCache`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The observed state of the image cache. Only Larder writes it.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageCacheStatus {
    /// `Creating`, `Available`, `Failed`, `Unavailable` or `Deleting`.
    #[schemars(length(max = 32))]
    pub phase: String,
    /// Time of the last change of `phase`, RFC 3339.
    #[schemars(length(max = 64))]
    pub since: String,
    /// Reason of a failure or of an abnormal state.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8192))]
    pub message: Option<String>,
    /// Class of the failure, for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub class: Option<String>,
    /// Time of the request, RFC 3339 with nanoseconds.
    #[schemars(length(max = 64))]
    pub created_at: String,
    /// Time at which the retention ends, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub expires_at: Option<String>,
    /// Origin of the request: `api` or `cluster`.
    #[schemars(length(max = 32))]
    pub ordered_by: String,
    /// Generation of the spec that this status is based on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: the snapshot can be used. `Progressing`: a build is in progress. `Degraded`: a person must
    /// act.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub conditions: Vec<Condition>,
    /// The images: those of the build while one is in progress, otherwise those of the snapshot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub images: Vec<ImageState>,
    /// Progress of the build, once its images are resolved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The snapshot that is currently served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// The build that was requested and has not ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work: Option<Work>,
    /// Number of the most recent volume.
    #[serde(default)]
    pub generation: u32,
    /// The most recent events, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub events: Vec<Happened>,
    /// Number of the most recent event.
    #[serde(default)]
    pub sequence: u64,
    /// Namespaces in which the snapshot is offered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub copies: Vec<CopyState>,
    /// Scheduled refreshes: the next one, and the result of the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh: Option<RefreshState>,
    /// Time of the last use, RFC 3339: by a pod on a node, or by a claim that was restored from a copy.
    /// Accurate to about ten minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub last_used: Option<String>,
}

/// State of the scheduled refreshes.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefreshState {
    /// Schedule and time zone that `nextTime` was computed from.
    #[schemars(length(max = 256))]
    pub schedule: String,
    /// Time of the next refresh, RFC 3339. Absent if the schedule has no next time.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub next_time: Option<String>,
    /// Start of the last scheduled refresh, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub last_time: Option<String>,
    /// `Started`; `Refreshed`: there is a new snapshot; `Unchanged`: no tag moved; `Skipped`: nothing could
    /// be refreshed at that time; `Failed`; `Invalid`: the schedule cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub last_result: Option<String>,
    /// Reason of the last result.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// Number of the volume that the last refresh created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
}

/// A condition, as in the Kubernetes API conventions.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Type of the condition, such as `Ready`.
    #[serde(rename = "type")]
    #[schemars(length(max = 64))]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    #[schemars(length(max = 16))]
    pub status: String,
    /// Reason in one word, for programs.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// Explanation of the reason for people.
    #[schemars(length(max = 8192))]
    pub message: String,
    /// Time of the last change of `status`, RFC 3339.
    #[schemars(length(max = 64))]
    pub last_transition_time: String,
    /// Generation of the spec that this condition is based on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// State of one image.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageState {
    /// The reference as given in the spec.
    #[schemars(length(max = 1024))]
    pub reference: String,
    /// Digest of the manifest that the reference resolved to.
    #[schemars(length(max = 256))]
    pub manifest: String,
    /// Number of layers of the image.
    pub layers: u32,
    /// Number of layers that are on the volume.
    pub layers_done: u32,
    /// Compressed size of the layers, bytes.
    pub compressed_size: u64,
    /// Number of these bytes that were received from a registry.
    pub received: u64,
}

/// Progress of a build over all images. A layer that several images share is counted for each of them.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Share of the layers that are on the volume, for people: `45%`.
    #[schemars(length(max = 8))]
    pub percent: String,
    /// Number of layers in total.
    pub layers: u64,
    /// Number of layers that are on the volume.
    pub layers_done: u64,
    /// Compressed size of the layers, bytes.
    pub compressed_size: u64,
    /// Number of these bytes that were received from a registry.
    pub received: u64,
}

/// The content that is served.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Content {
    /// Number of the volume.
    pub generation: u32,
    /// Time at which the volume was sealed, RFC 3339.
    #[schemars(length(max = 64))]
    pub sealed_at: String,
    /// Digest of the content that `cache.json` on the volume describes.
    #[schemars(length(max = 256))]
    pub digest: String,
    /// The VolumeSnapshot of the volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
    /// The images, with the digests that they resolved to.
    #[schemars(length(max = 20))]
    pub images: Vec<SealedImage>,
    /// Sums over all layers.
    pub totals: Totals,
    /// The layers, each with its origin.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4096))]
    pub layers: Vec<Layer>,
}

/// The VolumeSnapshot that owns the content.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Namespace of the VolumeSnapshot: Larder's own.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Name of the VolumeSnapshot. Copies in other namespaces have the same name.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Handle of the snapshot in the storage system.
    #[schemars(length(max = 1024))]
    pub handle: String,
    /// Name of the CSI driver.
    #[schemars(length(max = 253))]
    pub driver: String,
    /// Minimum size of a volume that is restored from the snapshot, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore_size: Option<u64>,
}

/// An image of the snapshot.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct SealedImage {
    /// The reference as given in the spec.
    #[schemars(length(max = 1024))]
    pub reference: String,
    /// Digest of the manifest.
    #[schemars(length(max = 256))]
    pub manifest: String,
    /// Digest of the index that the tag pointed to. Absent if the tag pointed to a manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub index: Option<String>,
}

/// Sums over all layers.
#[derive(Clone, Copy, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Number of layers in total.
    pub layers: u64,
    /// Compressed size of the distinct blobs, bytes.
    pub compressed_size: u64,
    /// Size of the distinct layer tars, bytes.
    pub size: u64,
    /// Number of entries of the distinct layer tars.
    pub entries: u64,
}

/// One layer. Images are given as indexes into `images`, because there can be thousands of layers.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Layer {
    /// Digest of the compressed blob.
    #[schemars(length(max = 256))]
    pub blob: String,
    /// Indexes of the images that contain the layer, from 0.
    #[schemars(length(max = 20))]
    pub images: Vec<u8>,
    /// Size of the blob, bytes.
    pub compressed_size: u64,
    /// Size of the uncompressed tar, bytes.
    pub size: u64,
    /// Time from the start of the download to the commit, milliseconds.
    pub elapsed_ms: u64,
    /// Origin of the layer: `fetched`, `present` or `reused`.
    #[schemars(length(max = 32))]
    pub origin: String,
}

/// A build that is queued or in progress.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Work {
    /// Number of the volume that the build fills.
    pub generation: u32,
    /// Number of builders that were started for it.
    pub attempts: u32,
    /// Reason why the build waits: for a node, a disk or a snapshot. Absent if it does not wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub waiting: Option<String>,
    /// Error of the last attempt. Absent if none has failed.
    #[serde(rename = "lastError", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub last_error: Option<String>,
}

/// An event in the history of the image cache.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Happened {
    /// Number of the event within the image cache, from 1.
    pub sequence: u64,
    /// Time of the event, RFC 3339.
    #[schemars(length(max = 64))]
    pub time: String,
    /// Status of the image cache after the event.
    #[schemars(length(max = 32))]
    pub status: String,
    /// Description of the event for people.
    #[schemars(length(max = 8192))]
    pub message: String,
}

/// A copy of the snapshot in one namespace.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct CopyState {
    /// Namespace of the copy.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// `true` if the copy can be used.
    pub ready: bool,
    /// Reason why the copy cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
}
