//! The sealed volumes of a cache: the served one, and older ones that are still in use. Each is a snapshot:
//! it no longer changes, and can be exported or attached as it is.

use super::{Service, volumes_failed};
use crate::caches::error::Error;
use crate::caches::volumes::Snapshot;
use larder_model::image_cache::{CacheId, TenantName};

impl Service {
    /// Lists the snapshots of a cache, oldest first. `with_path` includes the paths on the host, for the
    /// tenant `admin`.
    ///
    /// # Errors
    /// Returns [`Error::NotFound`] if the tenant has no such cache, or an error if the volumes cannot be
    /// read.
    pub async fn snapshots(
        &self,
        tenant: &TenantName,
        id: CacheId,
        with_path: bool,
    ) -> Result<Vec<Snapshot>, Error> {
        let record = self.get(tenant, id).await?;
        let served = record.content.map(|content| (content.generation, content.sealed_at));
        let volumes = &self.0.volumes;
        let all = volumes.list().await.map_err(|e| volumes_failed(&e))?;
        let mut found = Vec::new();
        for volume in all.into_iter().filter(|volume| volume.tenant == *tenant && volume.id == id) {
            found.extend(volumes.look(volume, with_path).await.map_err(|e| volumes_failed(&e))?);
        }
        found.sort_by_key(|snapshot: &Snapshot| snapshot.generation);
        for snapshot in &mut found {
            if let Some((generation, sealed_at)) = served
                && generation == snapshot.generation
            {
                snapshot.served = true;
                snapshot.sealed_at = sealed_at;
            }
        }
        Ok(found)
    }
}
