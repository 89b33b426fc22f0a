//! The directory `l/`: short names for the lower directories of overlays.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::{fs, io};

use super::error::Error;
use super::volumes::Volume;
use crate::volume::layout;
use crate::{rootfs, trees};
use larder_model::io_error::{Context as _, IoError};
use larder_model::job::LayerFormat;
use larder_model::seal::Layer;
use larder_sys::{Dir, FileType, mount};

/// The directory `l/` of a snapshotter.
#[derive(Debug)]
pub(super) struct Links {
    path: PathBuf,
    dir: Dir,
}

impl Links {
    /// Opens the existing directory at `path`.
    pub(super) fn open(path: PathBuf) -> Result<Self, Error> {
        let dir = Dir::open(&path).context("opening", path.display())?;
        Ok(Links { path, dir })
    }

    /// Returns the lower directory for the files of snapshot `id`. Creates the link if it is missing.
    pub(super) fn local(&self, id: i64) -> Result<PathBuf, Error> {
        self.point(id, format!("../snapshots/{id}/fs").as_bytes())
    }

    /// Returns the lower directories for `layer` of `volume` as snapshot `id`, topmost first. Opens the
    /// trees, without following links.
    pub(super) fn layer(&self, id: i64, volume: &Volume, layer: &Layer) -> Result<Vec<PathBuf>, Error> {
        let paths = layout::parts(volume.format, layer).trees;
        let root = Dir::open(&volume.at).context("opening the volume", volume.at.display())?;
        if volume.format == LayerFormat::Erofs {
            let from = of_volume(&root, volume).context("examining", volume.at.display())?;
            let note = format!("{id}.from");
            if self.dir.read_link(note.as_bytes()).ok().as_ref() != Some(&from) {
                // Images that are still mounted from another volume would keep it busy.
                self.release(id)?;
                let noted = self.dir.symlink(&from, note.as_bytes());
                noted.context("recording the volume of", self.path.join(&note).display())?;
            }
            let mounted = paths.iter().enumerate().map(|(number, path)| self.image(id, number, &root, path));
            return mounted.collect();
        }
        let mut found = Vec::new();
        for path in paths {
            trees::tree(&root, volume.format, &path).map_err(rootfs::Error::from)?;
            found.push(self.point(id, volume.at.join(&path).as_os_str().as_bytes())?);
        }
        Ok(found)
    }

    /// Mounts the image at `path` of a volume.
    fn image(&self, id: i64, number: usize, root: &Dir, path: &str) -> Result<PathBuf, Error> {
        let name = format!("{id}.{number}");
        let at = self.path.join(&name);
        match self.dir.open_dir(name.as_bytes()) {
            // The image is already mounted, maybe by an earlier process. The same chain ID means the same
            // layer.
            Ok(dir) if mount::is_mount_point(&dir).context("examining", at.display())? => return Ok(at),
            Ok(_) => self.dir.remove_dir(name.as_bytes()).context("removing", at.display())?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(IoError::new("opening", at.display(), e).into()),
        }
        trees::tree(root, LayerFormat::Erofs, path).map_err(rootfs::Error::from)?;
        rootfs::erofs(root, path, &at)?;
        Ok(at)
    }

    /// Makes `id` a link to `target`.
    fn point(&self, id: i64, target: &[u8]) -> Result<PathBuf, Error> {
        let name = id.to_string();
        let path = self.path.join(&name);
        if self.dir.read_link(name.as_bytes()).is_ok_and(|found| found == target) {
            return Ok(path);
        }
        let new = format!("{name}.new");
        let make = || {
            let _ = self.dir.unlink(new.as_bytes());
            self.dir.symlink(target, new.as_bytes())?;
            self.dir.rename(new.as_bytes(), &self.dir, name.as_bytes())
        };
        make().context("linking", path.display())?;
        Ok(path)
    }

    /// Removes the links of `id`, and unmounts its images.
    pub(super) fn release(&self, id: i64) -> Result<(), Error> {
        let of_it = |name: &Vec<u8>| owner(name) == Some(id);
        for name in self.dir.names().context("listing", self.path.display())?.into_iter().filter(of_it) {
            self.remove(&name).context("removing", self.path.join(OsStr::from_bytes(&name)).display())?;
        }
        Ok(())
    }

    /// Returns the snapshots that have entries in the directory.
    pub(super) fn owners(&self) -> Result<Vec<i64>, Error> {
        let names = self.dir.names().context("listing", self.path.display())?;
        Ok(names.iter().filter_map(|name| owner(name)).collect())
    }

    fn remove(&self, name: &[u8]) -> io::Result<()> {
        match self.dir.try_stat(name)? {
            None => return Ok(()),
            Some(stat) if stat.file_type != FileType::Directory => return self.dir.unlink(name),
            Some(_) => {}
        }
        let path = self.path.join(OsStr::from_bytes(name));
        // Overlays keep the mounts below them, so unmounting does not affect them.
        if mount::is_mount_point(&self.dir.open_dir(name)?)? {
            mount::unmount(&path)?;
        }
        fs::remove_dir(path)
    }
}

/// Returns the identity of a volume: the inode of its root, and its mount point.
fn of_volume(root: &Dir, volume: &Volume) -> io::Result<Vec<u8>> {
    let (device, inode) = root.stat_self()?.identity;
    let mut text = format!("{device}:{inode} ").into_bytes();
    text.extend_from_slice(volume.at.as_os_str().as_bytes());
    Ok(text)
}

/// Returns the snapshot of an entry. `7`, `7.new`, `7.0` and `7.from` belong to snapshot 7.
fn owner(name: &[u8]) -> Option<i64> {
    std::str::from_utf8(name).ok()?.split('.').next()?.parse().ok()
}
