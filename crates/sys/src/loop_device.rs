//! Loop devices (loop(4)): a file as a block device.
//!
//! A device holds the very descriptor that it is given, and with it the flock(2) on that: the lock lasts until the last user
//! of the device is gone, whatever becomes of the process that attached it.

mod ioctl;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::dir::stat_fd;

/// Devices are numbered by whoever is first, so an offer may be gone when it is taken up.
const TRIES: usize = 64;

/// What a device may do to its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read it.
    ReadOnly,
    /// Read and write it.
    ReadWrite,
}

/// Whether devices can be had here.
pub fn available() -> io::Result<()> {
    control().map(drop)
}

fn control() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/loop-control")
}

/// An attached device. The kernel detaches it when nobody has it open or mounted any more.
#[derive(Debug)]
pub struct LoopDevice {
    device: File,
    path: PathBuf,
    direct: bool,
}

impl LoopDevice {
    /// Attaches the file `backing`, in blocks of 4096 bytes. It goes past the page cache where the file system of `backing`
    /// can do that.
    pub fn attach(backing: &File, access: Access) -> io::Result<Self> {
        let control = control()?;
        for _ in 0..TRIES {
            let path = PathBuf::from(format!("/dev/loop{}", ioctl::free(&control)?));
            let device = OpenOptions::new().read(true).write(access == Access::ReadWrite).open(&path)?;
            match ioctl::configure(&device, backing, access) {
                Err(e) if e.kind() == io::ErrorKind::ResourceBusy => continue,
                done => done?,
            }
            let direct = ioctl::status(&device)?.direct;
            return Ok(LoopDevice { device, path, direct });
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it goes past the page cache of its file.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Flushes the device, and tells of a write through its own cache that failed since it was attached.
    pub fn sync(&self) -> io::Result<()> {
        self.device.sync_all()
    }
}

/// A device that has a file attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Where it is.
    pub path: PathBuf,
    /// Whether it can change the file.
    pub writes: bool,
}

/// The devices that `backing` is attached to, whoever did it.
pub fn attached(backing: &File) -> io::Result<Vec<Attached>> {
    let wanted = stat_fd(backing)?.identity;
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        // Only a device in use has this directory.
        if !entry.path().join("loop").is_dir() {
            continue;
        }
        let path = Path::new("/dev").join(entry.file_name());
        let status = match File::open(&path) {
            Ok(device) => ioctl::status(&device),
            Err(e) => Err(e),
        };
        // It may be gone since it was listed, or this container may not have its node.
        if let Ok(status) = status
            && status.file == wanted
        {
            found.push(Attached { path, writes: status.writes });
        }
    }
    Ok(found)
}

/// A device that is in use, and the path of its file when it was attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Where it is.
    pub device: PathBuf,
    /// Its file.
    pub file: PathBuf,
}

/// All devices that are in use, by the paths of their files (sysfs).
pub fn backing() -> io::Result<Vec<Backing>> {
    let mut found = Vec::new();
    let devices = match fs::read_dir("/sys/block") {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
        other => other?,
    };
    for entry in devices {
        let entry = entry?;
        // Only a device in use has the file.
        if let Ok(mut file) = fs::read(entry.path().join("loop/backing_file")) {
            file.truncate(file.trim_ascii_end().len());
            let file = file.strip_suffix(b" (deleted)").unwrap_or(&file);
            let device = Path::new("/dev").join(entry.file_name());
            found.push(Backing { device, file: OsString::from_vec(file.to_vec()).into() });
        }
    }
    Ok(found)
}
