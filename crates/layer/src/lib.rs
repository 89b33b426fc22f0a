//! Blocking: decode, hash, tar members, and the sink that writes the tree of a layer.
//!
//! A layer is applied without its parents ([`overlay::apply`]) into an empty directory; what depends on them is settled
//! afterwards ([`overlay::settle`]), so layers of one image can be applied side by side. The result is the tree in
//! overlayfs form: whiteouts are character devices 0:0, opaque directories carry `trusted.overlay.opaque`.

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
pub mod space;
pub mod stored;
pub mod tar;
pub mod tar_split;

pub use error::Error;
