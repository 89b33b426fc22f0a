//! Volumes on this host: which there are, and how they go. Blocking.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, TryLockError};

use super::attachments::{AttachmentError, Attachments};
use super::imports;
use super::layout::{self, Layout};
use super::runner::child::clear_work;
use crate::build::share;
use crate::model::class::Class;
use crate::model::image_cache::{CacheId, TenantName};
use crate::sys::lock::Lock;
use crate::sys::mounts::Mounts;
use crate::sys::{Dir, remove, space};
use crate::volume::{self, lease::Lease};

/// The state directory, held by this process alone.
#[derive(Debug)]
pub struct Volumes {
    layout: Layout,
    /// Held while the trash is emptied: two at once would each trip over what the other has just removed.
    emptying: Mutex<()>,
    /// Whether somebody wants it emptied; whoever holds the lock looks once more.
    to_empty: AtomicBool,
    _lock: Lock,
}

/// The state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another daemon has it.
    #[error(
        "the state directory {0} is in use by another larder: stop it, or give this one a directory of its own"
    )]
    InUse(PathBuf),
    /// The kernel refuses.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A volume cannot be looked at.
    #[error(transparent)]
    Volume(#[from] volume::Error),
    /// Who has volumes attached cannot be told.
    #[error(transparent)]
    Attachments(#[from] AttachmentError),
    /// What builders share cannot be put in order.
    #[error(transparent)]
    Share(#[from] share::Error),
}

impl StateError {
    /// The class that decides exit code and retry.
    pub fn class(&self) -> Class {
        match self {
            StateError::InUse(_) => Class::Conflict,
            StateError::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => Class::Denied,
                io::ErrorKind::StorageFull => Class::NoSpace,
                _ => Class::Internal,
            },
            StateError::Volume(e) => e.class(),
            StateError::Attachments(e) => e.class(),
            StateError::Share(_) => Class::Internal,
        }
    }
}

/// A volume on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnDisk {
    /// Whose it is.
    pub tenant: TenantName,
    /// Of which cache.
    pub id: CacheId,
    /// Its number.
    pub generation: u32,
}

/// What became of a volume that nobody needs any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discarded {
    /// It is gone, or was not there.
    Gone,
    /// Somebody uses it, in the way told; it stays for now.
    InUse(String),
}

impl Volumes {
    /// Makes the state directory where it is absent, and takes it.
    pub fn take(layout: Layout) -> Result<Self, StateError> {
        for dir in [layout.root(), &layout.tenants(), &layout.trash(), &layout.work(), &layout.imports()] {
            make(dir)?;
        }
        let failed = |doing, source| StateError::Io { doing, path: layout.root().to_owned(), source };
        let root = Dir::open(layout.root()).map_err(|e| failed("opening", e))?;
        let lock = Lock::try_exclusive(&root, layout::LOCK.as_bytes()).map_err(|e| failed("locking", e))?;
        let lock = lock.ok_or_else(|| StateError::InUse(layout.root().to_owned()))?;
        // Secrets of builders whose daemon died.
        clear_work(&layout.work()).map_err(|e| failed("clearing work/ in", e))?;
        Ok(Volumes { layout, emptying: Mutex::default(), to_empty: AtomicBool::default(), _lock: lock })
    }

    /// Names of everything.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Whether any volume is there, whoever's.
    pub fn any(&self) -> Result<bool, StateError> {
        Ok(!self.list()?.is_empty())
    }

    /// The size of the file system that holds the volumes, GiB.
    pub fn capacity_gib(&self) -> Result<u64, StateError> {
        let root = self.layout.root();
        let total = Dir::open(root).and_then(|dir| space::total(&dir));
        let failed =
            |source| StateError::Io { doing: "asking for the size of", path: root.to_owned(), source };
        Ok(total.map_err(failed)? >> 30)
    }

    /// Makes the directories that builders of a tenant share.
    pub fn prepare(&self, tenant: &TenantName) -> Result<(), StateError> {
        make(&self.layout.tenant(tenant))?;
        make(&self.layout.volumes(tenant))
    }

    /// All volumes. What is not named like one is left alone.
    pub fn list(&self) -> Result<Vec<OnDisk>, StateError> {
        let mut found = Vec::new();
        for tenant in names(&self.layout.tenants())? {
            let Ok(tenant) = tenant.parse::<TenantName>() else { continue };
            for name in names(&self.layout.volumes(&tenant))? {
                if let Some((id, generation)) = layout::parse_volume(&name) {
                    found.push(OnDisk { tenant: tenant.clone(), id, generation });
                }
            }
        }
        Ok(found)
    }

    /// Whether a volume is there and sealed. What it holds is not looked at.
    pub fn is_sealed(&self, volume: &OnDisk) -> bool {
        fs::symlink_metadata(self.path(volume).join("cache.json")).is_ok_and(|facts| facts.is_file())
    }

