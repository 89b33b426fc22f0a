//! The custom resource: what a tenant writes, and what Larder says of it.
//!
//! `config/kubernetes/crd.yaml` is made of these types (`larder config crd`), and a test holds the two equal. What a
//! tenant may write (`spec`) is bounded field by field, so that no object of a tenant can keep another from being read.
//! `status` is Larder's alone: whoever gives others the right to write it gives the daemon away.

#![expect(
    unreachable_pub,
    reason = "the derive of the schema repeats the structure where nobody else sees it"
)]

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube::{CustomResource, CustomResourceExt as _, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The CustomResourceDefinition as YAML.
pub fn yaml() -> Result<String, serde_saphyr::SerializeError> {
    serde_saphyr::to_string(&definition())
}

/// The CustomResourceDefinition, as it is shipped.
pub fn definition() -> CustomResourceDefinition {
    let mut definition = ImageCache::crd();
    for version in &mut definition.spec.versions {
        if let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            known_formats(schema);
        }
    }
    definition
}

/// Removes the formats of unsigned integers: OpenAPI has none, and API servers warn about them. `minimum` holds the same.
fn known_formats(schema: &mut JSONSchemaProps) {
    if schema.format.as_deref().is_some_and(|format| format.starts_with("uint")) {
        schema.format = None;
    }
    schema.properties.iter_mut().flat_map(|properties| properties.values_mut()).for_each(known_formats);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        known_formats(items);
    }
}

/// The wanted image cache. Only `retentionDays`, `share`, `refresh` and `evict` can be changed.
#[derive(Clone, Debug, PartialEq, CustomResource, KubeSchema, Serialize, Deserialize)]
#[kube(
    group = "larder.dev",
    version = "v1",
    kind = "ImageCache",
    plural = "imagecaches",
    shortname = "ic",
    namespaced,
    status = "ImageCacheStatus",
    derive = "PartialEq",
    doc = "A list of container images, pulled, verified and unpacked on a volume that becomes a snapshot.",
    validation = Rule::new("self.metadata.name.matches('^[a-z]([a-z0-9-]{0,126}[a-z0-9])?$')")
        .message("metadata.name: want 1 to 128 of a-z 0-9 '-', a letter first and no '-' last"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Progress", type_ = "string", json_path = ".status.progress.percent"),
    printcolumn(name = "Size", type_ = "integer", json_path = ".spec.imageCacheSize", description = "GiB"),
    printcolumn(name = "Snapshot", type_ = "string", json_path = ".status.content.snapshot.name"),
    printcolumn(name = "Expires", type_ = "string", json_path = ".status.expiresAt"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Last Used", type_ = "string", json_path = ".status.lastUsed", priority = 1),
    printcolumn(name = "Next Refresh", type_ = "string", json_path = ".status.refresh.nextTime", priority = 1),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    )
)]
#[x_kube(
    validation = Rule::new("self.images == oldSelf.images").message("images: they never change: make another image cache"),
    validation = Rule::new("self.imageCacheSize == oldSelf.imageCacheSize").message("imageCacheSize: it never changes"),
    validation = Rule::new("self.cluster == oldSelf.cluster").message("cluster: it never changes"),
    validation = Rule::new("self.imagePullSecrets == oldSelf.imagePullSecrets")
        .message("imagePullSecrets: they never change: make another image cache")
)]
#[serde(rename_all = "camelCase")]
pub struct ImageCacheSpec {
    /// References of 1 to 20 images, each once. A tag is resolved when the image cache is built.
    #[schemars(length(min = 1, max = 20), inner(length(min = 1, max = 1024)))]
    pub images: Vec<String>,
    /// Size of the volume, GiB: 20 to 400; 20 by default. It must be at least three times the compressed size of the images.
    #[serde(default = "smallest")]
    #[schemars(range(min = 20, max = 400))]
    pub image_cache_size: u32,
    /// Days until the image cache expires: 0 to 10000; 0, the default, is never.
    #[serde(default)]
    #[schemars(range(min = 0, max = 10000))]
    pub retention_days: u32,
    /// UID of the cluster that builds the image cache. Empty, the default, is the cluster that the object is in.
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub cluster: String,
    /// Up to 64 pull secrets, each `namespace:name`, in the order in which they are tried. A secret of another namespace must
    /// name this namespace in its annotation `larder.dev/pull-by`.
    #[serde(default)]
    #[schemars(length(max = 64), inner(length(max = 512)))]
    pub image_pull_secrets: Vec<String>,
    /// Up to 32 other namespaces in which the snapshot is offered. Each must list this namespace in its annotation
    /// `larder.dev/accept-from`.
    #[serde(default)]
    #[schemars(
        length(max = 32),
        inner(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))
    )]
    pub share: Vec<String>,
    /// When the image cache is refreshed without a request. Without it, only requests refresh the image cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh: Option<Refresh>,
    /// Whether Larder may delete the image cache when its namespace needs room and the image cache is the least recently used
    /// one that is not in use; false by default. Larder may always do so with image caches that it created on a miss.
    #[serde(default, skip_serializing_if = "is_false")]
    pub evict: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// A refresh resolves the tags again and builds what they point to now. The present snapshot is served until the new one is ready.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refresh {
    /// Five fields as in crontab(5): minute, hour, day of month, month, day of week. `0 3 * * *` is each day at 3:00. Each image
    /// cache is refreshed up to ten minutes later, at an offset that follows from its UID. Times that passed while no daemon
    /// ran count as one.
    #[schemars(length(min = 9, max = 128), regex(pattern = "^[0-9A-Za-z*,/#-]+( +[0-9A-Za-z*,/#-]+){4}$"))]
    pub schedule: String,
    /// Time zone of the schedule, as in the IANA database: `Europe/Berlin`. `UTC` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[0-9A-Za-z+_/-]+$"))]
    pub time_zone: Option<String>,
    /// `DigestChanged`, the default: refresh only if a tag points to another image than on the snapshot. `Always`: refresh each time.
    #[serde(default)]
    pub when: When,
}

