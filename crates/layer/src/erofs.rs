//! Writer of EROFS images (Linux, filesystems/erofs.rst), independent of where the tree comes from.
//!
//! ```text
//! block 0                                                                        the end
//! ├───┬────────────┬───────────────────┬──────────────────────┬──────────┬───────────┤
//! │   │ superblock │ content of files  │ inodes, small content│ shared   │ large     │
//! │   │ root inode │ in order of coming│ and directories      │ xattrs   │ directories
//! ```
//!
//! Content goes to its final place as it comes. What is left over at the end of a file ("tail"), texts of symbolic links
//! and attributes wait in unlinked files beside the image; everything else about the tree is kept in memory until
//! [`Writer::finish`], so entries may be replaced, linked and described anew in any order. Memory grows with the number
//! of entries and the length of their names alone, about 170 bytes for an entry (`benches/erofs.rs`), and is bounded by
//! [`Options::max_memory`].
//!
//! # Why tails are set aside
//! A tail must lie directly behind its inode. Writing inodes between the contents as files come would spare each tail one
//! copy. It would also scatter the metadata over the whole image, where reading a tree from a cold disk costs a seek for
//! each directory, fix the form of an inode before it is known (links, attributes that later links change, compact or not)
//! and leave dead inodes for what is replaced. The copy takes 0.4 us for a tail of 1,000 bytes, of the 1.3 us that such a
//! file takes in all; making one on a file system takes 20 us.
//!
//! # Order and determinism
//! Inodes lie in the order of their making, whatever their names; the same calls give the same bytes. Nothing of the
//! machine, the time of day or the addresses of memory goes into an image.
//!
//! | file | what it knows |
//! |---|---|
//! | `format` | the structures on disk |
//! | `writer` | names and inodes until the end |
//! | `body` | content of one file; `chunks` its holes |
//! | `blocks` | the image as a row of blocks |
//! | `spill` | what waits for the end |
//! | `xattrs` | attributes, each distinct one once |
//! | `pack` | inodes into blocks |
//! | `listing` | directories into blocks |
//! | `tree` | an image of a directory tree |
//! | `read` | reader of images, ours or an enemy's |
//! | `finish` | where everything lies, and writing it |
//! | `apply` | a layer from its tar; `fitting` what the kernel would have taken of it, `acl` of its ACLs |
//! | `verity` | the hash tree behind an image, where one is wanted |
//! | `fixup` | what of a layer depends on those below it |

mod acl;
pub mod apply;
mod blocks;
mod body;
mod chunks;
mod error;
mod finish;
mod fitting;
pub mod fixup;
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

pub use self::body::Body;
pub use self::error::Error;
pub use self::finish::Summary;
pub use self::inode::InodeId;
pub use self::options::{Label, Options};
pub use self::tree::{TreeError, Watch};
pub use self::verity::{Verity, check as check_hash_tree};
pub use self::writer::{Special, Writer};
