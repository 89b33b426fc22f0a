//! Reading of a sealed disk.

use std::fs::{self, File};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::examine::{Examination, examine};
use super::image::{self, DiskImage, Format};
use super::show;
use super::superblock::Superblock;
use crate::volume::lease::Lease;
use crate::volume::proofs::Proofs;
use crate::volume::seal::Files;
use larder_model::digest::Digest;
use larder_model::io_error::Context as _;
use larder_sys::dir::stat_fd;
use larder_sys::lock::Lock;
use larder_sys::loop_device::{self, Access, LoopDevice};
use larder_sys::mount::{Ext4, Mount, unmount};
use larder_sys::{Dir, process};

/// A volume of any kind that can be read at [`path`](Entered::path). Its mounts disappear when it is dropped
/// or the process ends.
#[derive(Debug)]
pub struct Entered {
    path: PathBuf,
    // The fields are dropped in this order: the mount before the device that it uses.
    mount: Option<Mount>,
    _device: Option<LoopDevice>,
    _lock: Option<Lock>,
    _lease: Option<Lease>,
}

impl Entered {
    /// Returns the path of the volume for this process.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Attaches the disk over the directory `over` in this mount namespace, until the returned value is
    /// dropped.
    ///
    /// # Errors
    /// Those of open(2) and move_mount(2).
    pub fn attach(mut self, over: &Path) -> Result<Attached, Error> {
        let shown = over.display().to_string();
        let below = Dir::open(over).context("opening", &shown)?;
        if let Some(mount) = self.mount.take() {
            mount.attach(&below).context("mounting over", &shown)?;
        }
        let over = over.canonicalize().context("opening", &shown)?;
        Ok(Attached { over, _entered: self })
    }

    /// Attaches the volume read-only over the directory `over` for all processes, until it is unmounted.
    /// Afterwards, only the mount keeps the underlying device and file in use.
    ///
    /// # Errors
    /// Those of open(2) and of the mount calls.
    pub fn leave(mut self, over: &Path) -> Result<(), Error> {
        let shown = over.display().to_string();
        match self.mount.take() {
            Some(mount) => {
                let below = Dir::open(over).context("opening", &shown)?;
                Ok(mount.attach(&below).context("mounting over", &shown)?)
            }
            None => Ok(show::attach(&self.path, over).context("mounting over", &shown)?),
        }
    }

    fn plain(path: &Path) -> Self {
        Entered { path: path.to_owned(), mount: None, _device: None, _lock: None, _lease: None }
    }
}

/// A sealed disk that is mounted over a directory.
#[derive(Debug)]
pub struct Attached {
    over: PathBuf,
    _entered: Entered,
}

impl Drop for Attached {
    fn drop(&mut self) {
        // A mount that is still in use disappears with the namespace.
        let _ = unmount(&self.over);
    }
}

/// Makes a volume readable. A directory with a sealed disk, an image file or a block device is mounted
/// read-only, visible only to this process. A directory that is the volume itself is used directly.
///
/// An ext4 is fully examined before the kernel reads it. The caller must check that the volume on it is
/// sealed and is the expected one.
///
/// # Errors
/// [`Error::Locked`] or [`Error::InUse`]; [`Error::Tampered`] for a disk that does not match `image.json`;
/// [`Error::Unsafe`] for an ext4 that Larder did not create or that has errors.
pub fn enter(path: &Path) -> Result<Entered, Error> {
    enter_after(path, &Examination::Whole(None))
}

/// Makes a volume readable as [`enter`] does, but does not examine an image again that is recorded in
/// `proofs`.
///
/// # Errors
/// Those of [`enter`].
pub fn enter_remembering(path: &Path, proofs: &Proofs) -> Result<Entered, Error> {
    enter_after(path, &Examination::Whole(Some(proofs)))
}

/// Makes a disk readable that builders of this host sealed, or that was just examined. It does what [`enter`]
/// does, but checks only the superblock of an ext4. A daemon cannot start a process of another user, and its
/// builders examined the disks that they sealed.
///
/// # Errors
/// Those of [`enter`].
pub fn enter_own(path: &Path) -> Result<Entered, Error> {
    enter_after(path, &Examination::Done)
}

/// Opens the file that contains the volume at `path`. `None` for a directory of layers, and for a block
/// device, which can change undetected.
///
/// # Errors
/// Those of stat(2) and open(2).
pub fn image_of(path: &Path) -> std::io::Result<Option<File>> {
    let kind = fs::metadata(path)?.file_type();
    if kind.is_file() {
        return File::open(path).map(Some);
    }
    if !kind.is_dir() {
        return Ok(None);
    }
    let below = Dir::open(path)?;
    match below.try_stat(super::IMAGE)? {
        Some(_) => below.open_file(super::IMAGE).map(Some),
        None => Ok(None),
    }
}

