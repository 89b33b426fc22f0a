//! Where the files of an archive go.

mod layout;
mod tar;

use std::io::Write;

pub(super) use layout::Layout;
pub(super) use tar::Tar;

use super::Error;

/// Something that takes files, one after the other.
pub(super) trait Target {
    /// Makes a directory; parents come before children.
    fn directory(&mut self, path: &str) -> Result<(), Error>;

    /// Writes a small file.
    fn file(&mut self, path: &str, bytes: &[u8]) -> Result<(), Error>;

    /// Writes a large file. `fill` writes its content and answers what it is called and how large it is; who knows that
    /// before says so in `known`, and then must keep to it.
    fn stream(&mut self, known: Option<&Place>, fill: &mut Fill<'_>) -> Result<(), Error>;

    /// All is written. Answers how many bytes.
    fn finish(&mut self) -> Result<u64, Error>;
}

/// Writes the content of a large file.
pub(super) type Fill<'a> = dyn FnMut(&mut (dyn Write + Send)) -> Result<Place, Error> + 'a;

/// Path and size of a large file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) path: String,
    /// Bytes.
    pub(super) size: u64,
}
