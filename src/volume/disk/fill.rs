//! A disk while it is filled, and sealing it.

use std::io;
use std::path::{Path, PathBuf};

use super::error::{Context, Error};
use super::image::{self, DiskImage, Format};
use super::superblock::Superblock;
use super::take::{Disk, Place};
use super::{BLOCK, DESCRIPTION, IMAGE, tools};
use crate::volume::seal;
use larder_model::digest::Digest;
use larder_model::size::ByteSize;
use larder_sys::loop_device::{Access, LoopDevice};
use larder_sys::mount::{self, Ext4, Mount};
use larder_sys::{Dir, atomic, space};

/// Most times that a disk is shrunk; the third pass finds nothing mostly.
const SHRINKING_PASSES: u32 = 5;

/// A disk that is mounted, in a mount namespace of its own, at [`path`](Mounted::path).
#[derive(Debug)]
pub struct Mounted {
    at: PathBuf,
    /// Opened before anything was written: it hears of every write that is lost from then on (syncfs(2)).
    root: Dir,
    device: Option<LoopDevice>,
}

impl Disk {
    /// Mounts it over its directory. This process must be in a mount namespace of its own.
    pub fn mount(&self) -> Result<Mounted, Error> {
        let shown = self.shown();
        let (device, path) = match &self.place {
            Place::Device(path) => (None, path.clone()),
            Place::Image => {
                let device = LoopDevice::attach(self.image.file(), Access::ReadWrite);
                let device = device.context("attaching a loop device to", &shown)?;
                let path = device.path().to_owned();
                (Some(device), path)
            }
        };
        let mount = Mount::ext4(&path, Ext4::Filled)
            .map_err(|source| Error::Mount { path: shown.clone(), source })?;
        let root = mount.root().context("opening the mounted", &shown)?;
        mount.attach(&self.below).context("mounting over the directory of", &shown)?;
        Ok(Mounted { at: self.at.clone(), root, device })
    }

    /// Unmounts it; from then on everything that was written is on the host's disk.
    ///
    /// # Errors
    /// A write to the disk was lost since it was mounted, or is lost now.
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

    /// What may be behind lost writes.
    fn hint(&self) -> String {
        match (&self.place, space::free(&self.below)) {
            (Place::Image, Ok(free)) if self.sparse => format!(
                "the disk is sparse, and its file system has {} left: free some, or leave --sparse out",
                ByteSize(free)
            ),
            _ => "check the machine's disk, and run the build again".to_owned(),
        }
    }

    /// Seals the unmounted disk, on which the volume with this `seal` is sealed. With `shrink` it is cut to what it holds.
    pub fn seal(&self, seal: &seal::Files, shrink: bool, direct_io: bool) -> Result<(), Error> {
        if let Err(error) = self.prove(shrink) {
            if matches!(self.place, Place::Device(_)) {
                // Nothing lies beside a device that could say that its own seal does not count.
                self.deface()?;
            }
            return Err(error);
        }
        let shown = self.shown();
        let file = self.image.file();
        if matches!(self.place, Place::Device(_)) {
            return file.sync_all().context("flushing", &shown);
        }
        let found = Superblock::read(file).context("reading", &shown)?;
        let found = found.filter(|found| found.clean && found.uuid == self.name.uuid);
        let found = found.ok_or_else(|| Error::Tampered {
            path: shown.clone(),
            fault: "its superblock is not the one that was made".into(),
        })?;
        if shrink {
            file.set_len(found.size).context("cutting", &shown)?;
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
        seal.write(&self.below).context("writing cache.json of", &shown)
    }

    /// Checks it whole, before and after it is shrunk.
    fn prove(&self, shrink: bool) -> Result<(), Error> {
        let file = self.image.file();
        let clean = |found: tools::Found| {
            match found {
            tools::Found::Clean => Ok(()),
            _ => Err(Error::Tampered {
                path: self.shown(),
                fault: "e2fsck finds faults in a file system that was unmounted in order; check the machine's disk".into(),
            }),
        }
        };
        if !shrink {
            return clean(tools::examine(file)?);
        }
        // One pass leaves what the next can spare, mostly for groups that are gone by then.
        for pass in 0..SHRINKING_PASSES {
            // Only a check that may write lets resize2fs believe it.
            clean(tools::repair(file)?)?;
            let found = Superblock::read(file).context("reading", &self.shown())?;
            let least = tools::least(file)?;
            if found.is_none_or(|found| found.size <= least) {
                break;
            }
            match tools::resize(file, least) {
                // resize2fs believes more of a disk that it has shrunk already than there is, and gives up: then it is as small as
                // it gets.
                Err(Error::Program { .. }) if pass > 0 => {
                    clean(tools::repair(file)?)?;
                    break;
                }
                done => done?,
            }
        }
        clean(tools::examine(file)?)
    }

    /// Takes the file system away from a device.
    fn deface(&self) -> Result<(), Error> {
        use std::os::unix::fs::FileExt as _;
        let file = self.image.file();
        file.write_all_at(&[0; 4096], 0).and_then(|()| file.sync_all()).context("wiping", &self.shown())
    }
}

impl Mounted {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Whether it is written past the page cache of the host. A device always is.
    pub fn is_direct(&self) -> bool {
        self.device.as_ref().is_none_or(LoopDevice::is_direct)
    }

    /// The seal of the volume on it, as it is.
    pub fn seal(&self) -> Result<seal::Files, Error> {
        Ok(seal::Files::read(&self.root, &self.at.display().to_string())?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if matches!(self.place, Place::Device(_)) {
            // Made for it; it may still be mounted over, and then goes with nobody.
            let _ = std::fs::remove_dir(&self.at);
        }
    }
}
