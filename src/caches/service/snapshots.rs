//! The sealed volumes of a cache: the one that is served, and older ones that somebody still uses. Each is a snapshot:
//! nothing on it changes any more, and it can be exported or attached as it is.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Service;
use crate::caches::error::Error;
use crate::caches::volumes::{OnDisk, StateError, Volumes};
use crate::config::tenant::ADMIN;
use crate::model::digest::Digest;
use crate::model::image_cache::{CacheId, TenantName};
use crate::model::job::VolumeKind;

/// A sealed volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its number: each refresh makes a new one.
    pub generation: u32,
    /// Whether it is the one that is served.
    pub served: bool,
    /// Whether somebody has it attached or mounted, or a loop device stands on it.
    pub in_use: bool,
    /// Digest of what its `cache.json` says.
    pub digest: Digest,
    /// When it was sealed.
    pub sealed_at: DateTime<Utc>,
    /// `disk`: an ext4 image, `disk.img`; `directory`: a tree on a file system of the host.
    pub kind: VolumeKind,
    /// Size of the layers on it, bytes, as their tars have it.
    pub size: u64,
    /// Size of the disk image, bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub image_size: Option<u64>,
    /// What the disk image occupies on the host, bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub image_allocated: Option<u64>,
    /// Where it is on the host. For the tenant `admin` only.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub path: Option<PathBuf>,
}

impl Service {
    /// The snapshots of a cache, oldest first.
    pub async fn snapshots(&self, tenant: &TenantName, id: CacheId) -> Result<Vec<Snapshot>, Error> {
        let record = self.get(tenant, id).await?;
        let served = record.content.map(|content| (content.generation, content.sealed_at));
        let tell_path = tenant.as_str() == ADMIN;
        let owner = tenant.clone();
        let found = self.on_disk(move |volumes| {
            let of_it =
                volumes.list()?.into_iter().filter(|volume| volume.tenant == owner && volume.id == id);
            let mut found: Vec<Snapshot> = of_it
                .filter_map(|volume| look(volumes, &volume, tell_path).transpose())
                .collect::<Result<_, _>>()?;
            found.sort_by_key(|snapshot| snapshot.generation);
            Ok(found)
        });
        let mut found = found.await?;
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

/// A volume, if it is sealed and its seal can be read.
fn look(volumes: &Volumes, volume: &OnDisk, tell_path: bool) -> Result<Option<Snapshot>, StateError> {
    let path = volumes.path(volume);
    // It may go while it is looked at.
    let Ok(facts) = fs::symlink_metadata(path.join("cache.json")) else { return Ok(None) };
    let sealed = match crate::volume::seal::read(&path) {
        Ok(sealed) => sealed,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a snapshot cannot be told");
            return Ok(None);
        }
    };
    let image = fs::symlink_metadata(path.join("disk.img")).ok().filter(fs::Metadata::is_file);
    Ok(Some(Snapshot {
        generation: volume.generation,
        served: false,
        in_use: volumes.use_of(volume)?.is_some(),
        digest: sealed.digest,
        sealed_at: facts.modified().map(DateTime::from).unwrap_or_default(),
        kind: if image.is_some() { VolumeKind::Disk } else { VolumeKind::Directory },
        size: sealed.content.totals.size,
        image_size: image.as_ref().map(fs::Metadata::len),
        image_allocated: image.as_ref().map(|image| image.blocks() * 512),
        path: tell_path.then_some(path),
    }))
}
