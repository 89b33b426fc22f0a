//! Filling and sealing of a disk.

use std::io;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::image::{self, DiskImage, Format};
use super::superblock::Superblock;
use super::take::{Backing, Disk};
use super::{BLOCK, DESCRIPTION, IMAGE, tools};
use crate::volume::seal;
use larder_model::digest::Digest;
use larder_model::io_error::Context as _;
use larder_model::size::ByteSize;
use larder_sys::loop_device::{Access, LoopDevice};
use larder_sys::mount::{self, Ext4, Mount};
use larder_sys::{Dir, atomic, space, trim};

/// Maximum number of shrink passes; usually the third finds nothing to do.
const SHRINKING_PASSES: u32 = 5;

/// A disk that is mounted at [`path`](Mounted::path), in its own mount namespace.
#[derive(Debug)]
pub struct Mounted {
    at: PathBuf,
    /// Opened before anything is written, so that syncfs(2) on it reports every write that is lost later.
    root: Dir,
    device: Option<LoopDevice>,
}

impl Disk {
    /// Mounts the disk over its directory. This process must be in its own mount namespace.
    ///
    /// # Errors
    /// Those of attaching a loop device and of mounting.
    pub fn mount(&self) -> Result<Mounted, Error> {
        let shown = self.shown();
        let (device, path) = match &self.backing {
            Backing::Device(path) => (None, path.clone()),
            Backing::Image => {
                let device = LoopDevice::attach(self.image.file(), Access::ReadWrite);
                let device = device.context("attaching a loop device to", &shown)?;
                let path = device.path().to_owned();
                (Some(device), path)
            }
        };
        let mount = Mount::ext4(&path, Ext4::Filled)
            .map_err(|source| Error::Mount { path: shown.clone(), source })?;
        let root = mount.root().context("opening the root directory of", &shown)?;
        mount.attach(&self.below).context("mounting over the directory of", &shown)?;
        Ok(Mounted { at: self.at.clone(), root, device })
    }

    /// Unmounts the disk. Afterwards, all written data is on the host's disk.
    ///
    /// # Errors
    /// [`Error::WritesLost`] if a write was lost since the disk was mounted.
    pub fn unmount(&self, mounted: Mounted) -> Result<(), Error> {
        let shown = self.shown();
        let lost =
            |doing, source| Error::WritesLost { doing, path: shown.clone(), source, hint: self.hint() };
        let Mounted { at, root, device } = mounted;
        let synced = root.sync_file_system();
        drop(root);
        mount::unmount(&at).context("unmounting", &shown)?;
        synced.map_err(|e| lost("flushing", e))?;
        if let Some(device) = device {
            device.sync().map_err(|e| lost("flushing the loop device of", e))?;
        }
        self.image.file().sync_all().map_err(|e| lost("flushing", e))
    }

    /// Removes the file of the unmounted disk. A device is kept as it is.
    ///
    /// # Errors
    /// Those of unlink(2).
    pub fn discard(self) -> Result<(), Error> {
        match self.backing {
            Backing::Image => Ok(self.below.unlink(IMAGE).context("removing", self.shown())?),
            Backing::Device(_) => Ok(()),
        }
    }

    /// Returns a hint about the likely cause of lost writes.
    fn hint(&self) -> String {
        match (&self.backing, space::free(&self.below)) {
            (Backing::Image, Ok(free)) if self.sparse => format!(
                "the disk is sparse, and its file system has {} left: free some space, or omit --sparse",
                ByteSize(free)
            ),
            _ => "check the machine's disk, and run the build again".to_owned(),
        }
    }

