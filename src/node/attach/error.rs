//! The errors of attach and detach.

use std::path::PathBuf;

use super::dependents::{Dependent, listed};
use crate::caches::attachments::AttachmentError;
use crate::node::{containerd, content_cache, file, limits, podman, view};
use crate::verify;
use crate::volume::{self, disk};
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::io_error::{FileRole, IoError, Operation, class, hint};

/// The errors of attaching and detaching a volume.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The volume cannot be read or trusted.
    #[error(transparent)]
    Volume(#[from] volume::Error),
    /// The disk of the volume cannot be mounted.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// A record cannot be read or written.
    #[error(transparent)]
    Record(#[from] AttachmentError),
    /// The mount point is not suitable.
    #[error("mounting at {}: {fault}", at.display())]
    At {
        /// Path of the mount point.
        at: PathBuf,
        /// The reason, and a hint.
        fault: &'static str,
    },
    /// Another volume is attached at the mount point.
    #[error("{} is already used by the volume {}: detach it first, or use another mount point with --at", at.display(), volume.display())]
    Taken {
        /// Path of the mount point.
        at: PathBuf,
        /// The volume that is attached there.
        volume: PathBuf,
    },
    /// The mount point contains files or a mount that Larder did not create.
    #[error("{} is in use by something that larder did not attach: use another directory with --at", .0.display())]
    Foreign(PathBuf),
    /// Another process is about to remove or fill the volume.
    #[error("{} is being removed or filled: wait, or use another volume", .0.display())]
    Going(PathBuf),
    /// The volume is not the requested one.
    #[error("{} contains the cache {found}, not {wanted}: specify the volume that contains it", volume.display())]
    OtherCache {
        /// Path of the volume.
        volume: PathBuf,
        /// Digest of the requested cache.
        wanted: Digest,
        /// Digest of the cache on the volume.
        found: Digest,
    },
    /// The volume is not the one in the record.
    #[error(
        "{} contains the cache {is}, but {was} is attached from there: detach it first",
        volume.display()
    )]
    Changed {
        /// Path of the volume.
        volume: PathBuf,
        /// Digest of the attached cache.
        was: Digest,
        /// Digest of the cache on the volume.
        is: Digest,
    },
    /// A drop-in configuration file cannot be written.
    #[error(transparent)]
    File(#[from] file::Error),
    /// A layer does not match the seal.
    #[error(transparent)]
    Layers(#[from] verify::Error),
    /// The snapshotter does not support the layer format of the volume.
    #[error("containerd's own snapshotter erofs needs EROFS images, but the layers of {} are directories: use `larder snapshotter`, or build it with --layer-format erofs", .0.display())]
    Directories(PathBuf),
    /// A preload needs Larder's snapshotter, because of containerd's API.
    #[error("--preload needs `larder snapshotter`: remove --snapshotter erofs, or remove --preload")]
    PreloadErofs,
    /// The kernel does not support EROFS, so containerd's own snapshotter does not start.
    #[error(
        "this kernel has no EROFS, which --snapshotter erofs needs: load its module (modprobe erofs), or attach a volume of directories"
    )]
    NoErofs,
    /// containerd still runs with an older configuration.
    #[error(
        "containerd at {} has no snapshotter {snapshotter:?} yet: attach without --preload, restart containerd \
         (systemctl restart containerd), and attach again with --preload",
        address.display()
    )]
    NotRestarted {
        /// Name of the missing snapshotter.
        snapshotter: String,
        /// Path of containerd's socket.
        address: PathBuf,
    },
    /// The layers for containerd's own EROFS snapshotter cannot be linked.
    #[error(transparent)]
    ContentCache(#[from] content_cache::Error),
    /// The mount point is too long for the images.
    #[error(transparent)]
    Limits(#[from] limits::MountPointError),
    /// The image store cannot be created or unmounted.
    #[error(transparent)]
    View(#[from] view::Error),
    /// The configuration of podman cannot be read.
    #[error(transparent)]
    Podman(#[from] podman::node::Error),
    /// The configuration of containerd cannot be read.
    #[error(transparent)]
    ContainerdConfig(#[from] containerd::config::ConfigError),
    /// The version of containerd cannot be determined.
    #[error("cannot determine the version of containerd: {0}: start it, or exclude it with --runtime")]
    Version(String),
    /// The images cannot be registered in containerd, or removed from it.
    #[error(transparent)]
    Containerd(#[from] containerd::Error),
    /// containerd does not answer, so it is unknown whether it uses the volume.
    #[error("cannot check whether containers of containerd use {}: {reason}: start it, or use --force if it is no longer installed", at.display())]
    ContainerdSilent {
        /// Mount point of the volume.
        at: PathBuf,
        /// The reason why containerd does not answer.
        reason: String,
    },
    /// Images need layers of the volume.
    #[error(
        "{} has layers that images need: {}: use --remove-images to remove these from their runtime, which pulls them again",
        at.display(),
        listed(images)
    )]
    Needed {
        /// Mount point of the volume.
        at: PathBuf,
        /// The images that need it.
        images: Vec<Dependent>,
    },
    /// No attached volume has this path.
    #[error("{} is not attached; attached volumes: {have}", given.display())]
    NotAttached {
        /// The given path.
        given: PathBuf,
        /// The list of attached volumes.
        have: String,
    },
    /// A volume is attached at several mount points.
    #[error("{} is attached at {at}: specify one of them", given.display())]
    Several {
        /// The given path.
        given: PathBuf,
        /// The list of mount points.
        at: String,
    },
    /// The volume is in use.
    #[error("{} is in use: {by}: stop and remove the user first", at.display())]
    Busy {
        /// Mount point of the volume.
        at: PathBuf,
        /// Description of the user.
        by: String,
    },
    /// Images or containers of the node use its layers.
    #[error("{by}: they need layers that only {} has; {remedy}", at.display())]
    OwnStore {
        /// Mount point of the volume.
        at: PathBuf,
        /// Names of the images and containers.
        by: String,
        /// The hint for the operator.
        remedy: String,
    },
    /// The records of the node's own image store cannot be read.
    #[error("looking for images that need the volume: {0}")]
    Dependents(podman::dependents::Error),
    /// Images of the node's own image store cannot be removed.
    #[error(transparent)]
    Remove(#[from] podman::remove::Error),
    /// An argument cannot be written into a unit.
    #[error("writing a unit with {0:?}: it has a character that units do not allow: use --no-unit")]
    Unit(String),
    /// A system call failed.
    #[error("{}{}", .0, hint(Operation::AttachVolume, &.0.source))]
    Io(IoError),
}

impl Error {
    /// Returns the error class, which determines the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Volume(e) => e.class(),
            Error::Disk(e) => e.class(),
            Error::Record(e) => e.class(),
            Error::File(e) => e.class(),
            Error::Layers(e) => e.class(),
            Error::Limits(e) => e.class(),
            Error::View(e) => e.class(),
            Error::Podman(podman::node::Error { source, .. }) => class(source, FileRole::Own),
            Error::ContainerdConfig(e) => e.class(),
            Error::Containerd(e) => e.class(),
            Error::Version(_) | Error::ContainerdSilent { .. } => Class::Transient,
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
            Error::Dependents(podman::dependents::Error { source, .. }) => class(source, FileRole::Own),
            Error::Io(error) => error.class(FileRole::Named),
        }
    }
}

impl From<IoError> for Error {
    fn from(error: IoError) -> Self {
        Error::Io(error)
    }
}
