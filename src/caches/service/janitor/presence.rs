//! Volumes that are missing, and volumes that are present again. A snapshot of a cluster can be missing for a
//! short time, for example while its controller restarts.

use chrono::{DateTime, Utc};

use super::super::StartError;
use super::{Janitor, Uses};
use crate::caches::logs;
use crate::caches::record::Record;
use crate::caches::store::StoreError;
use crate::caches::volumes::VolumeId;
use larder_model::image_cache::Status;

/// Message of a cache whose volume is missing.
const MISSING: &str = "the volume of this image cache is missing: the cache becomes Available when the volume is present \
                       again; otherwise, delete the cache and order it again";

impl Janitor {
    /// Makes an Available cache Unavailable if its volume is missing. Returns `true` if it is present.
    pub(in crate::caches::service) async fn check_present(
        &self,
        record: &Record,
        now: DateTime<Utc>,
    ) -> Result<bool, StartError> {
        let Some(volume) = served(record).filter(|_| record.status == Status::Available) else {
            return Ok(true);
        };
        if self.0.uses.volumes.is_sealed(volume.clone()).await? {
            return Ok(true);
        }
        logs::of(record).in_scope(|| tracing::error!("the volume of this cache is missing"));
        let hide = |record: &mut Record| {
            let unchanged = record.status == Status::Available && served(record).as_ref() == Some(&volume);
            if unchanged {
                record.make_unavailable(now, MISSING);
            }
            unchanged
        };
        self.0.uses.records.change(record.id, hide).await?;
        Ok(false)
    }

    /// Makes caches Available again whose volume is no longer missing.
    pub(in crate::caches::service) async fn check_missing(&self) -> Result<(), StoreError> {
        let Uses { records, volumes, .. } = &self.0.uses;
        let now = self.now();
        for record in records.survey().await?.values() {
            let Some(volume) = served(record).filter(|_| is_missing(record, now)) else { continue };
            match volumes.is_sealed(volume.clone()).await {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    logs::of(record)
                        .in_scope(|| tracing::warn!(%error, "cannot check whether the volume is present"));
                    continue;
                }
            }
            let show = |record: &mut Record| {
                let unchanged = is_missing(record, now) && served(record).as_ref() == Some(&volume);
                if unchanged {
                    record.make_available_again(now);
                }
                unchanged
            };
            records.change(record.id, show).await?;
            logs::of(record).in_scope(|| tracing::info!("the volume is present again"));
        }
        Ok(())
    }
}

/// Returns `true` if the cache is Unavailable only because its volume was missing.
fn is_missing(record: &Record, now: DateTime<Utc>) -> bool {
    let missing = record.status == Status::Unavailable && record.message.as_deref() == Some(MISSING);
    missing && !record.is_expired(now)
}

/// Returns the volume that is served.
fn served(record: &Record) -> Option<VolumeId> {
    let generation = record.content.as_ref()?.generation;
    Some(VolumeId { tenant: record.tenant.clone(), id: record.id, generation })
}
