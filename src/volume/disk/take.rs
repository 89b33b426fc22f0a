//! Opening or creating a disk to fill it: ownership, locking, and recovery of earlier state.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::error::Error;
use super::image::Format;
use super::superblock::Superblock;
use super::{BLOCK, DESCRIPTION, Entered, IMAGE, Name, enter_own, tools};
use crate::volume::layout;
use crate::volume::lock::lock;
use larder_model::digest::Digest;
use larder_model::io_error::{Context as _, IoError};
use larder_sys::dir::stat_fd;
use larder_sys::lock::Lock;
use larder_sys::{Dir, loop_device, private, process, space};

/// Maximum time that the kernel may take to release the disk of a killed builder, because it first writes out
/// the data in memory.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(60);

/// Minimum size of a disk in bytes. A smaller one has no space for this kind of ext4.
const MIN_SIZE: u64 = 4 << 20;

/// Parameters for opening a disk.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Directory of the volume, or path of the device.
    pub path: &'a Path,
    /// Identity of the job.
    pub job: &'a Digest,
    /// Size limit of the volume, in bytes.
    pub size: u64,
    /// `true` to allocate host space on use instead of reserving it.
    pub sparse: bool,
}

/// Result of opening a disk.
#[derive(Debug)]
pub enum Taken {
    /// The disk is sealed and readable.
    Sealed(Entered),
    /// The disk is empty or partly filled.
    Filling(Box<Disk>),
}

/// A formatted disk that is not mounted and that no other process fills.
#[derive(Debug)]
pub struct Disk {
    /// Mount point while it is filled, without symbolic links.
    pub(super) at: PathBuf,
    pub(super) below: Dir,
    pub(super) backing: Backing,
    pub(super) image: Lock,
    pub(super) name: Name,
    /// Size of the file system, in bytes.
    pub(super) size: u64,
    pub(super) sparse: bool,
    left: Left,
    _lock: Option<Lock>,
}

/// Type of storage that contains a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Backing {
    /// The file `disk.img` in the directory of the volume.
    Image,
    /// A block device.
    Device(PathBuf),
}

/// State in which a disk was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// The disk is new and empty.
    New,
    /// The disk was unmounted cleanly.
    Clean,
    /// The disk was not unmounted cleanly or has errors. Data that was not synced is lost.
    Unclean,
}

impl Disk {
    /// Returns the state in which the disk was found.
    pub fn left(&self) -> Left {
        self.left
    }

    /// Returns the path for messages.
    pub(super) fn shown(&self) -> String {
        match &self.backing {
            Backing::Image => self.at.join("disk.img").display().to_string(),
            Backing::Device(path) => path.display().to_string(),
        }
    }

    /// Formats the disk, which discards its content.
    ///
    /// # Errors
    /// Those of mkfs.ext4 and fsync(2).
    pub fn format(&mut self) -> Result<(), Error> {
        tools::format(self.image.file(), self.size, &self.name)?;
        self.image.file().sync_all().context("flushing", self.shown())?;
        self.left = Left::New;
        Ok(())
    }
}