/// Which scheduled times lead to a build.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[schemars(inline)]
pub enum When {
    // Comments here would turn the enumeration into a choice of schemas, which the schema of a custom resource cannot be.
    #[expect(missing_docs, reason = "see above; the field describes the values")]
    Always,
    #[default]
    #[expect(missing_docs, reason = "see above; the field describes the values")]
    DigestChanged,
}

fn smallest() -> u32 {
    larder_model::image_cache::spec::MIN_SIZE_GIB
}

/// What became of it.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageCacheStatus {
    /// `Creating`, `Available`, `Failed`, `Unavailable` or `Deleting`.
    #[schemars(length(max = 32))]
    pub phase: String,
    /// Since when, RFC 3339.
    #[schemars(length(max = 64))]
    pub since: String,
    /// The reason of a failure or of an abnormal state.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8192))]
    pub message: Option<String>,
    /// The class of the failure, for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub class: Option<String>,
    /// When it was ordered, to the nanosecond.
    #[schemars(length(max = 64))]
    pub created_at: String,
    /// When its retention ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub expires_at: Option<String>,
    /// Who ordered it: `api` or `cluster`.
    #[schemars(length(max = 32))]
    pub ordered_by: String,
    /// The generation of the spec that this was made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: the snapshot can be used. `Progressing`: a build is under way. `Degraded`: a person must act.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub conditions: Vec<Condition>,
    /// The images: of the build while there is one, else of the snapshot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub images: Vec<ImageState>,
    /// How far the build is, while there is one and its images are resolved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The snapshot that is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// The build that was asked for and has not ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work: Option<Work>,
    /// Number of the last volume that was begun.
    #[serde(default)]
    pub generation: u32,
    /// The last events, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub events: Vec<Happened>,
    /// Number of the last event.
    #[serde(default)]
    pub sequence: u64,
    /// Where the snapshot is offered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub copies: Vec<CopyState>,
    /// Refreshes by the schedule: the next one, and how the last one ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh: Option<RefreshState>,
    /// When the image cache was last in use, RFC 3339: by a pod on a node, or by a claim that was restored from a copy. Accurate to
    /// about ten minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub last_used: Option<String>,
}