    /// Seals the unmounted disk, whose volume has the seal `seal`. With `shrink` it is reduced to the size of
    /// its content.
    ///
    /// # Errors
    /// [`Error::Tampered`] if the file system has errors, and those of e2fsprogs and of writing files.
    pub fn seal(&self, seal: &seal::Files, shrink: bool, direct_io: bool) -> Result<(), Error> {
        if let Err(error) = self.check(shrink) {
            if matches!(self.backing, Backing::Device(_)) {
                // No file next to a device could mark its own seal as invalid.
                self.wipe_superblock()?;
            }
            return Err(error);
        }
        let shown = self.shown();
        let file = self.image.file();
        if matches!(self.backing, Backing::Device(_)) {
            return Ok(file.sync_all().context("flushing", &shown)?);
        }
        let found = Superblock::read(file).context("reading", &shown)?;
        let found = found.filter(|found| found.clean && found.uuid == self.name.uuid);
        let found = found.ok_or_else(|| Error::Tampered {
            path: shown.clone(),
            fault: "its superblock is not the one that Larder created".into(),
        })?;
        if shrink {
            file.set_len(found.size).context("truncating", &shown)?;
        }
        self.below.set_mode(IMAGE, 0o400).context("making read-only", &shown)?;
        file.sync_all().context("flushing", &shown)?;
        let image = DiskImage {
            version: image::VERSION,
            format: Format::Ext4,
            size: file.metadata().context("examining", &shown)?.len(),
            block_size: BLOCK,
            label: self.name.label.clone(),
            uuid: self.name.uuid,
            cache_json: Digest::sha256(&seal.cache_json),
            shrunk: shrink,
            sparse: self.sparse,
            direct_io,
        };
        let mut json = serde_json::to_vec_pretty(&image)
            .map_err(io::Error::from)
            .context("writing image.json of", &shown)?;
        json.push(b'\n');
        atomic::write(&self.below, DESCRIPTION, &json, 0o600).context("writing image.json of", &shown)?;
        Ok(seal.write(&self.below).context("writing cache.json of", &shown)?)
    }

    /// Checks the whole file system, before and after shrinking it.
    fn check(&self, shrink: bool) -> Result<(), Error> {
        let file = self.image.file();
        let clean = |found: tools::Found| match found {
            tools::Found::Clean => Ok(()),
            _ => Err(Error::Tampered {
                path: self.shown(),
                fault: "e2fsck found errors in a cleanly unmounted file system: check the machine's disk"
                    .into(),
            }),
        };
        if !shrink {
            return clean(tools::examine(file)?);
        }
        let times = self.dir_times()?;
        // One pass leaves space that the next can remove, mostly block groups that became empty.
        for pass in 0..SHRINKING_PASSES {
            // resize2fs accepts only a file system that a writing check has passed.
            clean(tools::repair(file)?)?;
            let found = Superblock::read(file).context("reading", self.shown())?;
            let least = tools::min_size(file)?;
            if found.is_none_or(|found| found.size <= least) {
                break;
            }
            match tools::resize(file, least) {
                // resize2fs overestimates the content of a disk that it has already shrunk, and fails. The
                // disk is then as small as it can get.
                Err(Error::Program { .. }) if pass > 0 => {
                    clean(tools::repair(file)?)?;
                    break;
                }
                done => done?,
            }
        }
        self.restore_dir_times(times)?;
        clean(tools::examine(file)?)
    }

    /// Erases the superblock of a device.
    fn wipe_superblock(&self) -> Result<(), Error> {
        use std::os::unix::fs::FileExt as _;
        let file = self.image.file();
        Ok(file.write_all_at(&[0; 4096], 0).and_then(|()| file.sync_all()).context("wiping", self.shown())?)
    }
}

impl Mounted {
    /// Returns the mount point of the disk.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Reports whether writes bypass the page cache of the host. Writes to a device always do.
    pub fn is_direct(&self) -> bool {
        self.device.as_ref().is_none_or(LoopDevice::is_direct)
    }

    /// Returns the space of free blocks to the host. Nothing is written to the disk after this.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn trim(&self) -> Result<(), Error> {
        if self.device.is_some() {
            trim::free_blocks(&self.root).context("discarding the free blocks of", self.at.display())?;
        }
        Ok(())
    }

    /// Reads the seal of the volume on the disk, without checking it.
    ///
    /// # Errors
    /// Those of [`seal::Files::read`].
    pub fn seal(&self) -> Result<seal::Files, Error> {
        Ok(seal::Files::read(&self.root, &self.at.display().to_string())?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if matches!(self.backing, Backing::Device(_)) {
            // The directory was created for the device. If a file system is still mounted over it, it cannot
            // be removed.
            let _ = std::fs::remove_dir(&self.at);
        }
    }
}
