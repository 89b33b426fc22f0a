//! Volumes on this host, as directories in the state directory.

use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::{fs, io};

use chrono::DateTime;
use futures_util::future::BoxFuture;

use super::{AttachedVolume, BuildDirs, Discarded, Kind, Sealed, Snapshot, StateError, VolumeId, Volumes};
use crate::builder::share;
use crate::caches::attachments::Attachments;
use crate::caches::imports::Imports;
use crate::caches::layout::{self, Layout};
use crate::caches::runner::child::clear_work;
use crate::volume::lease::Lease;
use crate::volume::{self};
use larder_model::image_cache::TenantName;
use larder_sys::lock::Lock;
use larder_sys::mounts::Mounts;
use larder_sys::{Dir, remove, space};

/// The state directory, locked by this process until the last handle is dropped.
#[derive(Clone, Debug)]
pub struct HostVolumes(Arc<Disk>);

/// The blocking operations on the disk.
#[derive(Debug)]
struct Disk {
    layout: Layout,
    imports: Imports,
    /// Held while the trash is emptied, because two concurrent deletions would fail on each other's files.
    emptying: Mutex<()>,
    /// `true` if another pass is requested. The lock holder checks it again.
    to_empty: AtomicBool,
    _lock: Lock,
}

impl HostVolumes {
    /// Creates the state directory if it is missing, and locks it. Blocking.
    ///
    /// # Errors
    /// Returns [`StateError::InUse`] if another daemon has locked it, or an error if it cannot be created.
    pub fn take(layout: Layout) -> Result<Self, StateError> {
        for dir in [layout.root(), &layout.tenants(), &layout.trash(), &layout.work(), &layout.imports()] {
            create(dir)?;
        }
        let failed = |doing, source| StateError::Io { doing, path: layout.root().to_owned(), source };
        let root = Dir::open(layout.root()).map_err(|e| failed("opening", e))?;
        let lock = Lock::try_exclusive(&root, layout::LOCK.as_bytes()).map_err(|e| failed("locking", e))?;
        let lock = lock.ok_or_else(|| StateError::InUse(layout.root().to_owned()))?;
        // Secrets of builders whose daemon crashed.
        clear_work(&layout.work()).map_err(|e| failed("clearing work/ in", e))?;
        let imports = Imports::new(layout.imports());
        let (emptying, to_empty) = (Mutex::default(), AtomicBool::default());
        let disk = Disk { layout, imports, emptying, to_empty, _lock: lock };
        Ok(HostVolumes(Arc::new(disk)))
    }

    /// Returns the paths in the state directory.
    pub fn layout(&self) -> &Layout {
        &self.0.layout
    }

    /// Returns `true` if there is any volume of any tenant. Blocking.
    ///
    /// # Errors
    /// Fails if a directory cannot be read.
    pub fn any(&self) -> Result<bool, StateError> {
        Ok(!self.0.list()?.is_empty())
    }

    /// Runs a blocking disk operation outside the runtime's threads.
    fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Disk) -> Result<T, StateError> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, StateError>> {
        let disk = Arc::clone(&self.0);
        Box::pin(async move {
            let done = crate::blocking::spawn(move || work(&disk)).await;
            done.unwrap_or_else(|e| Err(StateError::Broken(e.to_string())))
        })
    }
}

impl Volumes for HostVolumes {
    fn capacity_gib(&self) -> Result<u64, StateError> {
        self.0.capacity_gib()
    }

