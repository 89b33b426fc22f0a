//! `larder build --volume-kind disk` and `block`: the process that makes, mounts, checks and seals the disk, and another one
//! that fills it.
//!
//! ```text
//!              ┌────────────────────────────────────────────────┐
//!   job ─────► │ keeper: a mount namespace; mkfs, e2fsck, mount │ ─────► events, result file, exit code
//!              └──────┬─────────────────────────────────▲───────┘
//!    job; answers     │ stdin, a socket                 │ stdout: events
//!              ┌──────▼─────────────────────────────────┴───────┐
//!              │ the same command with --kept, confined: fills  │
//!              └────────────────────────────────────────────────┘
//! ```
//!
//! The keeper reads nothing of what registries send and parses nothing that lies on a volume; the other one can neither mount
//! nor reach the disk below its file system. Killed, either leaves neither mount nor loop device: the one dies with the other,
//! and both with them.

mod child;
mod mounts;

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::args::DiskArgs;
use super::build::usage_outcome;
use crate::build;
use crate::build::cancel::Cancel;
use crate::build::events::Events;
use crate::build::order::Order;
use crate::model::class::Class;
use crate::model::event::{Event, Outcome, Status};
use crate::model::job::VolumeKind;
use crate::sys::mount;
use crate::volume::disk::{self, Disk, Entered, Error, Left, Request, Taken};
use crate::volume::seal::Files;
use child::{Child, Said};
use mounts::Mounts;

pub(super) use child::Role;

/// Meets the keeper that started this process; it has the text of the job. To be called once.
pub(super) fn meet() -> io::Result<(build::keeper::Keeper, Option<Vec<u8>>)> {
    let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let (keeper, greeting) = build::keeper::Keeper::meet(stream)?;
    Ok((keeper, greeting.job.map(String::into_bytes)))
}

/// A build with a disk.
#[derive(Debug)]
pub(super) struct Keeping {
    /// The order, of which only the volume matters here.
    pub(super) order: Order,
    pub(super) wishes: DiskArgs,
    /// How this process was called.
    pub(super) argv: Vec<OsString>,
    /// The text of the job.
    pub(super) job: Option<String>,
}

/// Gives this process a mount namespace of its own. To be called before it has a second thread.
pub(super) fn enter_namespace() -> Result<(), Error> {
    let what = "for the disk".to_owned();
    mount::private_namespace().map_err(|source| Error::Io { doing: "making a mount namespace", what, source })
}

/// Carries a build out. Whatever happens is in the outcome.
pub(super) async fn keep(keeping: Keeping, events: Events, cancel: Cancel) -> Outcome {
    let started = Instant::now();
    let keeper = Keeper { keeping: Arc::new(keeping), events, cancel: cancel.clone() };
    let mut outcome = keeper.run().await.unwrap_or_else(|outcome| outcome);
    // The other one knows of a signal, the keeper knows why.
    if outcome.class == Some(Class::Cancelled)
        && let Some((class, message)) = cancel.explanation()
    {
        let exit_code = cancel.exit_code().unwrap_or(class.exit_code());
        outcome = Outcome { exit_code, ..usage_outcome(class, &message) };
    }
    outcome.elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    outcome
}

struct Keeper {
    keeping: Arc<Keeping>,
    events: Events,
    cancel: Cancel,
}

/// A disk that was mounted for a while.
struct Used {
    disk: Disk,
    /// What the other one said.
    said: Said,
    /// The seal of the volume on it, where the other one says that it is sealed, and whether it was written directly.
    seal: Option<(Files, bool)>,
}

impl Keeper {
    /// An error is an outcome too: of what went wrong before or after the filling.
    async fn run(&self) -> Result<Outcome, Outcome> {
        let keeping = Arc::clone(&self.keeping);
        match blocking(move || keeping.take()).await? {
            Taken::Sealed(entered) => self.sealed(entered).await,
            Taken::Filling(disk) => self.fill(*disk).await,
        }
    }