/// Opens the disk in the directory `request.path`, and creates the directory and the disk if missing. A
/// directory without a disk of this job is not changed.
///
/// # Errors
/// [`Error::Foreign`], [`Error::Other`], [`Error::Locked`], [`Error::InUse`], [`Error::HostFull`], and those
/// of e2fsprogs.
pub fn take(request: &Request<'_>) -> Result<Taken, Error> {
    let path = request.path;
    let shown = path.display().to_string();
    check_size(request)?;
    private::create_dir(path).context("creating the volume", &shown)?;
    if fs::symlink_metadata(path).context("examining", &shown)?.is_symlink() {
        let fault = "is a symbolic link: use the directory to which it points".to_owned();
        return Err(Error::Other { path: shown, fault });
    }
    let at = path.canonicalize().context("opening the volume", &shown)?;
    let below = Dir::open(&at).context("opening the volume", &shown)?;
    refuse_foreign(&below, &shown)?;
    if below.try_stat(layout::CACHE).context("examining", &shown)?.is_some() {
        return Ok(Taken::Sealed(enter_own(&at)?));
    }
    let larder = below.ensure_dir(layout::LARDER, 0o700).context("creating", ".larder")?;
    let lock = lock(&larder).context("locking", &shown)?;
    let lock = lock.ok_or_else(|| Error::Locked { path: shown.clone() })?;
    // The previous holder of the lock may have sealed the disk since the first check.
    if below.try_stat(layout::CACHE).context("examining", &shown)?.is_some() {
        drop(lock);
        return Ok(Taken::Sealed(enter_own(&at)?));
    }
    larder.append_file(layout::USE, 0o600).context("creating", ".larder/use")?;

    let name = at.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = tools::name_of(&name, request.job);
    let size = request.size / BLOCK * BLOCK;
    let there = below.try_stat(IMAGE).context("examining", &shown)?.is_some();
    let image =
        if there { open(&below, &at)? } else { create(&below, &larder, &at, size, request.sparse, &name)? };
    let mut disk = Disk {
        at,
        below,
        backing: Backing::Image,
        image,
        name,
        size,
        sparse: request.sparse,
        left: Left::New,
        _lock: Some(lock),
    };
    if there {
        disk.resume()?;
    }
    Ok(Taken::Filling(Box::new(disk)))
}

/// Opens the block device `request.path`. It is formatted if it is blank (zeros at both ends), or always with
/// `formats`.
///
/// # Errors
/// [`Error::Other`] if the device contains something else, [`Error::InUse`], [`Error::Locked`],
/// [`Error::TooSmall`], and those of e2fsprogs.
pub fn take_device(request: &Request<'_>, formats: bool) -> Result<Disk, Error> {
    let path = request.path;
    let shown = path.display().to_string();
    check_size(request)?;
    let other = |fault: String| Error::Other { path: shown.clone(), fault };
    if !fs::metadata(path).context("examining", &shown)?.file_type().is_block_device() {
        return Err(other("is not a block device".into()));
    }
    // A device that is mounted or part of another device has a holder, and the kernel refuses a second
    // exclusive open.
    match exclusive(path) {
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
            return Err(Error::InUse {
                path: shown,
                device: "a mounted file system, or part of another device".into(),
            });
        }
        other => drop(other.context("opening", &shown)?),
    }
    let device = File::options().read(true).write(true).open(path).context("opening", &shown)?;
    let image = Lock::try_exclusive_on(device).context("locking", &shown)?;
    let image = image.ok_or_else(|| Error::Locked { path: shown.clone() })?;
    let have = length(image.file()).context("reading the size of", &shown)? / BLOCK * BLOCK;
    let need = request.size / BLOCK * BLOCK;
    // The device must have the requested size, with a tolerance only for the overhead of partitions.
    if have < need - need / 100 {
        return Err(Error::TooSmall { path: shown, need, have });
    }
    let name = tools::name_of("", request.job);
    let at = mount_point(&name)?;
    let below = Dir::open(&at).context("opening", at.display())?;
    let size = have.min(need);
    let backing = Backing::Device(path.to_owned());
    let mut disk =
        Disk { at, below, backing, image, name, size, sparse: false, left: Left::New, _lock: None };
    let found = Superblock::read(disk.image.file()).context("reading", &shown)?;
    match found {
        Some(found) if !formats && found.uuid == disk.name.uuid && found.label == disk.name.label => {
            disk.resume()?
        }
        Some(found) if !formats => {
            return Err(other(format!(
                "contains the file system {} ({:?}): use another device, or --format-device to erase it",
                found.uuid, found.label
            )));
        }
        None if !formats && !is_blank(disk.image.file(), have).context("reading", &shown)? => {
            return Err(other("contains data: use another device, or --format-device to erase it".into()));
        }
        _ => disk.format()?,
    }
    Ok(disk)
}

fn check_size(request: &Request<'_>) -> Result<(), Error> {
    match request.size {
        MIN_SIZE.. => Ok(()),
        size => Err(Error::Size { size }),
    }
}

