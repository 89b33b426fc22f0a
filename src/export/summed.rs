//! A disk image with a checksum file next to it, in the format of sha256sum(1).

use std::fs::File;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::output::Unfinished;
use super::{Error, Report};
use larder_model::digest::Digest;
use larder_model::io_error::Context as _;
use larder_sys::Dir;

/// An image that is being written. If dropped before `finish`, neither the image nor its checksum file is
/// left.
#[derive(Debug)]
pub(super) struct Summed {
    out: PathBuf,
    image: Unfinished,
    sum: Unfinished,
}

impl Summed {
    /// Starts the image that is renamed to `out` at the end.
    ///
    /// # Errors
    /// The image or its checksum file cannot be created, or exists and cannot be replaced.
    pub(super) fn begin(out: &Path, force: bool) -> Result<Self, Error> {
        let image = Unfinished::begin(out, force)?;
        Ok(Summed { out: out.to_owned(), image, sum: Unfinished::begin(&checksum_path(out), force)? })
    }

    /// Returns the image, for writing.
    pub(super) fn file(&self) -> Result<File, Error> {
        self.image.file()
    }

    /// Returns the directory of the output.
    pub(super) fn parent(&self) -> Result<Dir, Error> {
        self.image.parent()
    }

    /// Gives the image and then its checksum file their names.
    pub(super) fn finish(self, report: Report) -> Result<Report, Error> {
        if let Some(sha256) = &report.sha256 {
            let line = line(sha256, &self.out);
            self.sum.file()?.write_all(&line).context("writing", "the checksum file")?;
        }
        self.image.finish()?;
        self.sum.finish()?;
        Ok(report)
    }
}

/// Returns the path of the checksum file of an image.
pub(super) fn checksum_path(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".sha256");
    name.into()
}

/// Returns a line in the format of sha256sum(1), which escapes names that contain a line break or a
/// backslash.
pub(super) fn line(sha256: &Digest, out: &Path) -> Vec<u8> {
    let name = out.file_name().unwrap_or_default().as_bytes();
    let odd = name.iter().any(|byte| matches!(byte, b'\\' | b'\n' | b'\r'));
    let mut line = if odd { b"\\".to_vec() } else { Vec::new() };
    line.extend_from_slice(sha256.hex().as_bytes());
    line.extend_from_slice(b"  ");
    for byte in name {
        match byte {
            b'\\' => line.extend_from_slice(b"\\\\"),
            b'\n' => line.extend_from_slice(b"\\n"),
            b'\r' => line.extend_from_slice(b"\\r"),
            byte => line.push(*byte),
        }
    }
    line.push(b'\n');
    line
}
