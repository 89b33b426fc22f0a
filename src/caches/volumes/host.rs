//! Volumes on this host: directories below the state directory.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;

use super::{Discarded, Places, Sealed, StateError, VolumeId, Volumes};
use crate::build::share;
use crate::caches::layout::{self, Layout};
use crate::caches::runner::child::clear_work;
use crate::model::image_cache::TenantName;
use crate::sys::lock::Lock;
use crate::sys::{Dir, remove, space};
use crate::volume::{self, lease::Lease};

/// The state directory, held by this process alone until the last handle is gone.
#[derive(Clone, Debug)]
pub struct HostVolumes(Arc<Disk>);

/// What is done on the disk; blocking.
#[derive(Debug)]
struct Disk {
    layout: Layout,
    /// Held while the trash is emptied: two at once would each trip over what the other has just removed.
    emptying: Mutex<()>,
    _lock: Lock,
}

impl HostVolumes {
    /// Makes the state directory where it is absent, and takes it. Blocking.
    pub fn take(layout: Layout) -> Result<Self, StateError> {
        for dir in [layout.root(), &layout.tenants(), &layout.trash(), &layout.work()] {
            make(dir)?;
        }
        let failed = |doing, source| StateError::Io { doing, path: layout.root().to_owned(), source };
        let root = Dir::open(layout.root()).map_err(|e| failed("opening", e))?;
        let lock = Lock::try_exclusive(&root, layout::LOCK.as_bytes()).map_err(|e| failed("locking", e))?;
        let lock = lock.ok_or_else(|| StateError::InUse(layout.root().to_owned()))?;
        // Secrets of builders whose daemon died.
        clear_work(&layout.work()).map_err(|e| failed("clearing work/ in", e))?;
        Ok(HostVolumes(Arc::new(Disk { layout, emptying: Mutex::default(), _lock: lock })))
    }

    /// Names of everything.
    pub fn layout(&self) -> &Layout {
        &self.0.layout
    }

    /// Whether any volume is there, whoever's. Blocking.
    pub fn any(&self) -> Result<bool, StateError> {
        Ok(!self.0.list()?.is_empty())
    }

    /// Runs something that waits for the disk off the runtime's threads.
    fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Disk) -> Result<T, StateError> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, StateError>> {
        let disk = Arc::clone(&self.0);
        Box::pin(async move {
            let done = tokio::task::spawn_blocking(move || work(&disk)).await;
            done.unwrap_or_else(|e| Err(StateError::Broken(e.to_string())))
        })
    }
}

impl Volumes for HostVolumes {
    fn capacity_gib(&self) -> Result<u64, StateError> {
        self.0.capacity_gib()
    }

    fn places(&self, volume: VolumeId) -> BoxFuture<'_, Result<Places, StateError>> {
        self.on_disk(move |disk| {
            disk.prepare(&volume.tenant)?;
            let layout = &disk.layout;
            Ok(Places { volume: disk.path(&volume), share: layout.tenant(&volume.tenant) })
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<VolumeId>, StateError>> {
        self.on_disk(Disk::list)
    }

    fn is_sealed(&self, volume: VolumeId) -> BoxFuture<'_, Result<bool, StateError>> {
        self.on_disk(move |disk| Ok(disk.is_sealed(&volume)))
    }

    fn sealed(&self, volume: VolumeId) -> BoxFuture<'_, Result<Sealed, StateError>> {
        self.on_disk(move |disk| {
            let manifest = crate::volume::seal::read(&disk.path(&volume))?;
            Ok(Sealed { content: Some(manifest.content), snapshot: None })
        })
    }

    fn discard(&self, volume: VolumeId) -> BoxFuture<'_, Result<Discarded, StateError>> {
        self.on_disk(move |disk| disk.discard(&volume))
    }

    fn tidy(&self) -> BoxFuture<'_, Result<(), StateError>> {
        self.on_disk(Disk::empty_trash)
    }
}

impl Disk {
    fn path(&self, volume: &VolumeId) -> PathBuf {
        self.layout.volume(&volume.tenant, &volume.id, volume.generation)
    }

    /// The size of the file system that holds the volumes, GiB.
    fn capacity_gib(&self) -> Result<u64, StateError> {
        let root = self.layout.root();
        let total = Dir::open(root).and_then(|dir| space::total(&dir));
        let failed =
            |source| StateError::Io { doing: "asking for the size of", path: root.to_owned(), source };
        Ok(total.map_err(failed)? >> 30)
    }

    /// Makes the directories that builders of a tenant share.
    fn prepare(&self, tenant: &TenantName) -> Result<(), StateError> {
        make(&self.layout.tenant(tenant))?;
        make(&self.layout.volumes(tenant))
    }

    /// All volumes. What is not named like one is left alone.
    fn list(&self) -> Result<Vec<VolumeId>, StateError> {
        let mut found = Vec::new();
        for tenant in names(&self.layout.tenants())? {
            let Ok(tenant) = tenant.parse::<TenantName>() else { continue };
            for name in names(&self.layout.volumes(&tenant))? {
                if let Some((id, generation)) = layout::parse_volume(&name) {
                    found.push(VolumeId { tenant: tenant.clone(), id, generation });
                }
            }
        }
        Ok(found)
    }

    /// Whether a volume is there and sealed. What it holds is not looked at.
    fn is_sealed(&self, volume: &VolumeId) -> bool {
        let path = self.path(volume);
        fs::symlink_metadata(path.join("cache.json")).is_ok_and(|facts| facts.is_file())
    }

    /// Takes a volume out of use: moved aside at once, removed by [`Disk::empty_trash`]. One that somebody
    /// holds a lease on stays.
    fn discard(&self, volume: &VolumeId) -> Result<Discarded, StateError> {
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
            return Ok(Discarded::InUse);
        }
        let trash = self.layout.trash().join(format!("{}.{}", volume.id, volume.generation));
        fs::rename(&path, trash).map_err(|e| failed("moving aside", e))?;
        Ok(Discarded::Gone)
    }

    /// Removes what was moved aside, and what builders told each other of it.
    fn empty_trash(&self) -> Result<(), StateError> {
        let _one_at_a_time = self.emptying.lock().unwrap_or_else(PoisonError::into_inner);
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
        let volumes = HostVolumes::take(Layout::new(dir.path().join("state"))).unwrap();
        let trash = volumes.layout().trash();
        for file in (0..50).flat_map(|volume| (0..20).map(move |file| format!("{volume}/d/{file}"))) {
            let path = trash.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..4).map(|_| scope.spawn(|| volumes.0.empty_trash())).collect();
            for one in all {
                one.join().unwrap().unwrap();
            }
        });
        assert!(fs::read_dir(trash).unwrap().next().is_none());
    }
}