    /// Takes a volume out of use: moved aside at once, removed by [`empty_trash`](Volumes::empty_trash). One that is leased,
    /// attached, mounted or below a loop device stays.
    pub fn discard(&self, volume: &OnDisk) -> Result<Discarded, StateError> {
        let path = self.path(volume);
        let failed = |doing, source| StateError::Io { doing, path: path.clone(), source };
        let root = match Dir::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Discarded::Gone),
            other => other.map_err(|e| failed("opening", e))?,
        };
        // A builder that died early left nothing to hold.
        let begun = root.try_stat(volume::layout::LARDER).map_err(|e| failed("examining", e))?.is_some();
        let lease = if begun { Lease::exclusive(&root)? } else { None };
        if begun && lease.is_none() {
            return Ok(Discarded::InUse("it is being read".to_owned()));
        }
        // Under the lease: who attaches takes one, and writes a record before anything is mounted.
        if let Some(how) = self.use_of(volume)? {
            return Ok(Discarded::InUse(how));
        }
        let trash = self.layout.trash().join(format!("{}.{}", volume.id, volume.generation));
        fs::rename(&path, trash).map_err(|e| failed("moving aside", e))?;
        Ok(Discarded::Gone)
    }

    /// How a volume is attached or mounted, if it is. Holds nothing, so that nobody who reads it is in the way of that.
    pub fn use_of(&self, volume: &OnDisk) -> Result<Option<String>, StateError> {
        let path = self.path(volume);
        let failed = |doing, source| StateError::Io { doing, path: path.clone(), source };
        let path = match fs::canonicalize(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| failed("resolving", e))?,
        };
        let attached = Attachments::new(self.layout.attached()).list()?;
        if let Some(record) = attached.iter().find(|record| record.volume == path) {
            return Ok(Some(format!("it is attached at {}", record.at.display())));
        }
        let mounts = Mounts::read().map_err(|e| failed("looking for mounts of", e))?;
        Ok(mounts.use_of(&path).map(|used| used.to_string()))
    }

    /// Caches of which an archive is kept.
    pub fn archives(&self) -> Result<Vec<CacheId>, StateError> {
        let path = self.layout.imports();
        imports::list(&self.layout).map_err(|source| StateError::Io { doing: "listing", path, source })
    }

    /// Removes the archive that was sent for a cache.
    pub fn remove_archive(&self, id: &CacheId) -> Result<(), StateError> {
        let removed = imports::remove(&self.layout, id);
        removed.map_err(|source| StateError::Io { doing: "removing", path: self.layout.import(id), source })
    }

    /// Its directory.
    pub fn path(&self, volume: &OnDisk) -> PathBuf {
        self.layout.volume(&volume.tenant, &volume.id, volume.generation)
    }

    /// Whether something was moved aside that is still there.
    pub fn has_trash(&self) -> Result<bool, StateError> {
        Ok(!names(&self.layout.trash())?.is_empty())
    }

    /// Removes what was moved aside, and what builders told each other of it. Where another thread is at it, that one sees to
    /// it and this one returns at once: a large volume takes minutes, and threads that wait are not there for others.
    pub fn empty_trash(&self) -> Result<(), StateError> {
        self.to_empty.store(true, Ordering::SeqCst);
        while self.to_empty.load(Ordering::SeqCst) {
            let _one_at_a_time = match self.emptying.try_lock() {
                Ok(lock) => lock,
                Err(TryLockError::Poisoned(lock)) => lock.into_inner(),
                Err(TryLockError::WouldBlock) => return Ok(()),
            };
            self.to_empty.store(false, Ordering::SeqCst);
            self.empty_trash_now()?;
        }
        Ok(())
    }

    fn empty_trash_now(&self) -> Result<(), StateError> {
        let path = self.layout.trash();
        let failed = |source| StateError::Io { doing: "emptying", path: path.clone(), source };
        let trash = Dir::open(&path).map_err(failed)?;
        for name in trash.names().map_err(failed)? {
            remove::tree(&trash, &name).map_err(failed)?;
        }
        for tenant in names(&self.layout.tenants())? {
            if let Ok(tenant) = tenant.parse::<TenantName>() {
                share::sweep(&self.layout.tenant(&tenant))?;
            }
        }
        Ok(())
    }
}

fn make(dir: &Path) -> Result<(), StateError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| StateError::Io { doing: "creating", path: dir.to_owned(), source })
}

/// Names in a directory; none where it is absent.
fn names(dir: &Path) -> Result<Vec<String>, StateError> {
    let failed = |source| StateError::Io { doing: "listing", path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        // All names of ours are ASCII.
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;

    #[test]
    fn the_trash_is_emptied_by_several_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = Volumes::take(Layout::new(dir.path().join("state"))).unwrap();
        let trash = volumes.layout().trash();
        for file in (0..50).flat_map(|volume| (0..20).map(move |file| format!("{volume}/d/{file}"))) {
            let path = trash.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..4).map(|_| scope.spawn(|| volumes.empty_trash())).collect();
            for one in all {
                one.join().unwrap().unwrap();
            }
        });
        assert!(fs::read_dir(trash).unwrap().next().is_none());
    }
}
