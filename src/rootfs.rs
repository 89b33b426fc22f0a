//! `larder mount`: an image of a sealed volume as one read-only tree, whichever form its layers have.
//!
//! ```text
//! a thread with a mount namespace of its own                       everybody else
//! disk ─► layers (EROFS images: file-backed, or by loop devices) ─► overlay ─► attached over DIR
//! ```
//!
//! What lies below the overlay is mounted where nobody sees it; the overlay holds it, so unmounting DIR is all that is needed
//! to release everything. A record in state.dir says which mount is ours; nothing is written to the volume.

mod record;

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread;

pub use record::Records;

use crate::trees;
use crate::volume::{self, disk, layout, seal};
use larder_model::class::Class;
use larder_model::escape::escape;
use larder_model::job::LayerFormat;
use larder_model::reference::ImageReference;
use larder_model::seal::Content;
use larder_sys::Dir;
use larder_sys::loop_device::{Access, LoopDevice};
use larder_sys::mount::{self, Mount, MountError};

/// An image cannot be mounted, or let go of.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The volume cannot be read or trusted.
    #[error(transparent)]
    Volume(#[from] volume::Error),
    /// The disk that holds it cannot be mounted.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// A layer cannot be opened.
    #[error(transparent)]
    Tree(#[from] trees::Error),
    /// No such image.
    #[error("{} is not on the volume; it has {}", escape(given), escape(have))]
    NoImage {
        /// What was asked for.
        given: String,
        /// What there is.
        have: String,
    },
    /// Something is mounted there.
    #[error("{0}: something is mounted there already: unmount it, or give another directory")]
    Taken(String),
    /// Nothing of ours is mounted there.
    #[error("{0}: no image that `larder mount` mounted is there; umount(8) unmounts what others mounted")]
    NotOurs(String),
    /// The volume lies below the directory.
    #[error("{0} holds the volume: give a directory outside of it")]
    Inside(String),
    /// The kernel refused a file system.
    #[error("mounting {what}: {source}")]
    Mount {
        /// What was to be mounted.
        what: String,
        /// Why.
        source: MountError,
    },
    /// The kernel refused something else.
    #[error("{doing} {what}: {source}{}", remedy(source))]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        what: String,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    /// The class, which decides about the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Volume(e) => e.class(),
            Error::Disk(e) => e.class(),
            Error::Tree(e) => e.class(),
            Error::NoImage { .. } => Class::NotFound,
            Error::Taken(_) | Error::NotOurs(_) => Class::Conflict,
            Error::Inside(_) => Class::Invalid,
            Error::Mount { source, .. } => class(&source.source),
            Error::Io { source, .. } => class(source),
        }
    }
}

fn class(error: &io::Error) -> Class {
    match error.kind() {
        io::ErrorKind::ResourceBusy => Class::Busy,
        io::ErrorKind::NotFound => Class::NotFound,
        _ => larder_layer::error::io_class(error),
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => " (mounting takes root)",
        io::ErrorKind::ResourceBusy => " (somebody uses it)",
        _ => "",
    }
}

fn io(doing: &'static str, what: &Path) -> impl FnOnce(io::Error) -> Error {
    let what = what.display().to_string();
    move |source| Error::Io { doing, what, source }
}

/// Mounts an image of the sealed volume at `volume` over the directory `over`, without devices and setuid bits, until
/// [`unmount`].
///
/// The volume is believed: what comes from elsewhere is verified first.
///
/// # Errors
/// [`Error`]; then nothing is mounted.
pub fn mount(volume: &Path, image: &ImageReference, over: &Path, records: &Records) -> Result<(), Error> {
    let over = over.canonicalize().map_err(io("opening", over))?;
    let volume = volume.canonicalize().map_err(io("opening the volume", volume))?;
    let below = Dir::open(&over).map_err(io("opening", &over))?;
    if mount::is_mount_point(&below).map_err(io("examining", &over))? {
        return Err(Error::Taken(over.display().to_string()));
    }
    if volume.starts_with(&over) {
        return Err(Error::Inside(over.display().to_string()));
    }
    // Its end is the end of the namespace, and of everything in it that the overlay does not hold.
    let assembled = thread::scope(|scope| scope.spawn(|| assemble(&volume, image, &over)).join());
    let ended = |_| Error::Io {
        doing: "mounting",
        what: over.display().to_string(),
        source: io::Error::other("a thread ended"),
    };
    let assembled = assembled.map_err(ended)??;
    let noted = assembled.id().and_then(|id| records.note(&over, id));
    noted.map_err(io("recording in state.dir what is mounted over", &over))?;
    assembled.attach(&below).map_err(|e| {
        // A record without a mount is of no consequence.
        let _ = records.forget(&over);
        io("mounting over", &over)(e)
    })
}

