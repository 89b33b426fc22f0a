//! The place of a process among others (`--nice`, `--die-with-parent`), and what stays within reach of each process of a build.

use std::io;
use std::path::Path;

use super::args::OrderArgs;
use crate::builder::order::Order;
use crate::builder::share;
use crate::volume;
use larder_model::class::Class;
use larder_model::job::{LayerFormat, VolumeKind};
use larder_sys::confine::{Confinement, Privileges, Role, Signals};
use larder_sys::{Dir, private, process};

/// Of 1000: well before a daemon, whose score is 0, and before it whatever the memory of each (proc_pid_oom_score_adj(5)).
const OOM_SCORE: i32 = 500;

/// Why the process cannot be what was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Nobody waits for the build.
    #[error("the process that started this build has ended")]
    Orphan,
    /// The kernel refuses.
    #[error("{what}: {source}")]
    Process {
        /// What was being done.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A directory to be filled cannot be made.
    #[error("creating {path}: {source}")]
    Directory {
        /// Where.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The volume cannot be used.
    #[error(transparent)]
    Volume(#[from] volume::Error),
}

impl Error {
    pub(super) fn class(&self) -> Class {
        match self {
            Error::Orphan => Class::Cancelled,
            Error::Process { .. } => Class::Internal,
            Error::Directory { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => Class::Denied,
                io::ErrorKind::StorageFull => Class::NoSpace,
                _ => Class::Invalid,
            },
            Error::Volume(error) => error.class(),
        }
    }
}

/// Ties the process to its parent, and sets its place among others.
pub(super) fn settle(args: &OrderArgs) -> Result<(), Error> {
    let failed = |what| move |source| Error::Process { what, source };
    if let Some(parent) = args.die_with_parent {
        let tied = process::die_with_parent(parent).map_err(failed("asking to end with the parent"))?;
        if !tied {
            return Err(Error::Orphan);
        }
        if let Err(error) = process::raise_oom_score(OOM_SCORE) {
            // A read-only /proc, as some containers have it, is no reason not to build.
            tracing::warn!(%error, "raising the score for the kernel's out-of-memory killer");
        }
    }
    if let Some(nice) = args.nice {
        process::lower_priority(nice).map_err(failed("lowering the priority"))?;
    }
    Ok(())
}

/// The extractor: the volume, what builders in the shared directory write for each other and read of each other, and the archive
/// that is imported, if it is a directory. Directories that it fills are created.
pub(super) fn extractor(order: &Order) -> Result<Confinement, Error> {
    let volume = &order.volume;
    let share = order.share.as_ref().map(|share| share.dir.as_path());
    let mut writable = vec![volume.clone()];
    writable.extend(share.map(share::layers));
    for dir in &writable {
        let failed = |source| Error::Directory { path: dir.display().to_string(), source };
        private::create_dir(dir).map_err(failed)?;
    }
    if order.volume_kind == VolumeKind::Mounted {
        // Within the new root every path of this list is a mount point.
        volume::mounted::cap(volume, order.size)?;
    }
    let readable = [share.map(Path::to_owned), order.source.directory()].into_iter().flatten().collect();
    Ok(Confinement {
        role: Role::Extractor,
        privileges: privileges(order, share.is_some()),
        writable,
        readable,
        temporary: false,
        signals: Signals::Handled,
    })
}

/// Images of layers are files of this process's own, so writing them takes no capability.
fn privileges(order: &Order, shares: bool) -> Privileges {
    let format = match volume::job::format_at(&order.volume) {
        Some(format) if !order.layer_format_given => format,
        _ => order.layer_format,
    };
    let own = Dir::open(&order.volume).and_then(|dir| dir.stat_self());
    let own = own.is_ok_and(|stat| stat.uid == process::ids().0);
    match format {
        LayerFormat::Erofs if own && !shares => Privileges::None,
        LayerFormat::Erofs if own => Privileges::ReadLayers,
        _ => Privileges::WriteLayers,
    }
}

/// The fetcher: no file but those of name resolution and TLS.
pub(super) fn fetcher() -> Confinement {
    let nothing = Vec::new;
    Confinement {
        role: Role::Fetcher,
        privileges: Privileges::None,
        writable: nothing(),
        readable: nothing(),
        temporary: false,
        signals: Signals::Handled,
    }
}

/// A process that resolves the images of an order: a fetcher, or a reader of the archive.
pub(super) fn resolver(order: &Order) -> Confinement {
    match order.source.is_archive() {
        false => fetcher(),
        true => Confinement {
            role: Role::Reader,
            privileges: Privileges::None,
            writable: Vec::new(),
            readable: order.source.directory().into_iter().collect(),
            temporary: false,
            signals: Signals::Handled,
        },
    }
}
