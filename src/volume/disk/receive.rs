//! Import of a sealed disk that was built elsewhere.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::image::{self, DiskImage, Format};
use super::superblock::Superblock;
use super::take::refuse_foreign;
use super::{DESCRIPTION, Entered, IMAGE, enter_own, tools};
use crate::volume::{layout, lock, seal};
use larder_model::digest::Digest;
use larder_model::io_error::{Context as _, IoError};
use larder_sys::lock::Lock;
use larder_sys::{Dir, atomic, dir, private};

/// A directory that will become the volume of a disk. Until the import is finished, it is not treated as one.
#[derive(Debug)]
pub struct Receiving {
    path: PathBuf,
    below: Dir,
    larder: Dir,
    file: File,
    _lock: Lock,
}

/// Prepares the directory at `path`. It is created if missing; otherwise it must be empty or left by an
/// earlier attempt.
///
/// # Errors
/// [`Error::Other`] or [`Error::Foreign`] for a directory with other content, including a sealed volume;
/// [`Error::Locked`].
pub fn receive(path: &Path) -> Result<Receiving, Error> {
    let shown = path.display().to_string();
    private::create_dir(path).context("creating the volume", &shown)?;
    let below = Dir::open(path).context("opening the volume", &shown)?;
    refuse_foreign(&below, &shown)?;
    for name in [layout::CACHE, IMAGE] {
        if below.try_stat(name).context("examining", &shown)?.is_some() {
            let name = String::from_utf8_lossy(name).into_owned();
            let fault = format!("already contains {name}: use another directory");
            return Err(Error::Other { path: shown, fault });
        }
    }
    let larder = below.ensure_dir(layout::LARDER, 0o700).context("creating", ".larder")?;
    let lock = lock::lock(&larder).context("locking", &shown)?;
    let lock = lock.ok_or_else(|| Error::Locked { path: shown.clone() })?;
    larder.append_file(layout::USE, 0o600).context("creating", ".larder/use")?;
    match larder.unlink(IMAGE) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(IoError::new("removing", ".larder/disk.img", e).into());
        }
        _ => {}
    }
    let file = larder.create_file(IMAGE, 0o600).context("creating", ".larder/disk.img")?;
    Ok(Receiving { path: path.to_owned(), below, larder, file, _lock: lock })
}

impl Receiving {
    /// Returns the empty file to which the image must be written.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Checks the whole file system and mounts it read-only. Call it before this process creates a second
    /// thread.
    ///
    /// # Errors
    /// [`Error::Tampered`] if the image is incomplete or has errors, and those of [`enter_own`].
    pub fn enter(&self) -> Result<Entered, Error> {
        let shown = self.path.join(".larder/disk.img").display().to_string();
        let tampered = |fault: &str| Error::Tampered { path: shown.clone(), fault: fault.to_owned() };
        let file = self.larder.open_file(IMAGE).context("opening", &shown)?;
        let found = Superblock::read(&file).context("reading", &shown)?;
        let length = file.metadata().context("examining", &shown)?.len();
        let found = found.filter(|found| found.clean && found.size <= length);
        let found = found.ok_or_else(|| tampered("it is truncated, or was not unmounted cleanly"))?;
        // There is no checker for EROFS, whose kernel code was designed for untrusted images.
        let examined = match found.format {
            Format::Ext4 => tools::examine(&file)?,
            Format::Erofs => tools::Found::Clean,
        };
        match examined {
            tools::Found::Clean => enter_own(&self.path.join(".larder/disk.img")),
            _ => Err(tampered("e2fsck found errors in its file system")),
        }
    }

    /// Seals the disk after its volume, with the seal `seal`, was verified.
    ///
    /// # Errors
    /// [`Error::Tampered`] if the image changed, and those of writing files.
    pub fn finish(self, seal: &seal::Files) -> Result<(), Error> {
        let shown = self.path.join("disk.img").display().to_string();
        dir::set_mode(&self.file, 0o400).context("making read-only", &shown)?;
        self.file.sync_all().context("flushing", &shown)?;
        let file = self.larder.open_file(IMAGE).context("opening", &shown)?;
        let found = Superblock::read(&file).context("reading", &shown)?;
        let gone = || Error::Tampered { path: shown.clone(), fault: "it changed during the import".into() };
        let found = found.ok_or_else(gone)?;
        let image = DiskImage {
            version: image::VERSION,
            format: found.format,
            size: file.metadata().context("examining", &shown)?.len(),
            block_size: found.block,
            label: found.label,
            uuid: found.uuid,
            cache_json: Digest::sha256(&seal.cache_json),
            shrunk: false,
            // Holes of the image stay holes.
            sparse: true,
            direct_io: false,
        };
        let json = serde_json::to_vec_pretty(&image).map_err(io::Error::from);
        let mut json = json.context("writing image.json of", &shown)?;
        json.push(b'\n');
        self.larder.rename_new(IMAGE, &self.below, IMAGE).context("placing", &shown)?;
        atomic::write(&self.below, DESCRIPTION, &json, 0o600).context("writing image.json of", &shown)?;
        Ok(seal.write(&self.below).context("writing cache.json of", &shown)?)
    }
}

impl Entered {
    /// Reads the seal of the volume, without checking it.
    ///
    /// # Errors
    /// Those of [`seal::Files::read`].
    pub fn seal(&self) -> Result<seal::Files, Error> {
        let root = Dir::open(self.path()).context("opening", "the disk")?;
        Ok(seal::Files::read(&root, &self.path().display().to_string())?)
    }
}
