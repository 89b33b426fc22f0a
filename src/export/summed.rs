//! An image of a disk and, beside it, its sum as sha256sum(1) writes and checks it.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::error::Context;
use super::output::Unfinished;
use super::{Error, Report};
use larder_model::digest::Digest;
use larder_sys::Dir;

/// An image that is being written. Dropped, neither it nor its sum is there.
#[derive(Debug)]
pub(super) struct Summed {
    out: PathBuf,
    image: Unfinished,
    sum: Unfinished,
}

impl Summed {
    /// Begins the image that is to be at `out`.
    pub(super) fn begin(out: &Path, force: bool) -> Result<Self, Error> {
        let image = Unfinished::begin(out, force)?;
        Ok(Summed { out: out.to_owned(), image, sum: Unfinished::begin(&beside(out), force)? })
    }

    /// The image, to write to.
    pub(super) fn file(&self) -> Result<File, Error> {
        self.image.file()
    }

    /// The directory that it will be in.
    pub(super) fn parent(&self) -> Result<Dir, Error> {
        self.image.parent()
    }

    /// Puts it in its place, and its sum after it.
    pub(super) fn finish(self, report: Report) -> Result<Report, Error> {
        if let Some(sha256) = &report.sha256 {
            let line = line(sha256, &self.out);
            self.sum.file()?.write_all(&line).context("writing", "the sum beside the image")?;
        }
        self.image.finish()?;
        self.sum.finish()?;
        Ok(report)
    }
}

/// The file of sums beside an image.
pub(super) fn beside(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".sha256");
    name.into()
}

/// A line of sha256sum(1), which escapes names with a line break or a backslash.
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