    /// A disk that is sealed: the other one says whether it is this job's.
    async fn sealed(&self, entered: Entered) -> Result<Outcome, Outcome> {
        let at = self.keeping.order.volume.clone();
        let _attached = blocking(move || entered.attach(&at)).await?;
        let said = self.child(Role::Fill, None).await;
        if let Some(event) = said.sealed {
            self.events.emit(event);
        }
        Ok(said.outcome)
    }

    async fn fill(&self, mut disk: Disk) -> Result<Outcome, Outcome> {
        if disk.left() != Left::New {
            let role = if disk.left() == Left::Unclean { Role::Prove } else { Role::Sweep };
            let used = self.used(disk, role).await?;
            disk = used.disk;
            let outcome = used.said.outcome;
            match (outcome.status, outcome.class) {
                (Status::Ok, _) => {}
                (_, Some(Class::Corrupt | Class::Internal | Class::NotFound)) if role == Role::Prove => {
                    self.warn(format!("the disk is formatted anew: {}", outcome.message));
                    disk = blocking(move || disk.format().map(|()| disk)).await?;
                }
                _ => return Ok(outcome),
            }
        }
        let Used { disk, said, seal } = self.used(disk, Role::Fill).await?;
        let Some((seal, direct)) = seal else { return Ok(said.outcome) };
        let shrink = self.keeping.wishes.shrink;
        blocking(move || disk.seal(&seal, shrink, direct)).await?;
        if let Some(event) = said.sealed {
            self.events.emit(event);
        }
        Ok(said.outcome)
    }

    /// Mounts the disk, has the other one do `role`, and unmounts it.
    async fn used(&self, disk: Disk, role: Role) -> Result<Used, Outcome> {
        let mounting = move || disk.mount().map(|mounted| (disk, mounted));
        let (disk, mounted) = blocking(mounting).await?;
        let direct = mounted.is_direct();
        if role == Role::Fill && !direct {
            self.warn("the disk is written through the page cache of this machine: its file system has no direct I/O".into());
        }
        let device = matches!(self.keeping.order.volume_kind, VolumeKind::Block);
        let said = self.child(role, device.then(|| mounted.path().to_owned())).await;
        let reads = role == Role::Fill && said.outcome.status == Status::Ok;
        let unmounting = move || {
            let seal = if reads { Some(mounted.seal()) } else { None };
            disk.unmount(mounted)?;
            Ok((disk, seal.transpose()?))
        };
        match blocking(unmounting).await {
            Ok((disk, seal)) => Ok(Used { disk, said, seal: seal.map(|seal| (seal, direct)) }),
            // What went wrong first comes first.
            Err(mut last) if said.outcome.status == Status::Failed => {
                let mut outcome = said.outcome;
                outcome.failures.append(&mut last.failures);
                Err(outcome)
            }
            Err(last) => Err(last),
        }
    }

    async fn child(&self, role: Role, volume: Option<PathBuf>) -> Said {
        if self.cancel.reason().is_some() {
            return Said::failed(Class::Cancelled, "interrupted");
        }
        let mounts = Mounts::new(&self.keeping.order);
        match Child::start(&self.keeping, role, volume) {
            Ok(child) => child.run(&self.events, &self.cancel, mounts).await,
            Err(e) => {
                Said::failed(Class::Internal, &format!("starting the process that fills the disk: {e}"))
            }
        }
    }

    fn warn(&self, message: String) {
        self.events.emit(Event::Warning { message });
    }
}

impl Keeping {
    fn take(&self) -> Result<Taken, Error> {
        let job = self.order.identity().digest();
        let (path, size, sparse) = (&*self.order.volume, self.order.size.0, self.wishes.sparse);
        let request = Request { path, job: &job, size, sparse };
        match self.order.volume_kind {
            VolumeKind::Block => disk::take_device(&request, self.wishes.format_device)
                .map(|disk| Taken::Filling(Box::new(disk))),
            _ => disk::take(&request),
        }
    }
}

/// Runs `work` where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Outcome> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| usage_outcome(error.class(), &error.to_string())),
        Err(e) => Err(usage_outcome(Class::Internal, &format!("a step of the build ended: {e}"))),
    }
}
