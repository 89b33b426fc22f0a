//! Bodies of requests and answers: the vendor's types here, Larder's extensions in [`beyond`].
//!
//! The daemon writes the answers, and its clients read them with the same types. A newer daemon can send more
//! fields, which an older client ignores.

pub mod beyond;
mod json;
pub mod order;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::caches::record::Record;
use larder_model::image_cache::{CacheId, CacheName, Status};

/// An image cache in the vendor's format.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ImageCache {
    /// Name of the image cache.
    #[schema(value_type = String, example = "web-1")]
    pub name: CacheName,
    /// ID of the image cache.
    #[schema(value_type = uuid::Uuid)]
    pub id: CacheId,
    /// Time of the order.
    #[schema(example = "2024-11-25 06:32:34.923248 +0000 UTC")]
    pub created_at: String,
    /// The images, as given.
    pub images: Vec<String>,
    /// Size of the volume, GiB.
    pub image_cache_size: u32,
    /// Days until it expires; 0 means never.
    pub retention_days: u32,
    /// The build settings, as given.
    pub building_config: BuildingConfig,
    /// `Creating`, `Available`, `Failed`, `Unavailable` or `Deleting`.
    #[schema(value_type = String, example = "Available")]
    pub status: Status,
    /// The reason for a failure or an abnormal state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The cluster and the credentials for the build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildingConfig {
    /// UID of the cluster.
    #[schema(min_length = 1, max_length = 512)]
    pub cluster: String,
    /// Pull secrets, each `namespace:name`. With no valid one only public images can be pulled.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    #[schema(required = false, nullable, max_items = 64)]
    pub image_pull_secrets: Vec<String>,
}

/// An answer with one image cache.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct One {
    /// The image cache itself.
    pub image_cache: ImageCache,
}

/// An answer with several image caches.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Many {
    /// The image caches, oldest first.
    pub image_caches: Vec<ImageCache>,
}

impl From<&Record> for ImageCache {
    fn from(record: &Record) -> Self {
        let spec = &record.spec;
        ImageCache {
            name: spec.name.clone(),
            id: record.id,
            created_at: time(record.created_at),
            images: spec.images.iter().map(|image| image.given().to_owned()).collect(),
            image_cache_size: spec.size_gib,
            retention_days: spec.retention_days,
            building_config: BuildingConfig {
                cluster: spec.cluster.clone(),
                image_pull_secrets: spec.pull_secrets.clone(),
            },
            status: record.status,
            message: record.reason().map(str::to_owned),
        }
    }
}

impl From<Record> for ImageCache {
    fn from(record: Record) -> Self {
        ImageCache::from(&record)
    }
}

impl From<Record> for One {
    fn from(record: Record) -> Self {
        One { image_cache: record.into() }
    }
}

/// Formats a time in the vendor's format: Go's `time.Time.String()` in UTC, with microseconds.
fn time(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%d %H:%M:%S%.6f +0000 UTC").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::image_cache::Spec;

    #[test]
    fn the_vendors_object() {
        let spec = Spec {
            name: "web".parse().unwrap(),
            images: vec!["nginx".parse().unwrap()],
            size_gib: 20,
            retention_days: 7,
            cluster: "c".into(),
            pull_secrets: vec!["a:b".into()],
        };
        let at = DateTime::from_timestamp(1_732_516_354, 923_248_000).unwrap();
        let id = CacheId::random();
        let mut record = Record::new(id, "team".parse().unwrap(), spec, at);
        let wanted = serde_json::json!({"image_cache": {
            "name": "web", "id": id.to_string(), "created_at": "2024-11-25 06:32:34.923248 +0000 UTC",
            "images": ["nginx"], "image_cache_size": 20, "retention_days": 7,
            "building_config": {"cluster": "c", "image_pull_secrets": ["a:b"]}, "status": "Creating",
        }});
        assert_eq!(serde_json::to_value(One::from(record.clone())).unwrap(), wanted);
        record.message = Some("why".into());
        record.spec.pull_secrets.clear();
        let json = serde_json::to_value(One::from(record)).unwrap();
        assert_eq!(json["image_cache"]["message"], "why");
        assert_eq!(json["image_cache"]["building_config"], serde_json::json!({"cluster": "c"}));
    }
}
