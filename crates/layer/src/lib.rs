//! The layer engine: decodes blobs, verifies digests, reads tars, and writes layer trees. All calls block.
//!
//! A layer is applied without its parents ([`overlay::apply`]) into an empty directory. What depends on the
//! parents is settled afterwards ([`overlay::settle`]), so layers of one image can be applied in parallel.
//! The result is a tree in overlayfs form: whiteouts are character devices 0:0, and opaque directories have
//! the attribute `trusted.overlay.opaque`.

#![forbid(unsafe_code)]

pub mod apply;
pub mod cores;
pub mod decode;
pub mod erofs;
pub mod error;
pub mod extract;
pub mod limits;
pub mod metadata;
pub mod overlay;
pub mod path;
pub mod rebuild;
mod reserved;
pub mod resolve;
pub mod space;
pub mod stored;
pub mod tar;
pub mod tar_split;

pub use error::Error;
