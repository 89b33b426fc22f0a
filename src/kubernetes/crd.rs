//! The custom resource: the spec, which a tenant writes, and the status, which Larder writes.
//!
//! `config/kubernetes/crd.yaml` is generated from these types (`larder config crd`), and a test compares the
//! two. Every field that a tenant can write (`spec`) is bounded, so that no tenant's object can prevent
//! another from being read. Only Larder can write `status`: permission to write it amounts to control of the
//! daemon.

#![expect(unreachable_pub, reason = "the derive of the schema repeats the structure in a private scope")]

mod status;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube::{CustomResource, CustomResourceExt as _, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
pub use status::{
    Condition, Content, CopyState, Happened, ImageCacheStatus, ImageState, Layer, Progress, RefreshState,
    SealedImage, Snapshot, Totals, Work,
};

/// Returns the CustomResourceDefinition as YAML.
///
/// # Errors
/// The definition cannot be serialised.
pub fn yaml() -> Result<String, serde_saphyr::SerializeError> {
    serde_saphyr::to_string(&definition())
}

/// Returns the CustomResourceDefinition that is shipped.
pub fn definition() -> CustomResourceDefinition {
    let mut definition = ImageCache::crd();
    for version in &mut definition.spec.versions {
        if let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            known_formats(schema);
        }
    }
    definition
}

/// Removes the formats of unsigned integers: OpenAPI does not define them, and API servers warn about them.
/// `minimum` expresses the same limit.
fn known_formats(schema: &mut JSONSchemaProps) {
    if schema.format.as_deref().is_some_and(|format| format.starts_with("uint")) {
        schema.format = None;
    }
    schema.properties.iter_mut().flat_map(|properties| properties.values_mut()).for_each(known_formats);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        known_formats(items);
    }
}

/// The requested image cache. Only `retentionDays`, `share`, `refresh` and `evict` can be changed.
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
    doc = "Container images, pulled, verified and unpacked on a volume that becomes a snapshot.",
    validation = Rule::new("self.metadata.name.matches('^[a-z]([a-z0-9-]{0,126}[a-z0-9])?$')")
        .message("metadata.name: must be 1 to 128 characters of a-z 0-9 '-', start with a letter and not end with '-'"),
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
    validation = Rule::new("self.images == oldSelf.images").message("images: immutable: create another image cache"),
    validation = Rule::new("self.imageCacheSize == oldSelf.imageCacheSize").message("imageCacheSize: immutable"),
    validation = Rule::new("self.cluster == oldSelf.cluster").message("cluster: immutable"),
    validation = Rule::new("self.imagePullSecrets == oldSelf.imagePullSecrets")
        .message("imagePullSecrets: immutable: create another image cache")
)]
#[serde(rename_all = "camelCase")]
pub struct ImageCacheSpec {
    /// References of 1 to 20 images, without duplicates. A tag is resolved when the image cache is built.
    #[schemars(length(min = 1, max = 20), inner(length(min = 1, max = 1024)))]
    pub images: Vec<String>,
    /// Size of the volume in GiB, from 20 to 400; default 20. It must be at least three times the compressed
    /// size of the images.
    #[serde(default = "smallest")]
    #[schemars(range(min = 20, max = 400))]
    pub image_cache_size: u32,
    /// Days until the image cache expires, from 0 to 10000. With 0, the default, it never expires.
    #[serde(default)]
    #[schemars(range(min = 0, max = 10000))]
    pub retention_days: u32,
    /// UID of the cluster that builds the image cache. Empty, the default, means the cluster that contains
    /// the object.
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub cluster: String,
    /// Up to 64 pull secrets, each `namespace:name`, in the order in which they are tried. A secret of
    /// another namespace must list this namespace in its annotation `larder.dev/pull-by`.
    #[serde(default)]
    #[schemars(length(max = 64), inner(length(max = 512)))]
    pub image_pull_secrets: Vec<String>,
    /// Up to 32 other namespaces in which the snapshot is offered. Each must list this namespace in its
    /// annotation `larder.dev/accept-from`.
    #[serde(default)]
    #[schemars(
        length(max = 32),
        inner(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))
    )]
    pub share: Vec<String>,
    /// Schedule for automatic refreshes. Without it, the image cache is refreshed only on request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh: Option<Refresh>,
    /// `true` if Larder can delete the image cache when its namespace needs room. It deletes the least
    /// recently used image cache that is not in use. The default is `false`. Image caches that Larder
    /// created on a miss can always be deleted this way.
    #[serde(default, skip_serializing_if = "is_false")]
    pub evict: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Automatic refresh: resolves the tags again and builds the images that they point to now. The current
/// snapshot is served until the new one is ready.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refresh {
    /// Five fields as in crontab(5): minute, hour, day of month, month, day of week. `0 3 * * *` is each day
    /// at 3:00. Each image cache is refreshed up to ten minutes later, at an offset derived from its UID.
    /// Scheduled times that passed while no daemon ran count as one.
    #[schemars(length(min = 9, max = 128), regex(pattern = "^[0-9A-Za-z*,/#-]+( +[0-9A-Za-z*,/#-]+){4}$"))]
    pub schedule: String,
    /// Time zone of the schedule, as in the IANA database: `Europe/Berlin`. The default is `UTC`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[0-9A-Za-z+_/-]+$"))]
    pub time_zone: Option<String>,
    /// `DigestChanged`, the default: refresh only if a tag points to another image than on the snapshot.
    /// `Always`: refresh each time.
    #[serde(default)]
    pub when: When,
}

/// Condition under which a scheduled time starts a build.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[schemars(inline)]
pub enum When {
    // Doc comments on the variants would turn the enumeration into a `oneOf`, which a structural schema does
    // not allow.
    #[expect(missing_docs, reason = "see above; the field describes the values")]
    Always,
    #[default]
    #[expect(missing_docs, reason = "see above; the field describes the values")]
    DigestChanged,
}

fn smallest() -> u32 {
    larder_model::image_cache::spec::MIN_SIZE_GIB
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_shipped_file_is_current() {
        let shipped = include_str!("../../config/kubernetes/crd.yaml");
        assert_eq!(shipped, yaml().unwrap(), "larder config crd > config/kubernetes/crd.yaml");
    }

    /// Every list and every string has a maximum length. Without one, the cost of a CEL rule could exceed the
    /// limit, or an object could be too large. Fields that no type names are not preserved.
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
                // The formats that API servers know (apiextensions-apiserver
                // pkg/apiserver/validation/formats.go).
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
