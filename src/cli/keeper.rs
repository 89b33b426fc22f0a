//! The supervisor of `larder build` and `larder import`. It owns keys, secrets and mounts, and reads no
//! untrusted content.
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
//! Children run the same command with `--kept ROLE`. Each is confined ([`sys::confine`](larder_sys::confine))
//! before it reads the first untrusted byte. The supervisor answers their requests ([`desk`]). If any process
//! is killed, no mount or loop device is left behind: children end with their parent, and mounts end with
//! both.

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
use super::call::Role;
use super::outcome::usage_outcome;
use crate::builder;
use crate::builder::cancel::Cancel;
use crate::builder::events::Events;
use crate::builder::order::{BuildRequest, ImageSource};
use crate::builder::supervisor::Greeting;
use crate::config::Config;
use crate::volume::disk::{self, Disk, Entered, Error, Left, Request, Taken};
use crate::volume::seal::Files;
use child::{Child, ChildReport};
use desk::Desk;
use larder_model::class::Class;
use larder_model::event::milliseconds;
use larder_model::event::{Event, Outcome, Status};
use larder_model::io_error::Context as _;
use larder_model::job::VolumeKind;
use larder_model::key::SigningKey;
use larder_sys::mount;

/// Connects to the supervisor that started this process, and receives the text of the job. Must be called
/// only once.
///
/// # Errors
/// The connection fails.
pub(super) fn meet() -> io::Result<(builder::supervisor::SupervisorClient, Greeting, Vec<OwnedFd>)> {
    let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    builder::supervisor::SupervisorClient::meet(stream)
}

/// Parameters of a build that this process supervises.
#[derive(Debug)]
pub(super) struct BuildParams {
    /// The build order, merged from flags, job and configuration.
    pub(super) order: BuildRequest,
    /// The configuration of this process.
    pub(super) config: Config,
    pub(super) disk_options: DiskArgs,
    /// The command line of this process.
    pub(super) argv: Vec<OsString>,
    /// The text of the job. `None` if no job was given.
    pub(super) job: Option<String>,
    /// The key that signs the volume. It never leaves this process.
    pub(super) signer: Option<SigningKey>,
    /// The archive that was read from standard input.
    pub(super) archive: Option<File>,
}

/// Moves this process into its own mount namespace, and makes mounts below `share` visible to its children.
/// Must be called before a second thread is started.
pub(super) fn enter_namespace(share: Option<&Path>) -> Result<(), Error> {
    let entered = mount::private_namespace().and_then(|()| share.map_or(Ok(()), mount::share_below));
    Ok(entered.context("creating a mount namespace", "for the disk")?)
}

/// Runs a build. Errors are part of the outcome.
pub(super) async fn supervise(params: BuildParams, events: Events, cancel: Cancel) -> Outcome {
    let started = Instant::now();
    let params = Arc::new(params);
    let desk = Arc::new(Desk::new(&params));
    let supervisor = Supervisor { params, desk, events, cancel: cancel.clone() };
    let mut outcome = supervisor.run().await.unwrap_or_else(|outcome| outcome);
    // The child only sees the signal. The supervisor knows the reason.
    if outcome.class == Some(Class::Cancelled)
        && let Some((class, message)) = cancel.explanation()
    {
        let exit_code = cancel.exit_code().unwrap_or(class.exit_code());
        outcome = Outcome { exit_code, ..usage_outcome(class, &message) };
    }
    outcome.elapsed_ms = milliseconds(started.elapsed());
    outcome
}

struct Supervisor {
    params: Arc<BuildParams>,
    desk: Arc<Desk>,
    events: Events,
    cancel: Cancel,
}

/// A disk that was mounted while a child ran.
struct MountedRun {
    disk: Disk,
    /// The report of the child.
    report: ChildReport,
    /// The seal of the volume, if the child reported it as sealed, and whether the disk was written with
    /// direct I/O.
    seal: Option<(Files, bool)>,
}

impl Supervisor {
    /// Runs the build. An `Err` is the outcome of a step before or after the child.
    async fn run(&self) -> Result<Outcome, Outcome> {
        if !self.params.order.volume_kind.is_disk() {
            let volume = &self.params.order.volume;
            let is_new = !volume.exists();
            let report = self.child(Role::Fill, None).await;
            if is_new && report.outcome.status == Status::Failed {
                // The directory was created to confine the extractor to it. If it is not empty, removing it
                // fails and it stays.
                let _ = std::fs::remove_dir(volume);
            }
            if let Some(event) = report.sealed {
                self.events.emit(event);
            }
            return Ok(report.outcome);
        }
        let params = Arc::clone(&self.params);
        match blocking(move || params.take()).await? {
            Taken::Sealed(entered) => self.sealed(entered).await,
            Taken::Filling(disk) => self.fill(*disk).await,
        }
    }

    /// Handles a sealed disk: the child checks whether it belongs to this job.
    async fn sealed(&self, entered: Entered) -> Result<Outcome, Outcome> {
        let at = self.params.order.volume.clone();
        let _attached = blocking(move || entered.attach(&at)).await?;
        let report = self.child(Role::Fill, None).await;
        if let Some(event) = report.sealed {
            self.events.emit(event);
        }
        Ok(report.outcome)
    }