    fn places(&self, volume: VolumeId) -> BoxFuture<'_, Result<BuildDirs, StateError>> {
        self.on_disk(move |disk| {
            disk.prepare(&volume.tenant)?;
            Ok(BuildDirs { volume: disk.path(&volume), share: disk.layout.tenant(&volume.tenant) })
        })
    }

    fn imports(&self) -> Option<&Imports> {
        Some(&self.0.imports)
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

    fn look(&self, volume: VolumeId, with_path: bool) -> BoxFuture<'_, Result<Option<Snapshot>, StateError>> {
        self.on_disk(move |disk| disk.look(&volume, with_path))
    }

    fn discard(&self, volume: VolumeId) -> BoxFuture<'_, Result<Discarded, StateError>> {
        self.on_disk(move |disk| disk.discard(&volume))
    }

    fn attached(&self) -> BoxFuture<'_, Result<Vec<AttachedVolume>, StateError>> {
        self.on_disk(Disk::attached)
    }

    fn free_bytes(&self) -> Result<Option<u64>, StateError> {
        self.0.free_bytes().map(Some)
    }

    fn tidy(&self, discarded: bool) {
        let disk = Arc::clone(&self.0);
        crate::blocking::spawn(move || {
            let emptied = match discarded || disk.has_trash().unwrap_or(true) {
                true => disk.empty_trash(),
                false => Ok(()),
            };
            if let Err(error) = emptied {
                tracing::error!(%error, "cannot delete discarded volumes; retrying later");
            }
        });
    }
}

impl Disk {
    fn path(&self, volume: &VolumeId) -> PathBuf {
        self.layout.volume(&volume.tenant, &volume.id, volume.generation)
    }

    /// Returns a volume as a snapshot if it is sealed and its seal is readable.
    fn look(&self, volume: &VolumeId, with_path: bool) -> Result<Option<Snapshot>, StateError> {
        let path = self.path(volume);
        // It can be deleted concurrently.
        let Ok(facts) = fs::symlink_metadata(path.join("cache.json")) else { return Ok(None) };
        let sealed = match volume::seal::read(&path) {
            Ok(sealed) => sealed,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot read a snapshot");
                return Ok(None);
            }
        };
        let image = fs::symlink_metadata(path.join("disk.img")).ok().filter(fs::Metadata::is_file);
        Ok(Some(Snapshot {
            generation: volume.generation,
            served: false,
            in_use: self.use_of(volume)?.is_some(),
            digest: sealed.digest,
            sealed_at: facts.modified().map(DateTime::from).unwrap_or_default(),
            kind: if image.is_some() { Kind::Disk } else { Kind::Directory },
            size: sealed.content.totals.size,
            image_size: image.as_ref().map(fs::Metadata::len),
            image_allocated: image.as_ref().map(|image| image.blocks() * 512),
            path: with_path.then_some(path),
        }))
    }

    /// Returns the size of the file system that contains the volumes, GiB.
    fn capacity_gib(&self) -> Result<u64, StateError> {
        let root = self.layout.root();
        let total = Dir::open(root).and_then(|dir| space::total(&dir));
        let failed = |source| StateError::Io { doing: "reading the size of", path: root.to_owned(), source };
        Ok(total.map_err(failed)? >> 30)
    }

    /// Returns the free space of the file system that contains the volumes, bytes.
    fn free_bytes(&self) -> Result<u64, StateError> {
        let root = self.layout.root();
        let free = Dir::open(root).and_then(|dir| space::free(&dir));
        free.map_err(|source| StateError::Io {
            doing: "reading the free space of",
            path: root.to_owned(),
            source,
        })
    }

    /// Lists the attached volumes of image caches. Other attached volumes are not listed.
    fn attached(&self) -> Result<Vec<AttachedVolume>, StateError> {
        let tenants = self.layout.tenants();
        // The records have no symbolic links in their paths.
        let tenants = fs::canonicalize(&tenants);
        let tenants = tenants.map_err(|source| StateError::Io {
            doing: "resolving",
            path: self.layout.tenants(),
            source,
        })?;
        let records = Attachments::new(self.layout.attached()).list()?;
        let of_caches = records.into_iter().filter_map(|attachment| {
            let volume = volume_at(attachment.volume.strip_prefix(&tenants).ok()?)?;
            Some(AttachedVolume { volume, attachment })
        });
        Ok(of_caches.collect())
    }

    /// Creates the directories that builders of a tenant share.
    fn prepare(&self, tenant: &TenantName) -> Result<(), StateError> {
        create(&self.layout.tenant(tenant))?;
        create(&self.layout.volumes(tenant))
    }

    /// Lists all volumes. Other names are ignored.
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

    /// Returns `true` if a volume exists and is sealed. Its contents are not read.
    fn is_sealed(&self, volume: &VolumeId) -> bool {
        let path = self.path(volume);
        fs::symlink_metadata(path.join("cache.json")).is_ok_and(|facts| facts.is_file())
    }

    /// Takes a volume out of use: moves it to the trash, from which [`Disk::empty_trash`] deletes it. A
    /// volume that is leased, attached, mounted or used by a loop device is kept.
    fn discard(&self, volume: &VolumeId) -> Result<Discarded, StateError> {
        let path = self.path(volume);
        let failed = |doing, source| StateError::Io { doing, path: path.clone(), source };
        let root = match Dir::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Discarded::Gone),
            other => other.map_err(|e| failed("opening", e))?,
        };
        // A builder that died early left no lock file.
        let begun = root.try_stat(volume::layout::LARDER).map_err(|e| failed("examining", e))?.is_some();
        let lease = if begun { Lease::exclusive(&root)? } else { None };
        if begun && lease.is_none() {
            return Ok(Discarded::InUse("a process is reading it".to_owned()));
        }
        // Checked under the lease: `attach` takes a lease, and writes a record before it mounts anything.
        if let Some(how) = self.use_of(volume)? {
            return Ok(Discarded::InUse(how));
        }
        let trash = self.layout.trash().join(format!("{}.{}", volume.id, volume.generation));
        fs::rename(&path, trash).map_err(|e| failed("moving aside", e))?;
        Ok(Discarded::Gone)
    }

    /// Returns how a volume is attached or mounted. `None` if it is not. Takes no lease, so it never blocks
    /// an attach.
    fn use_of(&self, volume: &VolumeId) -> Result<Option<String>, StateError> {
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

    /// Returns `true` if discarded volumes still exist.
    fn has_trash(&self) -> Result<bool, StateError> {
        Ok(!names(&self.layout.trash())?.is_empty())
    }

    /// Deletes discarded volumes and the builders' records of them. If another thread is already doing so,
    /// this one returns at once and the other one repeats. A large volume takes minutes, and waiting threads
    /// are not available for other work.
    fn empty_trash(&self) -> Result<(), StateError> {
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

/// Parses the path of a volume below the directory of all tenants: `<tenant>/volumes/<id>.<generation>`.
fn volume_at(path: &Path) -> Option<VolumeId> {
    let mut names = path.components().map(|name| name.as_os_str().to_str());
    let tenant = names.next()??.parse().ok()?;
    names.next()?.filter(|name| *name == "volumes")?;
    let (id, generation) = layout::parse_volume(names.next()??)?;
    names.next().is_none().then_some(VolumeId { tenant, id, generation })
}

fn create(dir: &Path) -> Result<(), StateError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| StateError::Io { doing: "creating", path: dir.to_owned(), source })
}

