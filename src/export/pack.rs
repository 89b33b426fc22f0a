//! Packing of an OCI image layout into one tar. The index is not parsed; the receiver verifies the tar.

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::Path;

use super::Error;
use super::tar::{self, END, Kind};
use larder_model::io_error::{Context as _, IoError};
use larder_sys::Dir;

/// Maximum length of a member's path, bytes.
const MAX_PATH: usize = 100;

/// Writes the layout in the directory `layout` as a tar to `out`. Links are not followed, and files that do
/// not belong to a layout are skipped.
///
/// # Errors
/// A file of the layout is missing or cannot be read, or `out` cannot be written.
pub fn pack(layout: &Path, out: &mut dyn Write) -> Result<(), Error> {
    let shown = layout.display().to_string();
    let root = Dir::open(layout).context("opening", &shown)?;
    for name in ["oci-layout", "index.json"] {
        member(&root, name, name, out)?;
    }
    let blobs = root.open_dir(b"blobs").context("opening blobs of", &shown)?;
    for algorithm in sorted(&blobs, &shown)? {
        let dir = blobs.open_dir(algorithm.as_bytes()).context("opening blobs of", &shown)?;
        for name in sorted(&dir, &shown)? {
            member(&dir, &name, &format!("blobs/{algorithm}/{name}"), out)?;
        }
    }
    Ok(out.write_all(&END).context("writing", "the tar of the layout")?)
}

fn sorted(dir: &Dir, shown: &str) -> Result<Vec<String>, Error> {
    let names = dir.names().context("listing blobs of", shown)?;
    let mut names: Vec<String> = names.into_iter().filter_map(|name| String::from_utf8(name).ok()).collect();
    names.sort_unstable();
    Ok(names)
}

fn member(dir: &Dir, name: &str, path: &str, out: &mut dyn Write) -> Result<(), Error> {
    if path.len() > MAX_PATH {
        let source = io::Error::from(io::ErrorKind::InvalidFilename);
        return Err(IoError::new("packing", path, source).into());
    }
    let file: File = dir.open_file(name.as_bytes()).context("opening", path)?;
    let size = file.metadata().context("examining", path)?.len();
    out.write_all(&tar::header(path, Kind::File, size)).context("packing", path)?;
    let copied = io::copy(&mut file.take(size), out).context("packing", path)?;
    if copied != size {
        let source = io::Error::from(io::ErrorKind::UnexpectedEof);
        return Err(IoError::new("packing", path, source).into());
    }
    Ok(out.write_all(&[0; tar::BLOCK][..tar::padding(size)]).context("packing", path)?)
}
