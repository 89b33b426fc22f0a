//! Finds the sealed volumes of a node.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::{fs, io};

use chrono::{DateTime, Utc};

use super::Location;
use crate::caches::attachments::{AttachmentError, Attachments};
use crate::caches::layout::{self, Layout};
use crate::volume::{self, disk, seal};
use larder_model::class::Class;
use larder_model::image_cache::{CacheId, TenantName};
use larder_model::io_error::{Context as _, FileRole, IoError};
use larder_model::seal::CacheManifest;

/// The sources of volumes.
#[derive(Debug)]
pub struct Sources<'a> {
    /// State directory of this host, with the attachment records and the volumes of the local daemon.
    pub state: &'a Layout,
    /// Volumes that the user specified: directories, image files, block devices.
    pub named: &'a [PathBuf],
}

/// A sealed volume and its location.
#[derive(Clone, Debug)]
pub struct Volume {
    /// The location of the volume.
    pub place: Location,
    /// Path of the directory, image file or block device.
    pub path: PathBuf,
    /// The manifest in its `cache.json`.
    pub sealed: CacheManifest,
    /// The modification time of its `cache.json`.
    pub sealed_at: DateTime<Utc>,
}

/// The volumes that were found.
#[derive(Debug, Default)]
pub struct Volumes {
    /// Attached volumes, then specified ones, then those of the daemon. Each is listed once.
    pub volumes: Vec<Volume>,
    /// Messages about volumes that might exist but could not be read.
    pub skipped: Vec<String>,
}

/// A volume that the user specified cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk cannot be mounted.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// The volume has no valid seal.
    #[error(transparent)]
    Volume(#[from] volume::Error),
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl Error {
    /// Returns the error class, which determines the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Disk(e) => e.class(),
            Error::Volume(e) => e.class(),
            Error::Io(error) => error.class(FileRole::Named),
        }
    }
}

/// Finds the volumes. Only checks that each seal is consistent; attaching a volume verifies it.
///
/// # Errors
/// A volume that the user specified cannot be read. Other unreadable volumes are skipped, without a message
/// if this process lacks the permission.
pub fn collect(sources: &Sources<'_>) -> Result<Volumes, Error> {
    let mut found = Volumes::default();
    let mut seen = HashSet::new();
    attached(sources.state, &mut found);
    found.volumes.retain(|volume| seen.insert(volume.path.clone()));
    for path in sources.named {
        let path = path.canonicalize().context("examining", path.display())?;
        if seen.insert(path.clone()) {
            let (sealed, sealed_at) = read(&path)?;
            found.volumes.push(Volume { place: Location::Named, path, sealed, sealed_at });
        }
    }
    for (tenant, id, path) in of_daemon(sources.state) {
        // Attachment records contain paths without symbolic links.
        let Ok(path) = path.canonicalize() else { continue };
        if !seen.insert(path.clone()) {
            continue;
        }
        match read(&path) {
            Ok((sealed, sealed_at)) => {
                found.volumes.push(Volume { place: Location::State { tenant, id }, path, sealed, sealed_at });
            }
            // The volume was removed in the meantime.
            Err(error) if error.class() == Class::NotFound => {}
            Err(error) => found.skipped.push(error.to_string()),
        }
    }
    Ok(found)
}

/// Adds the attached volumes. Reads the mount, or the volume itself if it is not mounted now.
fn attached(state: &Layout, found: &mut Volumes) {
    let records = match Attachments::new(state.attached()).list() {
        Ok(records) => records,
        Err(AttachmentError::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => return,
        Err(error) => return found.skipped.push(error.to_string()),
    };
    for record in records {
        let mounted = record.at.join("cache.json").exists();
        match read(if mounted { &record.at } else { &record.volume }) {
            Ok((sealed, _)) if record.cache.as_ref().is_some_and(|cache| *cache != sealed.digest) => {
                let at = record.at.display();
                found.skipped.push(format!(
                    "attached at {at}: it is not what was attached, but the cache {}",
                    sealed.digest
                ));
            }
            Ok((sealed, sealed_at)) => {
                let place = Location::Attached { at: record.at };
                found.volumes.push(Volume { place, path: record.volume, sealed, sealed_at });
            }
            Err(error) => found.skipped.push(format!("attached at {}: {error}", record.at.display())),
        }
    }
}

/// Returns the last sealed volume of each cache. A refresh replaces older ones, which are removed once they
/// are unused.
fn of_daemon(state: &Layout) -> impl Iterator<Item = (TenantName, CacheId, PathBuf)> {
    let mut newest: BTreeMap<(String, CacheId), (u32, TenantName, PathBuf)> = BTreeMap::new();
    for tenant in names(&state.tenants()).filter_map(|name| name.parse::<TenantName>().ok()) {
        for name in names(&state.volumes(&tenant)) {
            let Some((id, generation)) = layout::parse_volume(&name) else { continue };
            let path = state.volume(&tenant, &id, generation);
            let key = (tenant.to_string(), id);
            if newest.get(&key).is_none_or(|(had, ..)| *had < generation) && path.join("cache.json").exists()
            {
                newest.insert(key, (generation, tenant.clone(), path));
            }
        }
    }
    newest.into_iter().map(|((_, id), (_, tenant, path))| (tenant, id, path))
}

/// Lists the names in a directory. Returns nothing if it is missing or unreadable.
fn names(dir: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

/// Reads the seal and its time. A directory contains the seal, or a copy of it next to its disk. Other disks
/// are mounted to read it.
fn read(path: &Path) -> Result<(CacheManifest, DateTime<Utc>), Error> {
    if fs::metadata(path).context("examining", path.display())?.is_dir() {
        return sealed(path);
    }
    sealed(disk::enter(path)?.path())
}

fn sealed(dir: &Path) -> Result<(CacheManifest, DateTime<Utc>), Error> {
    let sealed = seal::read(dir)?;
    let file = dir.join("cache.json");
    let written = fs::symlink_metadata(&file).and_then(|facts| facts.modified());
    let written = written.context("examining", file.display())?;
    Ok((sealed, DateTime::from(written)))
}
