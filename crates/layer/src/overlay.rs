//! The `overlay` sink: a layer as a directory tree in overlayfs form (Linux, filesystems/overlayfs.rst).
//!
//! ```text
//! tar ──► apply ──► staging/diff (without parents) ──► settle (against the layers below) ──► commit
//! ```
//!
//! [`apply`] sees only the layer itself. It records in [`Applied`](super::applied::Applied) what depends on
//! the layers below, and [`settle`] does that part once those layers are on the volume. These are metadata
//! of directories that the tar implies, hard links to lower files, and opaque directories whose attribute
//! cannot be written.

pub mod apply;
pub mod attributes;
mod contents;
pub mod copy;
mod growth;
mod open_dir;
pub mod replaced;
pub mod settle;
mod tree;

#[cfg(test)]
pub(crate) use self::tree::answers;

/// Mode of directories while a layer is being written, so that other users cannot read it.
const STAGING_MODE: u32 = 0o700;
