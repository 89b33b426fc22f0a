//! A volume on its own disk: an image file whose size is the cap, which the kernel enforces.
//!
//! ```text
//! DIR/disk.img      the ext4, exactly as large as requested, or as its content (`--shrink`). Locked
//!                   (flock(2)): exclusively by a writer, shared by readers, including loop devices
//! DIR/image.json    description of the disk, once it is sealed
//! DIR/cache.json    a copy of the one on the disk, written last. Its presence means sealed, for
//!                   every kind of volume; also cache.json.sig, if the disk has one
//! DIR/.larder/      lock and use, as on every volume; disk.img until it is formatted
//! ```
//!
//! The kernel never reads an unchecked ext4. Its superblock must be one that Larder writes (`strict`), and
//! e2fsck must find no errors in it, in an unprivileged process (`examine`). One risk remains: the kernel
//! itself reads the directory trees on an ext4, because no user-space reader provides what consumers need.
//!
//! While the disk is filled, it is mounted over DIR itself, in a mount namespace of the builder. A process
//! that gets DIR there finds an ordinary volume. Nothing of that outlives the builder: when its last process
//! ends, the kernel unmounts cleanly and detaches the loop device.

mod dir_times;
mod enter;
mod error;
mod examine;
mod fill;
mod host_space;
mod image;
mod possible;
mod receive;
mod show;
mod strict;
mod superblock;
mod take;
mod tools;

pub use enter::{Attached, Entered, enter, enter_own, enter_remembering, image_of};
pub use error::Error;
pub use fill::Mounted;
pub use host_space::HostSpace;
pub use image::{DiskImage, Format};
pub use possible::{begun, obstacle};
pub use receive::{Receiving, receive};
pub use superblock::Superblock;
pub use take::{Disk, Left, Request, Taken, take, take_device};

use uuid::Uuid;

/// Name of the disk image file.
pub const IMAGE: &[u8] = b"disk.img";
/// Name of the file that describes the disk.
pub const DESCRIPTION: &[u8] = b"image.json";

/// Block size of the disk's file system, in bytes. The size of the disk is a multiple of it.
const BLOCK: u64 = 4096;

/// Label and UUID of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    label: String,
    uuid: Uuid,
}
