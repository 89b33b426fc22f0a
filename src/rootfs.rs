//! `larder mount`: mounts an image of a sealed volume as one read-only tree, in either layer format.
//!
//! ```text
//! a thread with its own mount namespace                            all processes
//! disk ─► layers (EROFS images: file-backed, or by loop devices) ─► overlay ─► attached over DIR
//! ```
//!
//! The mounts below the overlay are visible only to the thread. The overlay keeps them in use, so unmounting
//! DIR releases all of them. A record in state.dir identifies the mounts of Larder; the volume is not written
//! to.

mod record;

use std::os::fd::AsRawFd as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::{fs, io, thread};

pub use record::Records;

use crate::trees;
use crate::volume::{self, disk, layout, seal};
use larder_model::class::Class;
use larder_model::escape::escape;
use larder_model::io_error::{Context as _, FileRole, IoError, Operation, class, hint};
use larder_model::job::LayerFormat;
use larder_model::reference::ImageReference;
use larder_model::seal::Content;
use larder_sys::Dir;
use larder_sys::loop_device::{Access, LoopDevice};
use larder_sys::mount::{self, Mount, MountError};

/// The error for an image that cannot be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The volume cannot be read or trusted.
    #[error(transparent)]
    Volume(#[from] volume::Error),
    /// The disk with the volume cannot be mounted.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// A layer cannot be opened.
    #[error(transparent)]
    Tree(#[from] trees::Error),
    /// The image is not on the volume.
    #[error("{} is not on the volume; available images: {}", escape(given), escape(have))]
    NoImage {
        /// The requested reference.
        given: String,
        /// References of the images on the volume.
        have: String,
    },
    /// The directory is already a mount point.
    #[error("{0} is already a mount point: unmount it, or give another directory")]
    Taken(String),
    /// The directory is not a mount point of `larder mount`.
    #[error("{0} was not mounted by `larder mount`: use umount(8) for other mounts")]
    NotOurs(String),
    /// The directory contains the volume.
    #[error("{0} contains the volume: give a directory that does not contain it")]
    Inside(String),
    /// The kernel refused to mount a file system.
    #[error("mounting {what}: {source}")]
    Mount {
        /// Object to mount.
        what: String,
        /// Error of the system call.
        r#source: MountError,
    },
    /// Another system call failed.
    #[error("{}{}", .0, hint(Operation::MountImage, &.0.source))]
    Io(IoError),
}

impl Error {
    /// Returns the class of the error, which determines the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Volume(e) => e.class(),
            Error::Disk(e) => e.class(),
            Error::Tree(e) => e.class(),
            Error::NoImage { .. } => Class::NotFound,
            Error::Taken(_) | Error::NotOurs(_) => Class::Conflict,
            Error::Inside(_) => Class::Invalid,
            Error::Mount { source, .. } => class(&source.source, FileRole::Named),
            Error::Io(error) => error.class(FileRole::Named),
        }
    }
}

impl From<IoError> for Error {
    fn from(error: IoError) -> Self {
        Error::Io(error)
    }
}

/// Mounts an image of the sealed volume at `volume` over the directory `over`, without devices and setuid
/// bits, until [`unmount`].
///
/// The volume is trusted. The caller must verify a volume from another host first.
///
/// # Errors
/// Returns [`Error`] if the image cannot be mounted; in this case, nothing is mounted.
pub fn mount(volume: &Path, image: &ImageReference, over: &Path, records: &Records) -> Result<(), Error> {
    let over = over.canonicalize().context("opening", over.display())?;
    let volume = volume.canonicalize().context("opening the volume", volume.display())?;
    let below = Dir::open(&over).context("opening", over.display())?;
    if mount::is_mount_point(&below).context("examining", over.display())? {
        return Err(Error::Taken(over.display().to_string()));
    }
    if volume.starts_with(&over) {
        return Err(Error::Inside(over.display().to_string()));
    }
    // The end of the thread releases its namespace with all mounts that the overlay does not use.
    let assembled = thread::scope(|scope| scope.spawn(|| assemble(&volume, image, &over)).join());
    let ended = |_| {
        let panicked = io::Error::other("the thread for the mount panicked");
        IoError::new("mounting", over.display(), panicked)
    };
    let assembled = assembled.map_err(ended)??;
    let noted = assembled.id().and_then(|id| records.add(&over, id));
    noted.context("recording in state.dir the mount over", over.display())?;
    assembled.attach(&below).map_err(|e| {
        // A record without a mount is harmless.
        let _ = records.remove(&over);
        IoError::new("mounting over", over.display(), e).into()
    })
}

