//! Bodies of `/larder/v1/`.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ImageCache;
use crate::caches::matching::Found;
use crate::caches::service::{Details, HostOverview, Overview};
use crate::caches::volumes::Snapshot;
use larder_model::digest::Digest;
use larder_model::plan_report::PlanReport;
use larder_model::reference::ImageReference;
use larder_model::timeline::{Stage, Step, Timeline};

/// An image cache with all its details.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Detailed {
    /// The image cache as the vendor's object.
    pub image_cache: ImageCache,
    /// Digests, and for each image and layer: sizes, state, bytes, time and source.
    #[schema(value_type = Object)]
    pub details: Details,
    /// Build, space and attachments.
    #[schema(value_type = Object)]
    pub overview: Overview,
}

/// An image cache in a list.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Listed {
    /// The image cache as the vendor's object.
    #[serde(flatten)]
    pub image_cache: ImageCache,
    /// Build, space and attachments.
    #[schema(value_type = Object)]
    pub overview: Overview,
}

/// A list of image caches with their builds, space and attachments.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Overviews {
    /// The image caches, oldest first.
    pub image_caches: Vec<Listed>,
}

/// The host of the daemon.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Host {
    /// Version of the daemon.
    pub version: String,
    /// Space and builds of all tenants together.
    #[schema(value_type = Object)]
    pub host: HostOverview,
}

/// The best cache for a workload.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Matched {
    /// Null if no available cache contains any of the images.
    // Without a function of its own, an absent field would count as null.
    #[serde(rename = "match", deserialize_with = "Option::deserialize")]
    pub found: Option<Match>,
}

/// An image cache and how well it fits.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Match {
    /// The matching image cache.
    pub image_cache: ImageCache,
    /// Number of distinct images of the workload that it contains.
    pub images: usize,
    /// Compressed size of these images, bytes. A shared layer is counted once.
    pub bytes: u64,
    /// The images of the workload that it lacks.
    #[schema(value_type = Vec<String>)]
    pub missing: Vec<ImageReference>,
    /// Digest of the content that its `cache.json` describes.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// Time at which it was sealed.
    #[schema(value_type = String)]
    pub sealed_at: DateTime<Utc>,
}

/// The result of a dry run.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Planned {
    /// The report of `larder plan`.
    #[schema(value_type = Object)]
    pub plan: PlanReport,
}

/// The timeline of a build, and what determined its duration.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct BuildTimeline {
    /// Null if no build has started since the daemon knows the cache.
    #[schema(value_type = Option<Object>)]
    pub timeline: Option<Box<Timeline>>,
    /// Steps that determined the duration, in order of time.
    #[schema(value_type = Vec<Object>)]
    pub critical_path: Vec<Step>,
    /// Time of each stage on the critical path, the longest first.
    pub bound_by: Vec<StageTime>,
}

/// The time that a stage takes on the critical path.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct StageTime {
    /// `resolve`, `network`, `unpack`, `wait`, `commit` or `seal`.
    #[schema(value_type = String)]
    pub stage: Stage,
    /// Duration on the critical path, milliseconds.
    pub elapsed_ms: u64,
}

impl From<Option<Box<Timeline>>> for BuildTimeline {
    fn from(timeline: Option<Box<Timeline>>) -> Self {
        let critical_path = timeline.as_ref().map(|timeline| timeline.critical_path());
        let bound_by = timeline.as_ref().map(|timeline| timeline.bound_by()).unwrap_or_default();
        let bound_by = bound_by.into_iter().map(|(stage, elapsed_ms)| StageTime { stage, elapsed_ms });
        BuildTimeline {
            critical_path: critical_path.unwrap_or_default(),
            bound_by: bound_by.collect(),
            timeline,
        }
    }
}

/// The snapshots of an image cache.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Snapshots {
    /// The snapshots, oldest first.
    #[schema(value_type = Vec<Object>)]
    pub snapshots: Vec<Snapshot>,
}

/// The answer of a probe.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// Always the text `ok`.
    pub status: &'static str,
}

impl From<Option<Found>> for Matched {
    fn from(found: Option<Found>) -> Self {
        let found = found.map(|found| Match {
            image_cache: found.record.into(),
            images: found.score.images,
            bytes: found.score.bytes,
            missing: found.score.missing,
            digest: found.digest,
            sealed_at: found.sealed_at,
        });
        Matched { found }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A `Detailed` as a newer daemon sends it, with fields that this version does not have.
    fn newer() -> Value {
        json!({
            "image_cache": {
                "name": "web", "id": "2f0c9f2a-4c1b-4f0e-8a53-5d1a1d0d9a11", "created_at": "", "images": ["a:1"],
                "image_cache_size": 20, "retention_days": 0, "status": "Available", "new": {"deep": [1]},
                "building_config": {"cluster": "c", "new": null},
            },
            "details": {
                "refreshing": false, "attempts": 1, "images": [], "layers": [], "events": [], "new": "x",
            },
            "overview": {
                "tenant": "a", "ordered_at": "2026-01-01T00:00:00Z", "used_bytes": 0, "reserved_bytes": 1,
                "attached": [], "new": 1,
            },
            "new": 1,
        })
    }

    #[test]
    fn a_client_ignores_new_fields_and_names_missing_ones() {
        let read: Detailed = serde_json::from_value(newer()).unwrap();
        assert_eq!((read.image_cache.name.as_str(), read.details.attempts), ("web", 1));
        for (outer, inner) in [("image_cache", "id"), ("image_cache", "status"), ("details", "refreshing")] {
            let mut lacks = newer();
            lacks[outer].as_object_mut().unwrap().remove(inner);
            let error = serde_json::from_value::<Detailed>(lacks).unwrap_err().to_string();
            assert!(error.contains(&format!("missing field `{inner}`")), "{error}");
        }
    }

    #[test]
    fn no_match_is_null_and_not_absent() {
        let null: Matched = serde_json::from_value(json!({"match": null})).unwrap();
        assert!(null.found.is_none());
        assert_eq!(serde_json::to_value(null).unwrap(), json!({"match": null}));
        let error = serde_json::from_value::<Matched>(json!({})).unwrap_err().to_string();
        assert!(error.contains("missing field `match`"), "{error}");
    }
}