/// Refreshes by the schedule.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefreshState {
    /// The schedule and time zone that `nextTime` was computed from.
    #[schemars(length(max = 256))]
    pub schedule: String,
    /// When the next refresh is due, RFC 3339. Absent if the schedule has no next time.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub next_time: Option<String>,
    /// When the last scheduled refresh began, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub last_time: Option<String>,
    /// `Started`; `Refreshed`: there is a new snapshot; `Unchanged`: no tag moved; `Skipped`: nothing could be refreshed at that
    /// time; `Failed`; `Invalid`: the schedule cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub last_result: Option<String>,
    /// The reason of the last result.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// Number of the volume that the last refresh began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
}

/// A condition as Kubernetes has it.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What it is about.
    #[serde(rename = "type")]
    #[schemars(length(max = 64))]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    #[schemars(length(max = 16))]
    pub status: String,
    /// Why, in one word.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// Why, for people.
    #[schemars(length(max = 8192))]
    pub message: String,
    /// Since when, RFC 3339.
    #[schemars(length(max = 64))]
    pub last_transition_time: String,
    /// The generation of the spec that it was made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// One image.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageState {
    /// The reference as given.
    #[schemars(length(max = 1024))]
    pub reference: String,
    /// The manifest it stands for.
    #[schemars(length(max = 256))]
    pub manifest: String,
    /// Number of its layers.
    pub layers: u32,
    /// Of these, on the volume.
    pub layers_done: u32,
    /// Compressed size of these layers, bytes.
    pub compressed_size: u64,
    /// Bytes of them that came from a registry.
    pub received: u64,
}

/// How far a build is, over all images. A layer that several images share counts for each.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Layers that are on the volume, for people: `45%`.
    #[schemars(length(max = 8))]
    pub percent: String,
    /// Number of layers.
    pub layers: u64,
    /// Of these, on the volume.
    pub layers_done: u64,
    /// Compressed size of the layers, bytes.
    pub compressed_size: u64,
    /// Bytes of them that came from a registry.
    pub received: u64,
}

/// What is served.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Content {
    /// Number of its volume.
    pub generation: u32,
    /// When it was sealed.
    #[schemars(length(max = 64))]
    pub sealed_at: String,
    /// Digest of what `cache.json` on it says.
    #[schemars(length(max = 256))]
    pub digest: String,
    /// The snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
    /// Images and what they resolved to.
    #[schemars(length(max = 20))]
    pub images: Vec<SealedImage>,
    /// Sums over all layers.
    pub totals: Totals,
    /// The layers, by what became of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4096))]
    pub layers: Vec<Layer>,
}

/// The VolumeSnapshot that owns the content.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Its namespace: Larder's own.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Its name; copies in other namespaces have the same.
    #[schemars(length(max = 253))]
    pub name: String,
    /// What the storage calls it.
    #[schemars(length(max = 1024))]
    pub handle: String,
    /// The CSI driver that has it.
    #[schemars(length(max = 253))]
    pub driver: String,
    /// Smallest volume that it can be restored to, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore_size: Option<u64>,
}

/// An image of the snapshot.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct SealedImage {
    /// The reference as given.
    #[schemars(length(max = 1024))]
    pub reference: String,
    /// Digest of its manifest.
    #[schemars(length(max = 256))]
    pub manifest: String,
    /// Digest of the index that the tag pointed to, where there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub index: Option<String>,
}

/// Sums.
#[derive(Clone, Copy, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Number of layers.
    pub layers: u64,
    /// Compressed bytes of the distinct blobs.
    pub compressed_size: u64,
    /// Bytes of the distinct tars.
    pub size: u64,
    /// Their members.
    pub entries: u64,
}

