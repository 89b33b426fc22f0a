//! What goes wrong.

use std::io;
use std::path::{Path, PathBuf};

use super::dependents::{Dependent, listed};
use crate::caches::attachments::AttachmentError;
use crate::node::{containerd, content_cache, file, limits, podman, view};
use crate::verify;
use crate::volume::{self, disk};
use larder_model::class::Class;
use larder_model::digest::Digest;

/// A volume is not attached, or not detached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The volume cannot be read or trusted.
    #[error(transparent)]
    Volume(#[from] volume::Error),
    /// The disk that holds it cannot be mounted.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// A record cannot be read or written.
    #[error(transparent)]
    Record(#[from] AttachmentError),
    /// It cannot be mounted there.
    #[error("mounting at {}: {fault}", at.display())]
    At {
        /// Where.
        at: PathBuf,
        /// What is wrong with it, and the remedy.
        fault: &'static str,
    },
    /// Another volume is there.
    #[error("{} is taken by the volume {}: detach it first, or attach elsewhere with --at", at.display(), volume.display())]
    Taken {
        /// Where.
        at: PathBuf,
        /// What is attached there.
        volume: PathBuf,
    },
    /// Something is mounted there, or lies there, that is not ours.
    #[error("{} holds something that larder did not attach: give another directory with --at", .0.display())]
    Foreign(PathBuf),
    /// Somebody is about to remove the volume.
    #[error("{} is being removed or filled: wait, or give another volume", .0.display())]
    Going(PathBuf),
    /// The volume is another one than was asked for.
    #[error("{} holds the cache {found}, and {wanted} is wanted: give the volume that holds it", volume.display())]
    OtherCache {
        /// The volume.
        volume: PathBuf,
        /// Digest of the cache that was asked for.
        wanted: Digest,
        /// Digest of the cache that is there.
        found: Digest,
    },
    /// The volume is another one than the record says.
    #[error(
        "{} holds the cache {is}, and {was} is attached from there: detach it first",
        volume.display()
    )]
    Changed {
        /// The volume.
        volume: PathBuf,
        /// Digest of the cache that is attached.
        was: Digest,
        /// Digest of the cache that is there.
        is: Digest,
    },
    /// A file beside the configuration of others cannot be written.
    #[error(transparent)]
    File(#[from] file::Error),
    /// A layer is not what the seal says.
    #[error(transparent)]
    Layers(#[from] verify::Error),
    /// Another snapshotter takes another form of layers.
    #[error("containerd's own snapshotter erofs takes EROFS images, and the layers of {} are directories: use `larder snapshotter`, or build it with --layer-format erofs", .0.display())]
    Directories(PathBuf),
    /// containerd's API for what a preload does needs our snapshotter.
    #[error("--preload needs `larder snapshotter`: leave out --snapshotter erofs, or leave out --preload")]
    PreloadErofs,
    /// containerd's own snapshotter does not start.
    #[error(
        "this kernel has no EROFS, which --snapshotter erofs needs: load its module (modprobe erofs), or attach a volume of directories"
    )]
    NoErofs,
    /// containerd runs with an older configuration.
    #[error(
        "containerd at {} has no snapshotter {snapshotter:?} yet: attach without --preload, restart containerd \
         (systemctl restart containerd), and attach again with --preload",
        address.display()
    )]
    NotRestarted {
        /// The name of the snapshotter.
        snapshotter: String,
        /// The socket of containerd.
        address: PathBuf,
    },
    /// The layers for containerd's own EROFS snapshotter cannot be linked.
    #[error(transparent)]
    ContentCache(#[from] content_cache::Error),
    /// The mount point is too long for the images.
    #[error(transparent)]
    Limits(#[from] limits::Unfit),
    /// The image store cannot be made or let go of.
    #[error(transparent)]
    View(#[from] view::Error),
    /// What lies below the image store cannot be made or removed.
    #[error(transparent)]
    Skeleton(#[from] podman::skeleton::Error),
    /// What podman is configured to do cannot be read.
    #[error(transparent)]
    Podman(#[from] podman::node::Error),
    /// What containerd is configured to do cannot be read.
    #[error(transparent)]
    ContainerdConfig(#[from] containerd::config::ConfigError),
    /// Nobody knows how containerd is configured.
    #[error("which version of containerd this node has: {0}: start it, or leave it out with --runtime")]
    Version(String),
    /// containerd does not know the images, or does not forget them.
    #[error(transparent)]
    Containerd(#[from] containerd::Error),
    /// containerd cannot be asked who uses the volume.
    #[error("whether containers of containerd use {}: {reason}: start it, or give --force if there is none any more", at.display())]
    Unasked {
        /// Where the volume is.
        at: PathBuf,
        /// Why.
        reason: String,
    },
    /// Images need its layers.
    #[error(
        "{} has layers that images need: {}: give --remove-images to remove these from their runtime, which pulls them again",
        at.display(),
        listed(images)
    )]
    Needed {
        /// Where the volume is.
        at: PathBuf,
        /// The images.
        images: Vec<Dependent>,
    },
    /// Nothing of that name is attached.
    #[error("{} is not attached; attached are: {have}", given.display())]
    NotAttached {
        /// What was asked for.
        given: PathBuf,
        /// What there is.
        have: String,
    },
    /// A volume is attached at several places.
    #[error("{} is attached at {at}: say which", given.display())]
    Several {
        /// What was asked for.
        given: PathBuf,
        /// Where.
        at: String,
    },
    /// Containers use it.
    #[error("{} is in use: {by}: stop and remove that first", at.display())]
    Busy {
        /// Where it is mounted.
        at: PathBuf,
        /// Who.
        by: String,
    },
    /// Images or containers of the node stand on its layers.
    #[error("{by}: they need layers that only {} has; {remedy}", at.display())]
    OwnStore {
        /// Where it is mounted.
        at: PathBuf,
        /// Their names.
        by: String,
        /// What to do.
        remedy: String,
    },
    /// The records of the node's own store cannot be read.
    #[error("looking for images that need the volume: {0}")]
    Dependents(#[from] podman::dependents::Error),
    /// Images of the node's own store cannot be removed.
    #[error(transparent)]
    Remove(#[from] podman::remove::Error),
    /// A word cannot be written into a unit.
    #[error("writing a unit with {0:?}: it has a character that a unit cannot hold: use --no-unit")]
    Unit(String),
    /// The kernel refused.
    #[error("{doing} {}: {source}{}", what.display(), remedy(source))]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        what: PathBuf,
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
            Error::Record(e) => e.class(),
            Error::File(e) => e.class(),
            Error::Layers(e) => e.class(),
            Error::Limits(e) => e.class(),
            Error::View(e) => e.class(),
            Error::Skeleton(podman::skeleton::Error { source, .. }) => larder_layer::error::io_class(source),
            Error::Podman(podman::node::Error { source, .. }) => larder_layer::error::io_class(source),
            Error::ContainerdConfig(e) => e.class(),
            Error::Containerd(e) => e.class(),
            Error::Version(_) | Error::Unasked { .. } => Class::Transient,
            Error::ContentCache(e) => e.class(),
            Error::At { .. }
            | Error::Directories(_)
            | Error::PreloadErofs
            | Error::NoErofs
            | Error::NotRestarted { .. }
            | Error::Unit(_)
            | Error::Several { .. } => Class::Invalid,
            Error::Taken { .. } | Error::Foreign(_) | Error::Changed { .. } => Class::Conflict,
            Error::OtherCache { .. } => Class::Corrupt,
            Error::NotAttached { .. } => Class::NotFound,
            Error::Busy { .. }
            | Error::Going(_)
            | Error::Needed { .. }
            | Error::OwnStore { .. }
            | Error::Remove(_) => Class::Busy,
            Error::Dependents(podman::dependents::Error { source, .. }) => {
                larder_layer::error::io_class(source)
            }
            Error::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => Class::NotFound,
                io::ErrorKind::ResourceBusy => Class::Busy,
                _ => larder_layer::error::io_class(source),
            },
        }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => " (attaching takes root)",
        io::ErrorKind::ResourceBusy => " (somebody uses it)",
        _ => "",
    }
}

pub(super) fn io(doing: &'static str, what: &Path) -> impl FnOnce(io::Error) -> Error {
    let what = what.to_owned();
    move |source| Error::Io { doing, what, source }
}
