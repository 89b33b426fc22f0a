//! Taking a volume: whose is it, is anybody else at it, and what of it can be trusted.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::error::{Context, Error};
use super::job::{self, Identity, Record};
use super::journal::{Journal, Trust};
use super::{Budget, State, Volume, disk, layout, seal};
use crate::model::seal::CacheManifest;
use crate::model::size::ByteSize;
use crate::sys::lock::Lock;
use crate::sys::space::{self, FileSystem};
use crate::sys::{Dir, remove};

/// What opening a volume gives.
#[derive(Debug)]
pub enum Opened {
    /// It is to be filled, or to be filled further.
    Filling(Box<Volume>),
    /// It is this job's and sealed.
    Sealed(Box<CacheManifest>),
}

/// Who holds the cap of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cap {
    /// We count.
    Counted,
    /// The kernel: the file system is no larger.
    Kernel,
}

/// How a volume is opened.
#[derive(Clone, Debug)]
pub struct Opening<'a> {
    /// The job.
    pub identity: &'a Identity,
    /// The cap, bytes.
    pub size: ByteSize,
    /// Who holds it.
    pub cap: Cap,
    /// What is believed of what an earlier run left.
    pub trust: Trust,
}

/// Opens the volume at `path` for a job, creating the directory where it is absent. Nothing is changed on a volume that
/// is not this job's.
pub fn open(path: &Path, opening: &Opening<'_>) -> Result<Opened, Error> {
    let identity = opening.identity;
    let shown = path.display().to_string();
    match std::fs::create_dir(path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(e).context("creating the volume", &shown);
        }
        _ => {}
    }
    let root = Dir::open(path).context("opening the volume", &shown)?;
    if root.try_stat(disk::IMAGE).context("examining", &shown)?.is_some() {
        return Err(Error::IsDisk { path: shown });
    }
    if let Some(sealed) = sealed(&root, identity, &shown)? {
        return Ok(Opened::Sealed(sealed));
    }
    refuse_foreign(&root, &shown)?;
    let larder = root.ensure_dir(layout::LARDER, 0o700).context("creating", ".larder")?;
    let lock = Lock::try_exclusive(&larder, layout::LOCK).context("locking", &shown)?;
    let lock = lock.ok_or_else(|| Error::Locked { path: shown.clone() })?;
    // Whoever had the lock before may have sealed the volume since it was looked at.
    if let Some(sealed) = sealed(&root, identity, &shown)? {
        return Ok(Opened::Sealed(sealed));
    }
    // Readers may not create it.
    larder.append_file(layout::USE, 0o600).context("creating", ".larder/use")?;
    match job::read(&larder)? {
        Some(record) if record.identity != *identity => {
            return Err(other_job(&shown, record.identity.images.iter().map(String::as_str)));
        }
        Some(_) => {}
        None => job::write(&larder, &Record { identity: identity.clone(), resolved: Vec::new() })?,
    }
    let directory = |parent: &Dir, name: &[u8]| {
        parent.ensure_dir(name, 0o755).context("creating", &String::from_utf8_lossy(name))
    };
    let overlay = directory(&root, layout::OVERLAY)?;
    let links = directory(&overlay, layout::LINKS)?;
    let layers = directory(&root, layout::LAYERS)?;
    let images = directory(&root, layout::IMAGES)?;
    // Consumers of a read-only mount fail without them, so they are there before anything else is.
    layers.append_file(b"layers.lock", 0o644).context("creating", "layers.lock")?;
    images.append_file(b"images.lock", 0o644).context("creating", "images.lock")?;

    // First of all: on a full disk the journal has no room before.
    remove::tree(&larder, layout::STAGING).context("removing", "staging")?;
    let (journal, trusted) = Journal::open(&larder, opening.trust)?;
    let mut committed = std::collections::HashMap::new();
    let mut unsynced = Vec::new();
    for layer in trusted.layers {
        if !trusted.synced.contains(&layer.chain_id) {
            unsynced.push(layer.chain_id.clone());
        }
        committed.insert(layer.chain_id.clone(), layer);
    }
    sweep(&overlay, &links, &layers, &committed.keys().cloned().collect())?;

    let file_system = FileSystem::of(&root).context("examining the file system of", &shown)?;
    let used = space::occupied(&root).context("measuring", &shown)?;
    let cap = opening.size.0;
    let budget = Arc::new(match opening.cap {
        Cap::Counted => Budget::new(cap, used, file_system),
        Cap::Kernel => {
            let root = root.try_clone().context("opening", &shown)?;
            Budget::held_by_kernel(cap, used, file_system, root)
        }
    });
    let state = Mutex::new(State { journal, committed, unsynced, staged: 0 });
    let path = path.to_owned();
    Ok(Opened::Filling(Box::new(Volume {
        path,
        root,
        larder,
        overlay,
        links,
        layers,
        budget,
        state,
        _lock: lock,
    })))
}

/// The seal, where there is one; it must be this job's.
fn sealed(root: &Dir, identity: &Identity, path: &str) -> Result<Option<Box<CacheManifest>>, Error> {
    if root.try_stat(layout::CACHE).context("examining", "cache.json")?.is_none() {
        return Ok(None);
    }
    let sealed = seal::read_from(root, path)?;
    if sealed.content.job != identity.digest() {
        let images = sealed.content.images.iter().map(|image| image.reference.as_str());
        return Err(other_job(path, images));
    }
    Ok(Some(Box::new(sealed)))
}

fn other_job<'a>(path: &str, images: impl Iterator<Item = &'a str>) -> Error {
    Error::OtherJob { path: path.to_owned(), images: images.collect::<Vec<_>>().join(", ") }
}

/// A directory without `.larder` must be empty, but for what mkfs leaves.
fn refuse_foreign(root: &Dir, path: &str) -> Result<(), Error> {
    if root.try_stat(layout::LARDER).context("examining", ".larder")?.is_some_and(|stat| stat.is_dir()) {
        return Ok(());
    }
    let names = root.names().context("listing", path)?;
    match names.into_iter().find(|name| name != layout::LOST_AND_FOUND) {
        Some(name) => {
            let name = String::from_utf8_lossy(&name).into_owned();
            Err(Error::Foreign { path: path.to_owned(), name })
        }
        None => Ok(()),
    }
}

/// Removes what no line of the journal vouches for.
fn sweep(
    overlay: &Dir,
    links: &Dir,
    layers: &Dir,
    kept: &HashSet<crate::model::chain::ChainId>,
) -> Result<(), Error> {
    let directories: HashSet<&[u8]> =
        kept.iter().map(|id| id.hex().as_bytes()).chain([layout::LINKS]).collect();
    let short: HashSet<Vec<u8>> = kept.iter().map(|id| id.link().into_bytes()).collect();
    let splits: HashSet<Vec<u8>> = kept.iter().map(|id| layout::tar_split(id).into_bytes()).collect();
    keep(overlay, |name| directories.contains(name))?;
    keep(links, |name| short.contains(name))?;
    keep(layers, |name| name == b"layers.lock" || splits.contains(name))
}

fn keep(dir: &Dir, wanted: impl Fn(&[u8]) -> bool) -> Result<(), Error> {
    for name in dir.names().context("listing", "a directory of the volume")? {
        if !wanted(&name) {
            remove::tree(dir, &name).context("removing", &String::from_utf8_lossy(&name))?;
        }
    }
    Ok(())
}
