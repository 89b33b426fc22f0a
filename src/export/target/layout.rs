//! Output as a directory.

use std::fs::File;
use std::io::Write as _;

use super::{FileInfo, Fill, Target};
use crate::export::Error;
use larder_model::io_error::Context as _;
use larder_sys::Dir;

/// Temporary name of a file until its final name is known. It is never that of a digest.
const UNNAMED: &[u8] = b"unnamed";

/// Files below a directory. Each file is flushed when it is written, and directories at the end.
#[derive(Debug)]
pub(in crate::export) struct Layout {
    root: Dir,
    directories: Vec<Dir>,
    size: u64,
}

impl Layout {
    pub(in crate::export) fn new(root: Dir) -> Self {
        Layout { root, directories: Vec::new(), size: 0 }
    }

    fn parent<'a>(&self, path: &'a str) -> Result<(Dir, &'a [u8]), Error> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let dir = self.root.open_beneath(parent.as_bytes()).context("opening", parent)?;
        Ok((dir, name.as_bytes()))
    }

    fn flush(&mut self, file: &File, path: &str, size: u64) -> Result<(), Error> {
        self.size += size;
        Ok(file.sync_all().context("flushing", path)?)
    }
}

impl Target for Layout {
    fn directory(&mut self, path: &str) -> Result<(), Error> {
        let (parent, name) = self.parent(path)?;
        let dir = parent.make_dir(name, 0o700).and_then(|()| parent.open_dir(name));
        self.directories.push(dir.context("creating", path)?);
        Ok(())
    }

    fn file(&mut self, path: &str, bytes: &[u8]) -> Result<(), Error> {
        let (dir, name) = self.parent(path)?;
        let mut file = dir.create_file(name, 0o600).context("creating", path)?;
        file.write_all(bytes).context("writing", path)?;
        self.flush(&file, path, bytes.len() as u64)
    }

    fn stream(&mut self, _: Option<&FileInfo>, fill: &mut Fill<'_>) -> Result<(), Error> {
        let mut file = self.root.create_file(UNNAMED, 0o600).context("creating", "a blob")?;
        let info = fill(&mut file)?;
        let (dir, name) = self.parent(&info.path)?;
        self.root.rename_new(UNNAMED, &dir, name).context("naming", &info.path)?;
        self.flush(&file, &info.path, info.size)
    }

    fn finish(&mut self) -> Result<u64, Error> {
        for dir in self.directories.iter().rev().chain([&self.root]) {
            dir.sync().context("flushing", "a directory")?;
        }
        Ok(self.size)
    }
}
