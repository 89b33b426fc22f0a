//! What `--confine`, `--nice` and `--die-with-parent` ask of this process, before it has a second thread.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::args::OrderArgs;
use crate::build::share;
use crate::model::class::Class;
use crate::sys::confine::{Confined, Confinement};
use crate::sys::{private, process};

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
    /// The process is not confined, or in part.
    #[error(transparent)]
    Confine(#[from] crate::sys::confine::Error),
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
            Error::Confine(error) => error.class(),
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
    }
    if let Some(nice) = args.nice {
        process::be_nice(nice).map_err(failed("lowering the priority"))?;
    }
    if args.confine
        && let Err(error) = process::offer_to_oom_killer(OOM_SCORE)
    {
        // A read-only /proc, as some containers have it, is no reason not to build.
        tracing::warn!(%error, "raising the score for the kernel's out-of-memory killer");
    }
    Ok(())
}

/// Confines the process to `volume`, to what builders in `share` write for each other and read of each other, to the OCI
/// layout that is imported, and to `result`, which is written at the end.
pub(super) fn enter(
    volume: &Path,
    share: Option<&Path>,
    layout: Option<&Path>,
    result: Option<&Path>,
) -> Result<Confined, Error> {
    let mut confinement = Confinement::default();
    confinement.writable.push(volume.to_owned());
    confinement.writable.extend(share.map(share::layers));
    confinement.readable.extend([share, layout].into_iter().flatten().map(Path::to_owned));
    // A rule takes a descriptor, so what will be written has to be there.
    for dir in &confinement.writable {
        let failed = |source| Error::Directory { path: dir.display().to_string(), source };
        private::create_dir(dir).map_err(failed)?;
    }
    if let Some(path) = result {
        match OpenOptions::new().append(true).create(true).mode(0o600).open(path) {
            Ok(_) => confinement.results.push(path.to_owned()),
            Err(error) => tracing::warn!(path = %path.display(), %error, "opening the result file"),
        }
    }
    Ok(confinement.enter()?)
}
