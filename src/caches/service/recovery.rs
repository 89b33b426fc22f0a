//! Recovery at start: resumes builds, finishes deletions, and handles volumes and records without each other.

use super::{Service, StartError};
use crate::caches::volumes::VolumeId;
use larder_model::image_cache::Status;

impl Service {
    /// Cleans up after an earlier daemon before new work starts.
    pub(super) async fn recover(&self) -> Result<(), StartError> {
        let all = self.records().await?;
        let mut records: Vec<_> = all.values().collect();
        records.sort_by_key(|record| record.created_at);
        let now = self.now();
        let (mut resumed, mut deleting) = (0, 0);
        for record in records {
            let served = record.content.as_ref().map(|content| VolumeId {
                tenant: record.tenant.clone(),
                id: record.id,
                generation: content.generation,
            });
            if let (Some(volume), Status::Available) = (served, record.status) {
                let there = self.0.volumes.is_sealed(volume).await?;
                if !there {
                    tracing::error!(cache = %record.id, tenant = %record.tenant, "the volume of this cache is missing");
                    self.change(record.id, |record| {
                        let message =
                            "the volume of this image cache is missing: delete the cache and order it again";
                        record.message = Some(message.to_owned());
                        record.work = None;
                        record.turn(Status::Unavailable, now, message);
                        true
                    })
                    .await?;
                    continue;
                }
            }
            match record.status {
                Status::Deleting => deleting += 1,
                _ if record.work.is_some() => {
                    resumed += 1;
                    // A stop does not count as a failed attempt.
                    self.change(record.id, |record| {
                        let attempts = record.work.as_mut().map(|work| std::mem::take(&mut work.attempts));
                        attempts.is_some_and(|attempts| attempts > 0)
                    })
                    .await?;
                    self.enqueue(&record.tenant, record.id);
                }
                _ => {}
            }
        }
        if resumed + deleting > 0 {
            tracing::info!(builds = resumed, deletions = deleting, "resuming unfinished work");
        }
        self.sweep().await?;
        Ok(())
    }
}
