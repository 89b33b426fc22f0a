//! Writer of EROFS images (Linux, filesystems/erofs.rst), independent of where the tree comes from.
//!
//! ```text
//! block 0                                                                            end
//! ├───┬────────────┬───────────────────┬──────────────────────┬──────────┬───────────┤
//! │   │ superblock │ content of files  │ inodes, small content│ shared   │ large     │
//! │   │ root inode │ in arrival order  │ and directories      │ xattrs   │ directories
//! ```
//!
//! File content is written to its final place as it arrives. The remainder of a file that fills no block
//! ("tail"), targets of symbolic links, and attributes are buffered in unlinked files. Everything else about
//! the tree is kept in memory until [`Writer::finish`], so entries can be replaced, linked and changed in any
//! order. Memory depends only on the number of entries and the length of their names, about 170 bytes per
//! entry (`benches/erofs.rs`), and is limited by [`Options::max_memory`].
//!
//! # Why tails are buffered
//! A tail must directly follow its inode. Writing inodes between the contents as files arrive would save one
//! copy per tail. But it would scatter the metadata over the whole image, so that reading a tree from a cold
//! disk costs a seek per directory. It would also fix the format of an inode too early, because links, and
//! the attributes that come with them, can change it later. Replaced files would leave dead inodes. The copy
//! takes 0.4 us for a tail of 1,000 bytes, out of 1.3 us for the whole file. Creating a file on a file system
//! takes 20 us.
//!
//! # Order and determinism
//! Inodes are stored in the order of their creation, regardless of their names; the same calls give the same
//! bytes. An image depends neither on the machine, nor on the time of day, nor on memory addresses.
//!
//! | file | content |
//! |---|---|
//! | `format` | the structures on disk |
//! | `writer` | names and inodes until the image is finished |
//! | `writer::body` | content of one file; `chunks` its holes |
//! | `blocks` | the image as a sequence of blocks |
//! | `spill` | buffered data in an unlinked file |
//! | `xattrs` | attributes, each distinct one stored once |
//! | `pack` | packs inodes into blocks |
//! | `listing` | packs directory entries into blocks |
//! | `tree` | builds an image from a directory tree |
//! | `read` | reader of untrusted images |
//! | `finish` | decides the final layout and writes the metadata |
//! | `verity` | the optional hash tree after an image |

mod blocks;
mod chunks;
mod error;
mod finish;
mod format;
mod inode;
mod listing;
mod options;
mod pack;
pub mod read;
mod saved;
mod spill;
#[cfg(test)]
mod tests;
mod tree;
mod verity;
mod writer;
mod xattrs;

pub use self::error::Error;
pub use self::finish::Summary;
pub(crate) use self::format::split_name;
pub use self::inode::InodeId;
pub use self::options::{Label, Options};
pub use self::tree::{TreeError, TreeObserver};
pub use self::verity::{Verity, check as check_hash_tree};
pub use self::writer::{Body, Special, Writer};