/// Lists the names in a directory. Empty if it is missing.
fn names(dir: &Path) -> Result<Vec<String>, StateError> {
    let failed = |source| StateError::Io { doing: "listing", path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        // All names written by Larder are ASCII.
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attached_volumes_of_caches_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("state"));
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let volumes = HostVolumes::take(Layout::new(&link)).unwrap();
        let id = larder_model::image_cache::CacheId::random();
        let records = Attachments::new(volumes.layout().attached());
        let attach = |volume: &Path, at: &str| {
            let record =
                crate::caches::attachments::Attachment::new(volume, Path::new(at), DateTime::UNIX_EPOCH);
            records.note(&record).unwrap();
        };
        let tenants = fs::canonicalize(volumes.layout().tenants()).unwrap();
        attach(&tenants.join(format!("team/volumes/{id}.2")), "/icv");
        attach(&tenants.join(format!("team/volumes/{id}.2/overlay")), "/icv2");
        attach(Path::new("/srv/cache"), "/icv3");
        let found = volumes.0.attached().unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].volume, VolumeId { tenant: "team".parse().unwrap(), id, generation: 2 });
        assert_eq!(found[0].attachment.at, Path::new("/icv"));
    }

    #[test]
    fn concurrent_emptying_of_the_trash_succeeds() {
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