    async fn fill(&self, mut disk: Disk) -> Result<Outcome, Outcome> {
        if disk.left() != Left::New {
            let role = if disk.left() == Left::Unclean { Role::Prove } else { Role::Sweep };
            let run = self.run_mounted(disk, role).await?;
            disk = run.disk;
            let outcome = run.report.outcome;
            match (outcome.status, outcome.class) {
                (Status::Ok, _) => {}
                (_, Some(Class::Corrupt | Class::Internal | Class::NotFound)) if role == Role::Prove => {
                    self.warn(format!("formatting the disk again: {}", outcome.message));
                    disk = blocking(move || disk.format().map(|()| disk)).await?;
                }
                _ => return Ok(outcome),
            }
        }
        let MountedRun { disk, report, seal } = self.run_mounted(disk, Role::Fill).await?;
        let Some((seal, direct)) = seal else { return Ok(report.outcome) };
        let shrink = self.params.disk_options.shrink;
        blocking(move || disk.seal(&seal, shrink, direct)).await?;
        if let Some(event) = report.sealed {
            self.events.emit(event);
        }
        Ok(report.outcome)
    }

    /// Mounts the disk, runs a child of `role`, and unmounts it.
    async fn run_mounted(&self, disk: Disk, role: Role) -> Result<MountedRun, Outcome> {
        let mounting = move || disk.mount().map(|mounted| (disk, mounted));
        let (disk, mounted) = blocking(mounting).await?;
        let direct = mounted.is_direct();
        if role == Role::Fill && !direct {
            self.warn("writing the disk through the page cache of this host: its file system does not support direct I/O".into());
        }
        let device = matches!(self.params.order.volume_kind, VolumeKind::Block);
        let report = self.child(role, device.then(|| mounted.path().to_owned())).await;
        let reads = role == Role::Fill && report.outcome.status == Status::Ok;
        let unmounting = move || {
            let seal = if reads { Some(mounted.seal()) } else { None };
            disk.unmount(mounted)?;
            Ok((disk, seal.transpose()?))
        };
        match blocking(unmounting).await {
            Ok((disk, seal)) => Ok(MountedRun { disk, report, seal: seal.map(|seal| (seal, direct)) }),
            // The first error comes first.
            Err(mut last) if report.outcome.status == Status::Failed => {
                let mut outcome = report.outcome;
                outcome.failures.append(&mut last.failures);
                Err(outcome)
            }
            Err(last) => Err(last),
        }
    }

    async fn child(&self, role: Role, volume: Option<PathBuf>) -> ChildReport {
        if self.cancel.reason().is_some() {
            return ChildReport::failed(Class::Cancelled, "interrupted");
        }
        let failed = |e: io::Error| {
            ChildReport::failed(Class::Internal, &format!("starting the processes of the build: {e}"))
        };
        let fetches = role == Role::Fill && self.params.order.source == ImageSource::Registries;
        let (fetcher, connection) = match fetches.then(|| self.fetcher()).transpose() {
            Ok(Some((fetcher, connection))) => (Some(fetcher), Some(connection)),
            Ok(None) => (None, None),
            Err(e) => return failed(e),
        };
        let child = self.start(role, volume, connection.as_ref().map(|connection| connection.as_fd()));
        // The fetcher ends when the extractor closes its copy of the connection.
        drop(connection);
        let child = match child {
            Ok(child) => child,
            Err(e) => return failed(e),
        };
        let fetcher = fetcher.map(|fetcher| tokio::spawn(fetcher.forward_events(self.events.clone())));
        let mut report = child.run(&self.events, &self.cancel).await;
        if let Some(mut fetcher) = fetcher {
            // The extractor has ended, so the fetcher must end too.
            let ended = timeout(child::LINGER, &mut fetcher).await;
            if ended.is_err() {
                // Aborting the task kills the process.
                fetcher.abort();
            }
            if let Ok(Ok(Some(why))) = ended
                && report.outcome.class == Some(Class::Internal)
            {
                report.outcome.message = format!("{}: {why}", report.outcome.message);
            }
        }
        report
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
        let (child, stream) = Child::start(&self.params, role, volume, self.desk.greeting(), fetching)?;
        self.desk.serve(role, stream)?;
        Ok(child)
    }

    fn warn(&self, message: String) {
        self.events.emit(Event::Warning { message });
    }
}

impl BuildParams {
    fn take(&self) -> Result<Taken, Error> {
        let job = self.order.identity().digest();
        let (path, size, sparse) = (&*self.order.volume, self.order.size.0, self.disk_options.sparse);
        let request = Request { path, job: &job, size, sparse };
        match self.order.volume_kind {
            VolumeKind::Block => disk::take_device(&request, self.disk_options.format_device)
                .map(|disk| Taken::Filling(Box::new(disk))),
            _ => disk::take(&request),
        }
    }
}

/// Runs `work` on a thread that can block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Outcome> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| usage_outcome(error.class(), &error.to_string())),
        Err(e) => Err(usage_outcome(Class::Internal, &format!("a step of the build panicked: {e}"))),
    }
}
