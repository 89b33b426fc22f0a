//! Inode attributes as returned by `stat(2)`.

use nix::sys::stat::{FileStat, SFlag};

/// A point in time with nanoseconds, as stored in inodes. `sec` can be negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 UTC.
    pub sec: i64,
    /// Nanoseconds after `sec`, below 10^9.
    pub nsec: u32,
}

/// File type of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    /// Regular file.
    Regular,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
}

/// Attributes of an inode.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// Type of the inode.
    pub file_type: FileType,
    /// Permission bits, setuid, setgid and sticky: 07777.
    pub mode: u32,
    /// User ID of the owner.
    pub uid: u32,
    /// Group ID of the inode.
    pub gid: u32,
    /// Length of the content in bytes.
    pub size: u64,
    /// Allocated space in bytes, as `du` counts it.
    pub allocated: u64,
    /// Number of hard links.
    pub links: u64,
    /// Device and inode number, which identify the inode.
    pub identity: (u64, u64),
    /// Major and minor number of a device node.
    pub device: (u32, u32),
    /// Time of the last content change.
    pub mtime: Timestamp,
    /// Time of the last inode change, which programs cannot set.
    pub ctime: Timestamp,
}

impl Stat {
    /// Reports whether the inode is an overlayfs whiteout: a character device 0:0 (Linux,
    /// filesystems/overlayfs.rst).
    pub fn is_whiteout(&self) -> bool {
        self.file_type == FileType::CharDevice && self.device == (0, 0)
    }

    /// Reports whether the inode is a directory.
    pub fn is_dir(&self) -> bool {
        self.file_type == FileType::Directory
    }
}

impl From<FileStat> for Stat {
    // The fields of `struct stat` differ in width and sign between architectures. None of them is negative
    // here.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "major, minor and nanoseconds fit 32 bits by definition"
    )]
    #[allow(clippy::unnecessary_cast, reason = "st_nlink has 32 bits on some architectures")]
    fn from(raw: FileStat) -> Self {
        let file_type = match SFlag::from_bits_truncate(raw.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFDIR => FileType::Directory,
            SFlag::S_IFLNK => FileType::Symlink,
            SFlag::S_IFCHR => FileType::CharDevice,
            SFlag::S_IFBLK => FileType::BlockDevice,
            SFlag::S_IFIFO => FileType::Fifo,
            SFlag::S_IFSOCK => FileType::Socket,
            _ => FileType::Regular,
        };
        let device = (nix::sys::stat::major(raw.st_rdev) as u32, nix::sys::stat::minor(raw.st_rdev) as u32);
        Stat {
            file_type,
            mode: raw.st_mode & 0o7777,
            uid: raw.st_uid,
            gid: raw.st_gid,
            size: raw.st_size.unsigned_abs(),
            allocated: raw.st_blocks.unsigned_abs() * 512,
            links: raw.st_nlink as u64,
            identity: (raw.st_dev, raw.st_ino),
            device,
            mtime: Timestamp { sec: raw.st_mtime, nsec: raw.st_mtime_nsec as u32 },
            ctime: Timestamp { sec: raw.st_ctime, nsec: raw.st_ctime_nsec as u32 },
        }
    }
}