fn exclusive(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    File::options().read(true).write(true).custom_flags(nix::libc::O_EXCL).open(path)
}

fn length(mut device: &File) -> io::Result<u64> {
    use std::io::Seek as _;
    let end = device.seek(io::SeekFrom::End(0))?;
    device.rewind()?;
    Ok(end)
}

/// Reports whether the first and the last 4 MiB are zeros. Partition tables, RAID, LVM, LUKS, ZFS and all
/// file systems have data there.
fn is_blank(device: &File, size: u64) -> io::Result<bool> {
    use std::os::unix::fs::FileExt as _;
    const ENDS: u64 = 4 << 20;
    let mut buffer = vec![0; 1 << 20];
    for start in [0, size.saturating_sub(ENDS)] {
        let mut at = start;
        while at < (start + ENDS).min(size) {
            let read = device.read_at(&mut buffer, at)?;
            if read == 0 {
                break;
            }
            if buffer[..read].iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += read as u64;
        }
    }
    Ok(true)
}

/// Creates a directory to mount a device over, which stays empty for other processes.
fn mount_point(name: &Name) -> Result<PathBuf, Error> {
    let path = std::env::temp_dir().join(format!("{}-{}", name.label, std::process::id()));
    let shown = path.display().to_string();
    match fs::remove_dir(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(IoError::new("removing", &shown, e).into());
        }
        _ => {}
    }
    private::create_dir(&path).context("creating", &shown)?;
    Ok(path.canonicalize().context("opening", &shown)?)
}

/// Refuses a directory with names that do not belong to a disk. Without `.larder`, only files of mkfs are
/// allowed.
pub(super) fn refuse_foreign(below: &Dir, shown: &str) -> Result<(), Error> {
    let known: [&[u8]; 9] = [
        layout::LARDER,
        layout::CACHE,
        layout::SIGNATURE,
        layout::SIGNATURE_UNFINISHED,
        layout::LOST_AND_FOUND,
        IMAGE,
        DESCRIPTION,
        b"cache.json.tmp",
        b"image.json.tmp",
    ];
    let larder = below.try_stat(layout::LARDER).context("examining", shown)?;
    let ours = larder.is_some_and(|stat| stat.is_dir());
    for name in below.names().context("listing", shown)? {
        if ours && name == layout::OVERLAY {
            let fault = "was created with --volume-kind directory: use the same flag, another directory, or --force to start over"
                .to_owned();
            return Err(Error::Other { path: shown.to_owned(), fault });
        }
        if name != layout::LOST_AND_FOUND && !(ours && known.contains(&&name[..])) {
            let name = String::from_utf8_lossy(&name).into_owned();
            return Err(Error::Foreign { path: shown.to_owned(), name });
        }
    }
    Ok(())
}

/// Opens an existing disk, and waits until the kernel has released it.
fn open(below: &Dir, at: &Path) -> Result<Lock, Error> {
    let shown = at.join("disk.img").display().to_string();
    let not_ours = |fault: &str| Error::Other { path: shown.clone(), fault: fault.to_owned() };
    let facts = below.stat(IMAGE).context("examining", &shown)?;
    if facts.file_type != larder_sys::FileType::Regular || facts.links != 1 {
        return Err(not_ours("is not a disk of Larder, but a link or not a regular file: remove it"));
    }
    let until = Instant::now() + RELEASE_TIMEOUT;
    loop {
        let file = below.open_file_to_write(IMAGE).context("opening", &shown)?;
        if stat_fd(&file).context("examining", &shown)?.uid != process::ids().0 {
            return Err(not_ours("belongs to another user: remove it"));
        }
        let attached = loop_device::attached(&file).context("finding loop devices of", &shown)?;
        let lock = Lock::try_exclusive_on(file).context("locking", &shown)?;
        match (lock, attached.into_iter().next()) {
            (Some(lock), None) => return Ok(lock),
            (None, None) if Instant::now() > until => return Err(Error::Locked { path: shown }),
            (_, Some(other)) if Instant::now() > until => {
                return Err(Error::InUse { path: shown, device: other.path.display().to_string() });
            }
            _ => sleep(Duration::from_millis(50)),
        }
    }
}

