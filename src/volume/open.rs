//! Opening a volume: ownership, locking, and recovery of earlier state.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};

use super::error::Error;
use super::job::{self, Identity, Record};
use super::journal::{self, Journal, Trust};
use super::lock::lock;
use super::place::LayerDirs;
use super::{Budget, Index, Volume, clear, disk, isolate, layout, seal};
use larder_model::chain::ChainId;
use larder_model::io_error::Context as _;
use larder_model::seal::{CacheManifest, Layer};
use larder_model::size::ByteSize;
use larder_sys::space::{self, FileSystem};
use larder_sys::{Dir, private, remove};

/// Result of opening a volume.
#[derive(Debug)]
pub enum Opened {
    /// The volume is empty or partly filled.
    Filling(Box<Volume>),
    /// The volume belongs to this job and is sealed.
    Sealed(Box<CacheManifest>),
}

/// Enforcement of the size limit of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CapEnforcement {
    /// Larder counts the bytes itself.
    Counted,
    /// The kernel enforces it, because the file system is no larger.
    Kernel,
}

/// Options for opening a volume.
#[derive(Clone, Debug)]
pub struct VolumeOptions<'a> {
    /// Identity of the job.
    pub identity: &'a Identity,
    /// Size limit of the volume.
    pub size: ByteSize,
    /// Enforcement of the size limit.
    pub cap: CapEnforcement,
    /// Policy for trusting leftovers of an earlier run.
    pub trust: Trust,
}

/// Opens the volume at `path` for a job, and creates the directory if missing. A volume of another job is not
/// changed, unless nothing is committed on it. Then it becomes a volume of this job.
///
/// # Errors
/// [`Error::OtherJob`], [`Error::Foreign`], [`Error::Locked`], [`Error::IsDisk`], and those of the file
/// system.
pub fn open(path: &Path, opening: &VolumeOptions<'_>) -> Result<Opened, Error> {
    let identity = opening.identity;
    let shown = path.display().to_string();
    private::create_dir(path).context("creating the volume", &shown)?;
    let root = Dir::open(path).context("opening the volume", &shown)?;
    if root.try_stat(disk::IMAGE).context("examining", &shown)?.is_some() {
        return Err(Error::IsDisk { path: shown });
    }
    if let Some(sealed) = sealed(&root, identity, &shown)? {
        return Ok(Opened::Sealed(sealed));
    }
    let is_new = refuse_foreign(&root, &shown)?;
    if is_new && opening.cap == CapEnforcement::Counted {
        // Images contain setuid programs and devices. Other users of the host must not reach them.
        match isolate(&root) {
            // Only the owner can do that. A directory of another user keeps its mode.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
            done => done.context("making the volume private", &shown)?,
        }
    }
    let larder = root.ensure_dir(layout::LARDER, 0o700).context("creating", ".larder")?;
    let lock = lock(&larder).context("locking", &shown)?;
    let lock = lock.ok_or_else(|| Error::Locked { path: shown.clone() })?;
    // The previous holder of the lock may have sealed the volume since the first check.
    if let Some(sealed) = sealed(&root, identity, &shown)? {
        return Ok(Opened::Sealed(sealed));
    }
    // Readers cannot create this file.
    larder.append_file(layout::USE, 0o600).context("creating", ".larder/use")?;
    claim(&root, &larder, opening, &shown)?;
    let place = LayerDirs::open(&root, identity.layer_format)?;

    // Remove the staging directory first, because the journal may have no space otherwise.
    remove::tree(&larder, layout::STAGING).context("removing", "staging")?;
    let (journal, trusted) = Journal::open(&larder, opening.trust)?;
    let mut committed: HashMap<ChainId, Layer> = HashMap::new();
    let mut unsynced = Vec::new();
    for layer in trusted.layers {
        if !trusted.synced.contains(&layer.chain_id) {
            unsynced.push(layer.chain_id.clone());
        }
        committed.insert(layer.chain_id.clone(), layer);
    }
    place.sweep(committed.values())?;

    let file_system = FileSystem::of(&root).context("examining the file system of", &shown)?;
    let used = space::occupied(&root).context("measuring", &shown)?;
    let cap = opening.size.0;
    let budget = Arc::new(match opening.cap {
        CapEnforcement::Counted => Budget::new(cap, used, file_system),
        CapEnforcement::Kernel => {
            let root = root.try_clone().context("opening", &shown)?;
            Budget::held_by_kernel(cap, used, file_system, root)
        }
    });
    let (journal, index) = (Mutex::new(journal), RwLock::new(Index { committed, unsynced }));
    let staged = AtomicU64::new(0);
    let path = path.to_owned();
    Ok(Opened::Filling(Box::new(Volume {
        path,
        root,
        larder,
        place,
        budget,
        journal,
        index,
        staged,
        _lock: lock,
    })))
}

/// Reads the seal, if there is one. It must belong to this job.
fn sealed(root: &Dir, identity: &Identity, path: &str) -> Result<Option<Box<CacheManifest>>, Error> {
    if root.try_stat(layout::CACHE).context("examining", "cache.json")?.is_none() {
        return Ok(None);
    }
    let sealed = seal::read_from(root, path)?;
    if sealed.content.job == identity.digest() {
        return Ok(Some(Box::new(sealed)));
    }
    // A copied volume can lack the record. Then only its images are known.
    let record = root.open_dir(layout::LARDER).ok().and_then(|larder| job::read(&larder).ok()?);
    let difference = match record {
        Some(record) if record.identity != *identity => record.identity.difference(identity),
        _ => {
            let images = sealed.content.images.iter().map(|image| image.reference.as_str());
            format!("images: {}", images.collect::<Vec<_>>().join(", "))
        }
    };
    Err(Error::OtherJob { path: path.to_owned(), difference })
}

/// Records the job of an unsealed volume. A volume of another job is refused if it has layers, and cleared
/// otherwise.
fn claim(root: &Dir, larder: &Dir, opening: &VolumeOptions<'_>, path: &str) -> Result<(), Error> {
    let identity = opening.identity;
    match job::read(larder)? {
        Some(record) if record.identity == *identity => return Ok(()),
        Some(record) if journal::has_layers(larder, opening.trust)? => {
            let difference = record.identity.difference(identity);
            return Err(Error::OtherJob { path: path.to_owned(), difference });
        }
        Some(_) => clear::clear(root, larder)?,
        None => {}
    }
    job::write(larder, &Record { identity: identity.clone(), resolved: Vec::new() })
}

/// Refuses a directory without `.larder` that is not empty, except for files of mkfs. Returns whether the
/// volume is new.
fn refuse_foreign(root: &Dir, path: &str) -> Result<bool, Error> {
    if root.try_stat(layout::LARDER).context("examining", ".larder")?.is_some_and(|stat| stat.is_dir()) {
        return Ok(false);
    }
    let names = root.names().context("listing", path)?;
    match names.into_iter().find(|name| name != layout::LOST_AND_FOUND) {
        Some(name) => {
            let name = String::from_utf8_lossy(&name).into_owned();
            Err(Error::Foreign { path: path.to_owned(), name })
        }
        None => Ok(true),
    }
}