/// Unmounts what [`mount()`] mounted over `over`.
///
/// # Errors
/// [`Error`]: nothing of ours is there, or somebody uses it.
pub fn unmount(over: &Path, records: &Records) -> Result<(), Error> {
    let over = over.canonicalize().map_err(io("opening", over))?;
    let is_ours = Dir::open(&over).and_then(|dir| records.has(&over, mount::id(&dir)?));
    if !is_ours.map_err(io("examining", &over))? {
        return Err(Error::NotOurs(over.display().to_string()));
    }
    mount::unmount(&over).map_err(io("unmounting", &over))?;
    records.forget(&over).map_err(io("removing the record of", &over))
}

/// The overlay of the image's layers, attached nowhere. `stage` is covered in this thread's namespace alone.
fn assemble(volume: &Path, image: &ImageReference, stage: &Path) -> Result<Mount, Error> {
    mount::private_namespace().map_err(io("making a mount namespace for", stage))?;
    let entered = disk::enter(volume)?;
    mount::memory(stage).map_err(io("mounting a place for layers over", stage))?;
    mount::work_in(stage).map_err(io("working in", stage))?;
    let (root, _disk) = if entered.path() == volume {
        (volume.to_owned(), None)
    } else {
        let at = stage.join("disk");
        fs::create_dir(&at).map_err(io("creating", &at))?;
        // An overlay takes its directories from mounts that are attached somewhere.
        let attached = entered.attach(&at)?;
        (at, Some(attached))
    };
    let content = seal::read(&root)?.content;
    let lower = lower(&root, &content, image)?;
    let merged = stage.join("merged");
    fs::create_dir(&merged).map_err(io("creating", &merged))?;
    mount::overlay(&lower, &merged).map_err(io("mounting an overlay of", volume))?;
    Mount::clone_of(&merged).map_err(io("taking the overlay of", volume))
}

/// Makes the layers of an image directories, and answers the list of them for the overlay.
fn lower(root: &Path, content: &Content, image: &ImageReference) -> Result<String, Error> {
    let is = |known: &&larder_model::seal::Image| {
        known.reference == image.given() || known.name == image.to_string()
    };
    let chain = match content.images.iter().find(is) {
        Some(image) => &image.chain,
        None => {
            let have: Vec<&str> = content.images.iter().map(|image| image.reference.as_str()).collect();
            return Err(Error::NoImage { given: image.given().to_owned(), have: have.join(", ") });
        }
    };
    let dir = Dir::open(root).map_err(io("opening the volume", root))?;
    let mut full: Vec<String> = Vec::new();
    let mut short: Vec<String> = Vec::new();
    for chain_id in chain.iter().rev() {
        let layer = content.layers.iter().find(|layer| layer.chain_id == *chain_id);
        let paths = layer.map(|layer| layout::parts(content.layer_format, layer).trees).unwrap_or_default();
        for path in paths {
            // Also sees that it is a directory, or an image that is whole at first sight.
            trees::tree(&dir, content.layer_format, &path)?;
            let number = short.len().to_string();
            match content.layer_format {
                LayerFormat::Overlay => {
                    let target = root.join(&path);
                    symlink(&target, &number).map_err(io("linking", &target))?;
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
    // An overlay without an upper directory has two lower ones at least.
    fs::create_dir("empty").map_err(io("creating", Path::new("empty")))?;
    for list in [&mut full, &mut short] {
        list.push("empty".to_owned());
    }
    // Whole paths let others see who stands on a directory; numbers let an image have as many layers as overlayfs takes.
    let is_plain = full.iter().all(|path| !path.contains([':', ',', '\\', '\u{fffd}']));
    let joined = full.join(":");
    Ok(if is_plain && joined.len() <= mount::MAX_LOWER { joined } else { short.join(":") })
}

/// Mounts the image at `path` of a volume over the new directory `at`: read-only, without devices and setuid bits, which an
/// overlay of it may have all the same.
///
/// # Errors
/// [`Error`]; the directory may be there then.
pub fn erofs(root: &Dir, path: &str, at: &Path) -> Result<(), Error> {
    fs::create_dir(at).map_err(io("creating", at))?;
    let below = Dir::open(at).map_err(io("opening", at))?;
    let failed = |source| Error::Mount { what: path.to_owned(), source };
    let file = trees::file(root, path)?;
    let by_descriptor = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let mounted = match Mount::erofs_file(&by_descriptor).map_err(failed)? {
        Some(mounted) => mounted,
        None => {
            let device = LoopDevice::attach(&file, Access::ReadOnly);
            let device = device.map_err(io("attaching a loop device to", Path::new(path)))?;
            Mount::erofs(device.path()).map_err(failed)?
        }
    };
    mounted.attach(&below).map_err(io("mounting", Path::new(path)))
}