/// Creates a disk in `.larder`, where it is not treated as one, and moves it into place when it is formatted.
fn create(below: &Dir, larder: &Dir, at: &Path, size: u64, sparse: bool, name: &Name) -> Result<Lock, Error> {
    let shown = at.join("disk.img").display().to_string();
    match larder.unlink(IMAGE) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(IoError::new("removing", ".larder/disk.img", e).into());
        }
        _ => {}
    }
    let have = space::free(below).context("reading the free space of", &shown)?;
    if !sparse && have < size {
        return Err(Error::HostFull { path: shown, need: size, have });
    }
    drop(larder.create_file(IMAGE, 0o600).context("creating", &shown)?);
    let made = fill(larder, size, sparse, have, &shown).and_then(|image| {
        tools::format(image.file(), size, name)?;
        image.file().sync_all().context("flushing", &shown)?;
        Ok(image)
    });
    let placed = made.and_then(|image| {
        larder.rename_new(IMAGE, below, IMAGE).context("placing", &shown)?;
        below.sync().context("flushing the directory of", &shown)?;
        Ok(image)
    });
    if placed.is_err() {
        // The next attempt also removes it.
        let _ = larder.unlink(IMAGE);
    }
    placed
}

fn fill(larder: &Dir, size: u64, sparse: bool, have: u64, shown: &str) -> Result<Lock, Error> {
    let file = larder.open_file_to_write(IMAGE).context("opening", shown)?;
    if sparse {
        file.set_len(size).context("setting the size of", shown)?;
    } else {
        reserve(&file, size, have, shown)?;
    }
    let lock = Lock::try_exclusive_on(file).context("locking", shown)?;
    lock.ok_or_else(|| Error::Locked { path: shown.to_owned() })
}

fn reserve(file: &File, size: u64, have: u64, shown: &str) -> Result<(), Error> {
    match space::reserve(file, size) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::Other {
            path: shown.to_owned(),
            fault: "is on a file system that cannot reserve space (fallocate): use another directory, or --sparse".into(),
        }),
        Err(e) if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            Err(Error::HostFull { path: shown.to_owned(), need: size, have })
        }
        Err(e) => Err(IoError::new("reserving", shown, e).into()),
    }
}

impl Disk {
    /// Prepares a disk of an earlier run for mounting.
    fn resume(&mut self) -> Result<(), Error> {
        let shown = self.shown();
        let other = |fault: String| Error::Other { path: shown.clone(), fault };
        let file = self.image.file();
        let found = Superblock::read(file).context("reading", &shown)?;
        let Some(found) = found.filter(|found| {
            found.format == Format::Ext4 && found.uuid == self.name.uuid && found.label == self.name.label
        }) else {
            return Err(other(
                "is not a disk of Larder, or is one of another job: use another directory, or --force to start over"
                    .into(),
            ));
        };
        if found.size > self.size && self.backing == Backing::Image {
            return Err(other(format!(
                "has {} bytes, but --size is {}: use the same size or a larger one, or another directory",
                found.size, self.size
            )));
        }
        let checked = tools::repair(file)?;
        if checked == tools::Found::Broken {
            return self.format();
        }
        self.left = if found.clean && checked == tools::Found::Clean { Left::Clean } else { Left::Unclean };
        if found.size < self.size {
            self.grow()?;
        }
        Ok(())
    }

    fn grow(&self) -> Result<(), Error> {
        let shown = self.shown();
        let file = self.image.file();
        if self.backing == Backing::Image {
            let have = space::free(&self.below).context("reading the free space of", &shown)?;
            if self.sparse {
                file.set_len(self.size).context("setting the size of", &shown)?;
            } else {
                let more = self.size - stat_fd(file).context("examining", &shown)?.allocated.min(self.size);
                if have < more {
                    return Err(Error::HostFull { path: shown, need: more, have });
                }
                reserve(file, self.size, have, &shown)?;
            }
        }
        tools::resize(file, self.size)
    }
}
