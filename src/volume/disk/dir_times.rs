//! Modification times of the directories on a disk, which resize2fs changes: it gives a directory the current
//! time when it moves an inode that the directory names.

use std::collections::HashMap;
use std::io;

use super::error::Error;
use super::take::Disk;
use larder_model::io_error::Context as _;
use larder_sys::loop_device::{Access, LoopDevice};
use larder_sys::mount::{Ext4, Mount};
use larder_sys::walk::{Visitor, walk};
use larder_sys::{Dir, Timestamp, dir};

/// The modification times of all directories, by path.
#[derive(Debug)]
pub(super) struct DirTimes(HashMap<Vec<u8>, Timestamp>);

impl Disk {
    /// Reads the modification times of the directories on the unmounted disk.
    pub(super) fn dir_times(&self) -> Result<DirTimes, Error> {
        let mut reader = Reader(HashMap::new());
        self.visit(&mut reader)?;
        Ok(DirTimes(reader.0))
    }

    /// Restores the modification times of the directories on the unmounted disk.
    pub(super) fn restore_dir_times(&self, times: DirTimes) -> Result<(), Error> {
        self.visit(&mut Writer(times))
    }

    /// Mounts the disk where no other process sees it, and walks its directories.
    fn visit(&self, visitor: &mut impl Visitor<Error = io::Error>) -> Result<(), Error> {
        let shown = self.shown();
        let device = LoopDevice::attach(self.image.file(), Access::ReadWrite);
        let device = device.context("attaching a loop device to", &shown)?;
        let mount = Mount::ext4(device.path(), Ext4::Filled)
            .map_err(|source| Error::Mount { path: shown.clone(), source })?;
        let root = mount.root().context("opening the root directory of", &shown)?;
        let synced = root.try_clone().context("opening the root directory of", &shown)?;
        walk(root, visitor).context("walking the directories of", &shown)?;
        synced.sync_file_system().context("flushing", &shown)?;
        drop((synced, mount));
        Ok(device.sync().context("flushing the loop device of", &shown)?)
    }
}

struct Reader(HashMap<Vec<u8>, Timestamp>);

impl Visitor for Reader {
    type Error = io::Error;

    fn enter(&mut self, dir: &Dir, path: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.0.insert(path.to_vec(), dir.stat_self()?.mtime);
        subdirectories(dir)
    }

    fn failed(&mut self, _: &[u8], error: io::Error) -> io::Error {
        error
    }
}

struct Writer(DirTimes);

impl Visitor for Writer {
    type Error = io::Error;

    fn enter(&mut self, dir: &Dir, path: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        if let Some(time) = self.0.0.get(path)
            && dir.stat_self()?.mtime != *time
        {
            dir::set_times(dir, *time)?;
        }
        subdirectories(dir)
    }

    fn failed(&mut self, _: &[u8], error: io::Error) -> io::Error {
        error
    }
}

fn subdirectories(dir: &Dir) -> io::Result<Vec<Vec<u8>>> {
    let mut names = dir.names()?;
    let mut error = None;
    names.retain(|name| match dir.try_stat(name) {
        Ok(stat) => stat.is_some_and(|stat| stat.is_dir()),
        Err(e) => {
            error = Some(e);
            false
        }
    });
    error.map_or(Ok(names), Err)
}