fn enter_after(path: &Path, examination: &Examination<'_>) -> Result<Entered, Error> {
    let shown = path.display().to_string();
    let kind = fs::metadata(path).context("opening the volume", &shown)?.file_type();
    if kind.is_block_device() {
        let device = File::open(path).context("opening", &shown)?;
        let format = superblock(&device, &shown)?.format;
        examine(path, None, format, &shown, examination)?;
        return mounted(path, path, format, None, None, None);
    }
    if kind.is_file() {
        // There is no file next to it to compare it with.
        let image = File::open(path).context("opening", &shown)?;
        // A disk that is being filled looks like one that was not unmounted cleanly.
        let held = File::open(path).and_then(Lock::try_shared_on).context("locking", &shown)?;
        if held.is_none() {
            return Err(Error::Locked { path: shown });
        }
        let format = superblock(&image, &shown)?.format;
        return attach(path, image, format, None, examination);
    }
    let below = Dir::open(path).context("opening the volume", &shown)?;
    if below.try_stat(super::IMAGE).context("examining", &shown)?.is_none() {
        return Ok(Entered::plain(path));
    }
    sealed(&below, path, examination)
}

/// Makes a directory with a sealed disk readable.
fn sealed(below: &Dir, path: &Path, examination: &Examination<'_>) -> Result<Entered, Error> {
    let shown = path.join("disk.img").display().to_string();
    let tampered = |fault: String| Error::Tampered { path: shown.clone(), fault };
    let file = below.open_file(super::IMAGE).context("opening", &shown)?;
    let stat = stat_fd(&file).context("examining", &shown)?;
    if stat.uid != process::ids().0 && stat.uid != 0 {
        return Err(Error::Other {
            path: shown,
            fault: format!(
                "belongs to user {}, who could change it while it is mounted: change its owner",
                stat.uid
            ),
        });
    }
    let seal = Files::read(below, &path.display().to_string())?;
    let described = below.read_file(super::DESCRIPTION, image::MAX);
    let described = DiskImage::parse(&described.context("reading image.json next to", &shown)?);
    let described = described.map_err(tampered)?;
    let superblock = superblock(&file, &shown)?;
    if stat.size != described.size || superblock.size > described.size {
        return Err(tampered(format!("it has {} bytes, but image.json says {}", stat.size, described.size)));
    }
    let (found, want) = (
        (superblock.format, superblock.uuid, &superblock.label),
        (described.format, described.uuid, &described.label),
    );
    if found != want {
        return Err(tampered(format!(
            "it is the file system {} ({:?}), but image.json says {} ({:?})",
            superblock.uuid, superblock.label, described.uuid, described.label
        )));
    }
    if !superblock.clean {
        return Err(tampered("it was not unmounted cleanly, or has errors".into()));
    }
    if Digest::sha256(&seal.cache_json) != described.cache_json {
        return Err(tampered("the cache.json next to it does not match image.json".into()));
    }
    // A volume that is about to be deleted counts as gone. A volume without this file is a copied snapshot.
    let lease = match Lease::shared(below) {
        Ok(None) => return Err(Error::Locked { path: path.display().to_string() }),
        Ok(lease) => lease,
        Err(_) => None,
    };
    let entered = attach(path, file, superblock.format, lease, examination)?;
    let inside = Dir::open(&entered.path).context("reading cache.json of", &shown)?;
    let inside = Files::read(&inside, &shown)?;
    if inside.cache_json != seal.cache_json {
        return Err(tampered("the cache.json on it differs from the one next to it".into()));
    }
    if inside.signature != seal.signature {
        return Err(tampered(
            "the cache.json.sig on it differs from the one next to it, or only one exists".into(),
        ));
    }
    Ok(entered)
}

fn superblock(file: &File, shown: &str) -> Result<Superblock, Error> {
    let found = Superblock::read(file).context("reading", shown)?;
    let mut found = found.ok_or_else(|| Error::Other {
        path: shown.to_owned(),
        fault: "is neither an ext4 nor an EROFS".into(),
    })?;
    match found.foreign.take() {
        Some(fault) => Err(Error::Unsafe { path: shown.to_owned(), fault }),
        None => Ok(found),
    }
}

fn attach(
    path: &Path,
    image: File,
    format: Format,
    lease: Option<Lease>,
    examination: &Examination<'_>,
) -> Result<Entered, Error> {
    let shown = path.display().to_string();
    let lock = Lock::try_shared_on(image).context("locking", &shown)?;
    let lock = lock.ok_or_else(|| Error::Locked { path: shown.clone() })?;
    let attached = loop_device::attached(lock.file()).context("finding loop devices of", &shown)?;
    if let Some(other) = attached.into_iter().find(|other| other.writes) {
        return Err(Error::InUse { path: shown, device: other.path.display().to_string() });
    }
    let device = LoopDevice::attach(lock.file(), Access::ReadOnly);
    let device = device.context("attaching a loop device to", &shown)?;
    let at = device.path().to_owned();
    examine(&at, Some(lock.file()), format, &shown, examination)?;
    mounted(path, &at, format, Some(device), Some(lock), lease)
}

fn mounted(
    path: &Path,
    at: &Path,
    format: Format,
    device: Option<LoopDevice>,
    lock: Option<Lock>,
    lease: Option<Lease>,
) -> Result<Entered, Error> {
    let mount = match format {
        Format::Ext4 => Mount::ext4(at, Ext4::Read),
        Format::Erofs => Mount::erofs(at),
    };
    let mount = mount.map_err(|source| Error::Mount { path: path.display().to_string(), source })?;
    Ok(Entered { path: mount.path(), mount: Some(mount), _device: device, _lock: lock, _lease: lease })
}
