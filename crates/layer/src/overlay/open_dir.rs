//! An open directory of a layer that is being written.

use larder_sys::Dir;

/// An open directory, and its path with symbolic links resolved.
#[derive(Debug)]
pub(super) struct OpenDir {
    pub(super) path: Vec<u8>,
    pub(super) dir: Dir,
}
