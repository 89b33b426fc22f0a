//! The layer engine: decodes blobs, verifies digests, reads tars, and writes layer trees. All calls block.
//!
//! A layer is applied without its parents. What depends on the parents is settled afterwards ([`settle`]), so
//! layers of one image can be applied in parallel. There are two sinks: [`overlay`] writes a directory tree,
//! and [`erofs_sink`] an image. Both are in overlayfs form: whiteouts are character devices 0:0, and opaque
//! directories have the attribute `trusted.overlay.opaque`.

#![forbid(unsafe_code)]

pub mod applied;
pub mod apply;
pub mod cores;
pub mod decode;
pub mod erofs;
pub mod erofs_sink;
pub mod error;
pub mod extract;
mod fault;
pub mod limits;
pub mod lower;
pub mod metadata;
pub mod overlay;
pub mod path;
mod path_set;
pub mod rebuild;
mod reserved;
pub mod resolve;
pub mod settle;
pub mod space;
pub mod stored;
pub mod tar;
pub mod tar_split;

pub use error::Error;
