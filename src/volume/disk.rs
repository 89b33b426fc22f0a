//! A volume on a disk of its own: an image file whose size is the cap, held by the kernel.
//!
//! ```text
//! DIR/disk.img      the ext4, exactly as large as was asked for, or as what it holds (`--shrink`).
//!                   Locked (flock(2)): alone by who fills it, together by who reads it, loop devices included
//! DIR/image.json    beside it once it is sealed: what it is
//! DIR/cache.json    a copy of the one on it, written last. Sealed means that it is there, for every kind of volume alike;
//!                   cache.json.sig too, where there is one on it
//! DIR/.larder/      lock and use, as on every volume; disk.img until it is formatted
//! ```
//!
//! An ext4 is not believed before the kernel reads it: its superblock must be one that Larder writes (`strict`), and e2fsck must
//! find no fault in it, in a process without privileges (`examine`). What cannot be had: the tree of layers on an ext4 is read by
//! the kernel all the same, because no reader in user space does what consumers need.
//!
//! While it is filled it is mounted over DIR itself, in a mount namespace of the builder's, so that whoever is given DIR there
//! finds a volume like any other. Nothing of that outlives the builder: the kernel unmounts in order and detaches the loop
//! device when its last process ends.

mod enter;
mod error;
mod examine;
mod fill;
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
pub use image::{DiskImage, Format};
pub use possible::{begun, obstacle};
pub use receive::{Receiving, receive};
pub use superblock::Superblock;
pub use take::{Disk, Left, Request, Taken, take, take_device};

use uuid::Uuid;

/// The disk.
pub const IMAGE: &[u8] = b"disk.img";
/// What it is.
pub const DESCRIPTION: &[u8] = b"image.json";

/// Block of a disk's file system, bytes; its size is a multiple of it.
const BLOCK: u64 = 4096;

/// Label and UUID of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    label: String,
    uuid: Uuid,
}
