//! The files that a container start reads first, found in the layers of its image, and the list that names
//! them.
//!
//! ```text
//! image config ─► start ─┬► view      paths in the merged layers, links followed inside
//!                        └► loader    libraries: elf, ld_cache
//!                 list ◄─┘
//! ```
//!
//! All input comes from images. Anything that cannot be read or parsed is skipped, because the list is only a
//! hint.

#![forbid(unsafe_code)]

pub mod elf;
pub mod ld_cache;
pub mod list;
mod listing;
mod loader;
pub mod start;
mod view;
