//! The sealed volumes of a node.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};

use super::Place;
use crate::caches::attachments::{AttachmentError, Attachments};
use crate::caches::layout::{self, Layout};
use crate::volume::disk;
use crate::volume::{self, seal};
use larder_model::class::Class;
use larder_model::image_cache::{CacheId, TenantName};
use larder_model::seal::CacheManifest;

/// Where to look.
#[derive(Debug)]
pub struct Sources<'a> {
    /// State directory of this host, for what is attached and what its daemon keeps.
    pub state: &'a Layout,
    /// Volumes that were named: directories, image files, block devices.
    pub named: &'a [PathBuf],
}

/// A sealed volume.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Where it is.
    pub place: Place,
    /// Directory, image file or block device.
    pub path: PathBuf,
    /// What its seal says.
    pub sealed: CacheManifest,
    /// The time of its `cache.json`.
    pub sealed_at: DateTime<Utc>,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Volumes {
    /// Attached ones, then named ones, then those of the daemon; each once.
    pub volumes: Vec<Volume>,
    /// What could not be looked at, though it may be there: for people.
    pub passed_over: Vec<String>,
}

/// A volume that was named cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be mounted.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// It has no seal that can be read.
    #[error(transparent)]
    Volume(#[from] volume::Error),
    /// The file system refuses.
    #[error("examining {}: {source}", path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    /// The class, from which the exit code follows.
    pub fn class(&self) -> Class {
        match self {
            Error::Disk(e) => e.class(),
            Error::Volume(e) => e.class(),
            Error::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => Class::NotFound,
                io::ErrorKind::PermissionDenied => Class::Denied,
                _ => Class::Internal,
            },
        }
    }
}

/// Looks for volumes. Nothing is proven but that a seal is of one piece: who attaches a volume proves it.
///
/// # Errors
/// A volume that was named cannot be looked at. Others are passed over: those that this process may not see, without a word.
pub fn collect(sources: &Sources<'_>) -> Result<Volumes, Error> {
    let mut found = Volumes::default();
    let mut seen = HashSet::new();
    attached(sources.state, &mut found);
    found.volumes.retain(|volume| seen.insert(volume.path.clone()));
    for path in sources.named {
        let path = path.canonicalize().map_err(|source| Error::Io { path: path.clone(), source })?;
        if seen.insert(path.clone()) {
            let (sealed, sealed_at) = read(&path)?;
            found.volumes.push(Volume { place: Place::Named, path, sealed, sealed_at });
        }
    }
    for (tenant, id, path) in of_daemon(sources.state) {
        // Attachment records name volumes without symbolic links.
        let Ok(path) = path.canonicalize() else { continue };
        if !seen.insert(path.clone()) {
            continue;
        }
        match read(&path) {
            Ok((sealed, sealed_at)) => {
                found.volumes.push(Volume { place: Place::State { tenant, id }, path, sealed, sealed_at });
            }
            // It went while it was looked for.
            Err(error) if error.class() == Class::NotFound => {}
            Err(error) => found.passed_over.push(error.to_string()),
        }
    }
    Ok(found)
}

/// Attached ones, of which the mount is read, or the volume where that is not there now.
fn attached(state: &Layout, found: &mut Volumes) {
    let records = match Attachments::new(state.attached()).list() {
        Ok(records) => records,
        Err(AttachmentError::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => return,
        Err(error) => return found.passed_over.push(error.to_string()),
    };
    for record in records {
        let mounted = record.at.join("cache.json").exists();
        match read(if mounted { &record.at } else { &record.volume }) {
            Ok((sealed, _)) if record.cache.as_ref().is_some_and(|cache| *cache != sealed.digest) => {
                let at = record.at.display();
                found
                    .passed_over
                    .push(format!("attached at {at}: it is not what was attached, but {}", sealed.digest));
            }
            Ok((sealed, sealed_at)) => {
                let place = Place::Attached { at: record.at };
                found.volumes.push(Volume { place, path: record.volume, sealed, sealed_at });
            }
            Err(error) => found.passed_over.push(format!("attached at {}: {error}", record.at.display())),
        }
    }
}

/// Of each cache the volume that was sealed last: one that a refresh replaced goes as soon as nobody uses it.
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

/// Names in a directory; none in one that is not there, or not for this user.
fn names(dir: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

/// The seal, and when it was written. A directory has it, or a copy of it beside its disk; other disks are mounted for it.
fn read(path: &Path) -> Result<(CacheManifest, DateTime<Utc>), Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    if fs::metadata(path).map_err(io)?.is_dir() {
        return sealed(path);
    }
    sealed(disk::enter(path)?.path())
}

fn sealed(dir: &Path) -> Result<(CacheManifest, DateTime<Utc>), Error> {
    let sealed = seal::read(dir)?;
    let file = dir.join("cache.json");
    let written = fs::symlink_metadata(&file).and_then(|facts| facts.modified());
    let written = written.map_err(|source| Error::Io { path: file, source })?;
    Ok((sealed, DateTime::from(written)))
}
