//! Bodies of `/larder/v1/`.

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use super::ImageCache;
use crate::caches::matching::Found;
use crate::caches::service::Details;
use crate::caches::volumes::Snapshot;
use larder_model::digest::Digest;
use larder_model::plan_report::PlanReport;

/// Everything that is known of an image cache.
#[derive(Debug, Serialize, ToSchema)]
pub struct Detailed {
    /// The vendor's object.
    pub image_cache: ImageCache,
    /// Digests, and per image and layer: sizes, state, bytes, time, where it came from.
    #[schema(value_type = Object)]
    pub details: Details,
}

/// The best cache for a workload.
#[derive(Debug, Serialize, ToSchema)]
pub struct Matched {
    /// Null where no Available cache holds any of the images.
    #[serde(rename = "match")]
    pub found: Option<Match>,
}

/// An image cache and how well it fits.
#[derive(Debug, Serialize, ToSchema)]
pub struct Match {
    /// The image cache.
    pub image_cache: ImageCache,
    /// Distinct images of the workload that it holds.
    pub images: usize,
    /// Compressed bytes of these, a layer that several share counted once.
    pub bytes: u64,
    /// The other images of the workload.
    pub missing: Vec<String>,
    /// Digest of what its `cache.json` says.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// When it was sealed.
    #[schema(value_type = String)]
    pub sealed_at: DateTime<Utc>,
}

/// What a create would fetch, and whether it fits.
#[derive(Debug, Serialize, ToSchema)]
pub struct Planned {
    /// The report of `larder plan`.
    #[schema(value_type = Object)]
    pub plan: PlanReport,
}

/// The snapshots of an image cache.
#[derive(Debug, Serialize, ToSchema)]
pub struct Snapshots {
    /// Oldest first.
    #[schema(value_type = Vec<Object>)]
    pub snapshots: Vec<Snapshot>,
}

/// The answer of a probe.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// `ok`.
    pub status: &'static str,
}

impl From<Option<Found>> for Matched {
    fn from(found: Option<Found>) -> Self {
        let found = found.map(|found| Match {
            image_cache: found.record.into(),
            images: found.score.images,
            bytes: found.score.bytes,
            missing: found.score.missing.into_iter().map(String::from).collect(),
            digest: found.digest,
            sealed_at: found.sealed_at,
        });
        Matched { found }
    }
}
