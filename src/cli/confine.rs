//! Process priority (`--nice`, `--die-with-parent`), and the confinement of each process of a build.

use std::io;
use std::path::Path;

use super::args::BuildArgs;
use crate::builder::order::BuildRequest;
use crate::builder::share;
use crate::volume;
use larder_model::class::Class;
use larder_model::io_error::{FileRole, class};
use larder_model::job::{LayerFormat, VolumeKind};
use larder_sys::confine::{Confinement, Privileges, Role, Signals};
use larder_sys::{Dir, private, process};

/// The OOM score adjustment of a build, out of 1000. The kernel kills the build before a daemon with score 0,
/// whatever their memory use (proc_pid_oom_score_adj(5)).
const OOM_SCORE: i32 = 500;

/// The errors of setting up the process.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The parent has ended, so no process waits for the build.
    #[error("the process that started this build has ended")]
    Orphan,
    /// A system call failed.
    #[error("{what}: {source}")]
    Process {
        /// The action that failed.
        what: &'static str,
        /// The error of the system call.
        r#source: io::Error,
    },
    /// A directory of the build cannot be created.
    #[error("creating {path}: {source}")]
    Directory {
        /// Path of the directory.
        path: String,
        /// The error of the system call.
        r#source: io::Error,
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
            Error::Directory { source, .. } => class(source, FileRole::Given),
            Error::Volume(error) => error.class(),
        }
    }
}

/// Ties the process to its parent, and sets its priority.
pub(super) fn settle(args: &BuildArgs) -> Result<(), Error> {
    let failed = |what| move |source| Error::Process { what, source };
    if let Some(parent) = args.die_with_parent {
        let tied = process::die_with_parent(parent).map_err(failed("tying this process to its parent"))?;
        if !tied {
            return Err(Error::Orphan);
        }
        if let Err(error) = process::raise_oom_score(OOM_SCORE) {
            // Some containers have a read-only /proc. That must not fail the build.
            tracing::warn!(%error, "cannot raise the score for the kernel's out-of-memory killer");
        }
    }
    if let Some(nice) = args.nice {
        process::lower_priority(nice).map_err(failed("lowering the priority"))?;
    }
    Ok(())
}

/// Returns the confinement of the extractor. It can access the volume, the files that builders exchange in
/// the shared directory, and the imported archive if that is a directory. Creates the directories that the
/// extractor fills.
pub(super) fn extractor(order: &BuildRequest) -> Result<Confinement, Error> {
    let volume = &order.volume;
    let share = order.share.as_ref().map(|share| share.dir.as_path());
    let mut writable = vec![volume.clone()];
    writable.extend(share.map(share::layers));
    for dir in &writable {
        let failed = |source| Error::Directory { path: dir.display().to_string(), source };
        private::create_dir(dir).map_err(failed)?;
    }
    if order.volume_kind == VolumeKind::Mounted {
        // Inside the new root, every path of this list is a mount point.
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

/// Returns the privileges for writing layers. EROFS images are owned by this process, so writing them needs
/// no capability.
fn privileges(order: &BuildRequest, shares: bool) -> Privileges {
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

/// Returns the confinement of the fetcher. It can access only the files for name resolution and TLS.
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

/// Returns the confinement of a process that resolves the images of an order: a fetcher, or a reader of the
/// archive.
pub(super) fn resolver(order: &BuildRequest) -> Confinement {
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