/// One layer. Images are numbers of `images`, for there may be thousands of layers.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Layer {
    /// Digest of the blob.
    #[schemars(length(max = 256))]
    pub blob: String,
    /// Numbers of the images that have it, from 0.
    #[schemars(length(max = 20))]
    pub images: Vec<u8>,
    /// Size of the blob, bytes.
    pub compressed_size: u64,
    /// Size of the tar, bytes.
    pub size: u64,
    /// From the start of its fetch to its commit, milliseconds.
    pub elapsed_ms: u64,
    /// `fetched`, `present` or `reused`.
    #[schemars(length(max = 32))]
    pub origin: String,
}

/// A build to carry out.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Work {
    /// Number of the volume that is filled.
    pub generation: u32,
    /// How often a builder was started for it.
    pub attempts: u32,
    /// What the build waits for, while it waits: a node, a disk, a snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub waiting: Option<String>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Happened {
    /// Number within the cache, from 1.
    pub sequence: u64,
    /// When, RFC 3339.
    #[schemars(length(max = 64))]
    pub time: String,
    /// The status from then on.
    #[schemars(length(max = 32))]
    pub status: String,
    /// What, for people.
    #[schemars(length(max = 8192))]
    pub message: String,
}

/// A copy of the snapshot in one namespace.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct CopyState {
    /// The namespace.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Whether it can be used there.
    pub ready: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_shipped_file_is_this() {
        let shipped = include_str!("../../config/kubernetes/crd.yaml");
        assert_eq!(shipped, yaml().unwrap(), "larder config crd > config/kubernetes/crd.yaml");
    }

    /// Every list and every text has an upper limit (a rule of CEL may otherwise cost too much, and an object be too large),
    /// and nothing is kept that no type names.
    #[test]
    fn everything_is_bounded() {
        fn check(path: &str, schema: &Value) {
            assert_ne!(schema["x-kubernetes-preserve-unknown-fields"], json!(true), "{path}");
            match schema["type"].as_str() {
                Some("string") => assert!(
                    schema["maxLength"].is_u64() || schema["enum"].is_array(),
                    "{path} has no maxLength"
                ),
                Some("array") => {
                    assert!(schema["maxItems"].is_u64(), "{path} has no maxItems");
                    check(&format!("{path}[]"), &schema["items"]);
                }
                Some("object") => {
                    for (key, value) in schema["properties"].as_object().unwrap() {
                        check(&format!("{path}.{key}"), value);
                    }
                }
                // The formats that API servers know (apiextensions-apiserver pkg/apiserver/validation/formats.go).
                Some("integer") => assert!(
                    matches!(schema["format"].as_str(), None | Some("int32" | "int64")),
                    "{path}: {}",
                    schema["format"]
                ),
                Some("boolean") => {}
                other => panic!("{path}: {other:?}"),
            }
        }
        let crd = serde_json::to_value(definition()).unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
        check("spec", &schema["spec"]);
        check("status", &schema["status"]);
    }

    #[test]
    fn limits_are_those_of_the_api() {
        use larder_model::image_cache::spec::{
            MAX_IMAGES, MAX_PULL_SECRETS, MAX_RETENTION_DAYS, MAX_SIZE_GIB, MAX_TEXT, MIN_SIZE_GIB,
        };
        let crd = serde_json::to_value(ImageCache::crd()).unwrap();
        let spec =
            &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
        assert_eq!(spec["images"]["maxItems"], json!(MAX_IMAGES));
        assert_eq!(spec["imagePullSecrets"]["maxItems"], json!(MAX_PULL_SECRETS));
        assert_eq!(spec["imagePullSecrets"]["items"]["maxLength"], json!(MAX_TEXT));
        let size = &spec["imageCacheSize"];
        let number = |value: &Value| value.as_f64().unwrap();
        assert_eq!(
            (number(&size["minimum"]), number(&size["maximum"])),
            (f64::from(MIN_SIZE_GIB), f64::from(MAX_SIZE_GIB))
        );
        assert_eq!(size["default"], json!(MIN_SIZE_GIB));
        assert_eq!(number(&spec["retentionDays"]["maximum"]), f64::from(MAX_RETENTION_DAYS));
    }
}