/// Unmounts an image that [`mount()`] mounted over `over`.
///
/// # Errors
/// Returns [`Error`] if `over` is not a mount of Larder, or is in use.
pub fn unmount(over: &Path, records: &Records) -> Result<(), Error> {
    let over = over.canonicalize().context("opening", over.display())?;
    let is_recorded = Dir::open(&over).and_then(|dir| records.contains(&over, mount::id(&dir)?));
    if !is_recorded.context("examining", over.display())? {
        return Err(Error::NotOurs(over.display().to_string()));
    }
    mount::unmount(&over).context("unmounting", over.display())?;
    Ok(records.remove(&over).context("removing the record of", over.display())?)
}

/// Builds the overlay of the image's layers without attaching it. `stage` is covered only in this thread's
/// namespace.
fn assemble(volume: &Path, image: &ImageReference, stage: &Path) -> Result<Mount, Error> {
    mount::private_namespace().context("creating a mount namespace for", stage.display())?;
    let entered = disk::enter(volume)?;
    mount::memory(stage).context("mounting a tmpfs for layers over", stage.display())?;
    mount::work_in(stage).context("changing the directory to", stage.display())?;
    let (root, _disk) = if entered.path() == volume {
        (volume.to_owned(), None)
    } else {
        let at = stage.join("disk");
        fs::create_dir(&at).context("creating", at.display())?;
        // The lower directories of an overlay must be on attached mounts.
        let attached = entered.attach(&at)?;
        (at, Some(attached))
    };
    let content = seal::read(&root)?.content;
    let lower = lower(&root, &content, image)?;
    let merged = stage.join("merged");
    fs::create_dir(&merged).context("creating", merged.display())?;
    mount::overlay(&lower, &merged).context("mounting an overlay of", volume.display())?;
    Ok(Mount::clone_of(&merged).context("cloning the overlay of", volume.display())?)
}

/// Makes the layers of an image available as directories, and returns the list of lower directories for the
/// overlay.
fn lower(root: &Path, content: &Content, image: &ImageReference) -> Result<String, Error> {
    let is = |candidate: &&larder_model::seal::Image| {
        candidate.reference == image.given() || candidate.name == image.to_string()
    };
    let chain = match content.images.iter().find(is) {
        Some(image) => &image.chain,
        None => {
            let have: Vec<&str> = content.images.iter().map(|image| image.reference.as_str()).collect();
            return Err(Error::NoImage { given: image.given().to_owned(), have: have.join(", ") });
        }
    };
    let dir = Dir::open(root).context("opening the volume", root.display())?;
    let mut full: Vec<String> = Vec::new();
    let mut short: Vec<String> = Vec::new();
    for chain_id in chain.iter().rev() {
        let layer = content.layers.iter().find(|layer| layer.chain_id == *chain_id);
        let paths = layer.map(|layer| layout::parts(content.layer_format, layer).trees).unwrap_or_default();
        for path in paths {
            // This also checks that the path is a directory, or an image that passes the first checks.
            trees::tree(&dir, content.layer_format, &path)?;
            let number = short.len().to_string();
            match content.layer_format {
                LayerFormat::Overlay => {
                    let target = root.join(&path);
                    symlink(&target, &number).context("linking", target.display())?;
                    full.push(target.to_string_lossy().into_owned());
                }
                LayerFormat::Erofs => {
                    erofs(&dir, &path, Path::new(&number))?;
                    full.push(number.clone());
                }
            }
            short.push(number);
        }
    }
    // An overlay without an upper directory must have at least two lower directories.
    fs::create_dir("empty").context("creating", "empty")?;
    for list in [&mut full, &mut short] {
        list.push("empty".to_owned());
    }
    // Full paths show which directories an overlay uses. If they are too long, numbers allow as many layers
    // as overlayfs supports.
    let is_plain = full.iter().all(|path| !path.contains([':', ',', '\\', '\u{fffd}']));
    let joined = full.join(":");
    Ok(if is_plain && joined.len() <= mount::MAX_LOWER { joined } else { short.join(":") })
}

/// Mounts the image at `path` of a volume over the new directory `at`, read-only, without devices and setuid
/// bits. An overlay of the mount can still allow them.
///
/// # Errors
/// Returns [`Error`] if the image cannot be mounted; in this case, the directory might exist.
pub fn erofs(root: &Dir, path: &str, at: &Path) -> Result<(), Error> {
    fs::create_dir(at).context("creating", at.display())?;
    let below = Dir::open(at).context("opening", at.display())?;
    let failed = |source| Error::Mount { what: path.to_owned(), source };
    let file = trees::file(root, path)?;
    let by_descriptor = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let mounted = match Mount::erofs_file(&by_descriptor).map_err(failed)? {
        Some(mounted) => mounted,
        None => {
            let device = LoopDevice::attach(&file, Access::ReadOnly);
            let device = device.context("attaching a loop device to", path)?;
            Mount::erofs(device.path()).map_err(failed)?
        }
    };
    Ok(mounted.attach(&below).context("mounting", path)?)
}
