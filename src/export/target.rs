//! Destination of the files of an archive.

mod layout;
mod tar;

use std::io::Write;

pub(super) use layout::Layout;
pub(super) use tar::Tar;

use super::Error;

/// A destination that receives files in sequence.
pub(super) trait Target {
    /// Creates a directory; parents come before children.
    fn directory(&mut self, path: &str) -> Result<(), Error>;

    /// Writes a small file.
    fn file(&mut self, path: &str, bytes: &[u8]) -> Result<(), Error>;

    /// Writes a large file. `fill` writes its content and returns its path and size. If the caller knows them
    /// before, it passes them in `known`, and `fill` must return the same.
    fn stream(&mut self, known: Option<&FileInfo>, fill: &mut Fill<'_>) -> Result<(), Error>;

    /// Completes the output and returns its size in bytes.
    fn finish(&mut self) -> Result<u64, Error>;
}

/// Writes the content of a large file.
pub(super) type Fill<'a> = dyn FnMut(&mut (dyn Write + Send)) -> Result<FileInfo, Error> + 'a;

/// Path and size of a large file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileInfo {
    pub(super) path: String,
    /// Size of the file, bytes.
    pub(super) size: u64,
}
