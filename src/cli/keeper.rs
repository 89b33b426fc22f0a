//! The supervisor of `larder build` and `larder import`: it holds keys, secrets and mounts, and reads nothing that a stranger wrote.
//!
//! ```text
//!                  job ─► supervisor ─► events, result file, exit code
//!                           │  mkfs, e2fsck, mount; credentials; signs
//!            ┌──────────────┴──────────────┐
//!   registry ◄─► fetcher ──── layers ────► extractor ─► volume
//!            sockets, credentials          decodes, parses, writes;
//!            writes no file                no network, no credentials
//! ```
//!
//! Children are the same command with `--kept ROLE`. Each is confined ([`sys::confine`](larder_sys::confine)) before it reads the first
//! untrusted byte. The supervisor answers what they ask for ([`desk`]). Killed, none leaves a mount or a loop device: children end with their
//! parent, and mounts with both.

mod child;
mod desk;
mod mounts;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tokio::time::timeout;

use super::args::DiskArgs;
use super::build::usage_outcome;
use crate::builder;
use crate::builder::cancel::Cancel;
use crate::builder::events::Events;
use crate::builder::keeper::Greeting;
use crate::builder::order::{Order, SourceOrder};
use crate::config::Config;
use crate::volume::disk::{self, Disk, Entered, Error, Left, Request, Taken};
use crate::volume::seal::Files;
use child::{Child, Said};
use desk::Desk;
use larder_model::class::Class;
use larder_model::event::{Event, Outcome, Status};
use larder_model::job::VolumeKind;
use larder_model::key::SigningKey;
use larder_sys::mount;

pub(super) use child::Role;

/// Meets the supervisor that started this process; it has the text of the job. To be called once.
///
/// # Errors
/// The connection fails.
pub(super) fn meet() -> io::Result<(builder::keeper::Keeper, Greeting, Vec<OwnedFd>)> {
    let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    builder::keeper::Keeper::meet(stream)
}

/// A build, as its supervisor knows it.
#[derive(Debug)]
pub(super) struct Keeping {
    /// The order.
    pub(super) order: Order,
    /// The configuration.
    pub(super) config: Config,
    pub(super) wishes: DiskArgs,
    /// How this process was called.
    pub(super) argv: Vec<OsString>,
    /// The text of the job.
    pub(super) job: Option<String>,
    /// The key by which the volume is signed. It stays in this process.
    pub(super) signer: Option<SigningKey>,
    /// The archive that came on standard input.
    pub(super) archive: Option<File>,
}

/// Gives this process a mount namespace of its own, and lets its children see what it mounts in `share`. To be called before it has a second thread.
pub(super) fn enter_namespace(share: Option<&Path>) -> Result<(), Error> {
    let what = "for the disk".to_owned();
    let entered = mount::private_namespace().and_then(|()| share.map_or(Ok(()), mount::share_below));
    entered.map_err(|source| Error::Io { doing: "making a mount namespace", what, source })
}

/// Carries out a build. Whatever happens is in the outcome.
pub(super) async fn keep(keeping: Keeping, events: Events, cancel: Cancel) -> Outcome {
    let started = Instant::now();
    let keeping = Arc::new(keeping);
    let desk = Arc::new(Desk::new(&keeping));
    let keeper = Keeper { keeping, desk, events, cancel: cancel.clone() };
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
    desk: Arc<Desk>,
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
        if !self.keeping.order.volume_kind.is_disk() {
            let volume = &self.keeping.order.volume;
            let is_new = !volume.exists();
            let said = self.child(Role::Fill, None).await;
            if is_new && said.outcome.status == Status::Failed {
                // Made for the extractor to be confined to. One that holds something stays.
                let _ = std::fs::remove_dir(volume);
            }
            if let Some(event) = said.sealed {
                self.events.emit(event);
            }
            return Ok(said.outcome);
        }
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
        let failed = |e: io::Error| {
            Said::failed(Class::Internal, &format!("starting the processes of the build: {e}"))
        };
        let fetches = role == Role::Fill && self.keeping.order.source == SourceOrder::Registries;
        let (fetcher, connection) = match fetches.then(|| self.fetcher()).transpose() {
            Ok(Some((fetcher, connection))) => (Some(fetcher), Some(connection)),
            Ok(None) => (None, None),
            Err(e) => return failed(e),
        };
        let child = self.start(role, volume, connection.as_ref().map(|connection| connection.as_fd()));
        // The fetcher ends with the extractor's copy of it.
        drop(connection);
        let child = match child {
            Ok(child) => child,
            Err(e) => return failed(e),
        };
        let fetcher = fetcher.map(|fetcher| tokio::spawn(fetcher.attend(self.events.clone())));
        let mut said = child.run(&self.events, &self.cancel).await;
        if let Some(mut fetcher) = fetcher {
            // The extractor is gone, so there is nobody to fetch for.
            let ended = timeout(child::LINGER, &mut fetcher).await;
            if ended.is_err() {
                // Its process is killed with it.
                fetcher.abort();
            }
            if let Ok(Ok(Some(why))) = ended
                && said.outcome.class == Some(Class::Internal)
            {
                said.outcome.message = format!("{}: {why}", said.outcome.message);
            }
        }
        said
    }

    /// Starts the fetcher, and returns the extractor's end of the connection to it.
    fn fetcher(&self) -> io::Result<(Child, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((self.start(Role::Fetch, None, Some(theirs.as_fd()))?, ours.into()))
    }

    fn start(
        &self,
        role: Role,
        volume: Option<PathBuf>,
        fetching: Option<BorrowedFd<'_>>,
    ) -> io::Result<Child> {
        let (child, stream) = Child::start(&self.keeping, role, volume, self.desk.greeting(), fetching)?;
        self.desk.serve(role, stream)?;
        Ok(child)
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
