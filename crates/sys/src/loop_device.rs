//! Loop devices (loop(4)): files as block devices.
//!
//! A device keeps its descriptor of the file open, and with it the flock(2) on the file. The lock therefore
//! lasts until the last user closes the device, even if the process that attached it dies.

mod ioctl;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::dir::stat_fd;

/// Maximum number of attempts. Another process can attach to a free device between finding and configuring
/// it.
const MAX_ATTEMPTS: usize = 64;

/// Access of a device to its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The device can only read its file.
    ReadOnly,
    /// The device can read and write its file.
    ReadWrite,
}

/// Checks that loop devices are available here.
///
/// # Errors
/// Those of opening /dev/loop-control.
pub fn available() -> io::Result<()> {
    control().map(drop)
}

fn control() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/loop-control")
}

/// An attached device. The kernel detaches it when it is no longer open or mounted.
#[derive(Debug)]
pub struct LoopDevice {
    device: File,
    path: PathBuf,
    direct: bool,
}

impl LoopDevice {
    /// Attaches the file `backing` with blocks of 4096 bytes. The device bypasses the page cache if the file
    /// system of `backing` supports direct I/O.
    ///
    /// # Errors
    /// Those of opening the device and of the ioctls; `EBUSY` after too many attempts.
    pub fn attach(backing: &File, access: Access) -> io::Result<Self> {
        let control = control()?;
        for _ in 0..MAX_ATTEMPTS {
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

    /// Returns the path of the device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reports whether the device bypasses the page cache of its file.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Flushes the device.
    ///
    /// # Errors
    /// Those of fsync(2), including a failed write through the device's cache since it was attached.
    pub fn sync(&self) -> io::Result<()> {
        self.device.sync_all()
    }
}

/// A device that has a file attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Path of the device.
    pub path: PathBuf,
    /// `true` if the device can change its file.
    pub writes: bool,
}

/// Returns the devices to which `backing` is attached, by any process.
///
/// # Errors
/// Those of reading /sys/block.
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
        // The device may have disappeared since it was listed, or this container may lack its node.
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
    /// Path of the device.
    pub device: PathBuf,
    /// Path of its backing file.
    pub file: PathBuf,
}

/// Returns all devices that are in use, with the paths of their files (sysfs).
///
/// # Errors
/// Those of reading /sys/block.
pub fn backing() -> io::Result<Vec<Backing>> {
    let mut found = Vec::new();
    let devices = match fs::read_dir("/sys/block") {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
        other => other?,
    };
    for entry in devices {
        let entry = entry?;
        // Only a device in use has this file.
        if let Ok(mut file) = fs::read(entry.path().join("loop/backing_file")) {
            file.truncate(file.trim_ascii_end().len());
            let file = file.strip_suffix(b" (deleted)").unwrap_or(&file);
            let device = Path::new("/dev").join(entry.file_name());
            found.push(Backing { device, file: OsString::from_vec(file.to_vec()).into() });
        }
    }
    Ok(found)
}
