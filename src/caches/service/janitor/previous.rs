//! Volumes that a refresh has replaced. They are kept while they are in use.

use std::collections::HashMap;

use super::super::records::Survey;
use super::super::volumes_failed;
use super::Janitor;
use crate::caches::logs;
use crate::caches::record::Record;
use crate::caches::store::StoreError;
use crate::caches::volumes::VolumeId;
use larder_model::image_cache::{CacheId, Status};

/// Maximum number of replaced volumes of one cache that are kept because they are in use. Beyond it the
/// oldest are deleted, which bounds the storage of a cache.
pub const MAX_PREVIOUS: usize = 2;

impl Janitor {
    /// Removes from `unneeded` the replaced volumes that are in use.
    pub(super) async fn keep_previous(
        &self,
        unneeded: Vec<VolumeId>,
        records: &Survey,
    ) -> Result<Vec<VolumeId>, StoreError> {
        let (mut replaced, mut unneeded): (Vec<VolumeId>, Vec<VolumeId>) =
            unneeded.into_iter().partition(|volume| is_replaced(volume, records.get(&volume.id)));
        replaced.sort_by_key(|volume| (volume.id, std::cmp::Reverse(volume.generation)));
        let mut kept: HashMap<CacheId, usize> = HashMap::new();
        for volume in replaced {
            let kept = kept.entry(volume.id).or_default();
            let used = match *kept < MAX_PREVIOUS {
                true => self.0.uses.volumes.in_use(volume.clone()).await.map_err(|e| volumes_failed(&e))?,
                false => None,
            };
            match used {
                Some(reason) => {
                    *kept += 1;
                    let VolumeId { tenant, id, generation } = volume;
                    let name = records.get(&id).map(|record| &record.spec.name);
                    logs::span(&tenant, id, name)
                        .in_scope(|| tracing::debug!(generation, "keeping a replaced volume: {reason}"));
                }
                None => unneeded.push(volume),
            }
        }
        Ok(unneeded)
    }
}

/// Returns `true` if a newer volume of the same cache is served in its place. The volume of a failed build is
/// not replaced, and deleting a cache deletes all its volumes.
fn is_replaced(volume: &VolumeId, record: Option<&Record>) -> bool {
    let served = record.filter(|record| record.tenant == volume.tenant && record.status == Status::Available);
    let served = served.and_then(|record| record.content.as_ref());
    served.is_some_and(|content| content.generation > volume.generation)
}
