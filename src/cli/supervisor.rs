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
//! Children run `larder internal build-child ROLE` and read the same flags. Each is confined
//! ([`sys::confine`](larder_sys::confine)) before it reads the first untrusted byte. The supervisor answers
//! their requests ([`requests`]). If any process is killed, no mount or loop device is left behind: children
//! end with their parent, and mounts end with both.

mod child;
mod disk;
mod mounts;
mod requests;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tokio::time::timeout;

use super::args::DiskArgs;
use super::args::internal::ChildRole;
use super::outcome::usage_outcome;
use crate::builder::cancel::Cancel;
use crate::builder::events::Events;
use crate::builder::order::{BuildRequest, ImageSource};
use crate::config::Config;
use crate::volume;
use child::{Child, ChildReport};
pub(super) use disk::enter_namespace;
use larder_model::class::Class;
use larder_model::event::{Event, Outcome, Status};
use larder_model::key::SigningKey;
use larder_model::plan_report::PlanReport;
use larder_model::size::ByteSize;
use requests::RequestHandler;

/// Parameters of a build that this process supervises.
#[derive(Debug)]
pub(super) struct BuildParams {
    /// The build, merged from flags, job and configuration.
    pub(super) request: BuildRequest,
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
    /// `true` if the content of the volume is deleted first.
    pub(super) starts_over: bool,
    /// Size of the volume, if it was computed.
    pub(super) computed_size: OnceLock<ByteSize>,
}

impl BuildParams {
    /// Returns the size limit of the volume.
    fn size(&self) -> ByteSize {
        *self.computed_size.get().unwrap_or(&self.request.size)
    }
}

/// Runs a build. Errors are part of the outcome.
pub(super) async fn supervise(params: BuildParams, events: Events, cancel: Cancel) -> Outcome {
    let started = Instant::now();
    let params = Arc::new(params);
    let handler = Arc::new(RequestHandler::new(&params));
    let supervisor = Supervisor { params, handler, events, cancel: cancel.clone() };
    let mut outcome = supervisor.run().await.unwrap_or_else(|outcome| outcome);
    // The child only sees the signal. The supervisor knows the reason.
    if outcome.class == Some(Class::Cancelled)
        && let Some((class, message)) = cancel.explanation()
    {
        let exit_code = cancel.exit_code().unwrap_or(class.exit_code());
        outcome = Outcome { exit_code, ..usage_outcome(class, &message) };
    }
    outcome.elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    outcome
}

struct Supervisor {
    params: Arc<BuildParams>,
    handler: Arc<RequestHandler>,
    events: Events,
    cancel: Cancel,
}

impl Supervisor {
    /// Runs the build. An `Err` is the outcome of a step before or after the child.
    async fn run(&self) -> Result<Outcome, Outcome> {
        let resolved = if self.params.starts_over { self.start_over().await? } else { None };
        self.compute_size(resolved).await?;
        match self.params.request.volume_kind.is_disk() {
            true => self.build_on_disk().await,
            false => Ok(self.build_in_directory().await),
        }
    }

    /// Deletes the content of the volume. The images of registries are resolved first, and returned, so that
    /// a wrong name deletes nothing.
    async fn start_over(&self) -> Result<Option<PlanReport>, Outcome> {
        let request = &self.params.request;
        let resolved = match request.source {
            ImageSource::Registries => Some(self.resolve().await?),
            ImageSource::Archive { .. } => None,
        };
        let (path, kind) = (request.volume.clone(), request.volume_kind);
        let cleared = crate::blocking::spawn(move || volume::start_over(&path, kind)).await;
        let cleared = cleared.map_err(|e| {
            usage_outcome(Class::Internal, &format!("the task that clears the volume failed: {e}"))
        })?;
        cleared.map_err(|e| usage_outcome(e.class(), &e.to_string()))?;
        Ok(resolved)
    }

    /// Computes the size of the volume from the images, if it is not given. A sealed volume keeps its size.
    /// The reader of an archive computes the size itself.
    async fn compute_size(&self, resolved: Option<PlanReport>) -> Result<(), Outcome> {
        let request = &self.params.request;
        if request.size != ByteSize(0) || request.source != ImageSource::Registries {
            return Ok(());
        }
        let path = request.volume.clone();
        let sealed = crate::blocking::spawn(move || volume::seal::read(&path).ok()).await.ok().flatten();
        let size = match (sealed, resolved) {
            (Some(sealed), _) => sealed.content.size,
            (None, resolved) => {
                let report = match resolved {
                    Some(report) => report,
                    None => self.resolve().await?,
                };
                let size = report.admission.automatic_size();
                self.events.emit(Event::Sized { size });
                size
            }
        };
        // Only this function sets it.
        let _ = self.params.computed_size.set(size);
        Ok(())
    }

    /// Resolves the images in another process.
    async fn resolve(&self) -> Result<PlanReport, Outcome> {
        let handler = Arc::clone(&self.handler);
        let resolving = crate::blocking::spawn(move || handler.resolve());
        let resolved = tokio::select! {
            resolved = resolving => resolved,
            () = self.cancel.cancelled() => return Err(usage_outcome(Class::Cancelled, "interrupted")),
        };
        let resolved = resolved.map_err(|e| {
            usage_outcome(Class::Internal, &format!("the task that resolves the images failed: {e}"))
        })?;
        resolved.map_err(Outcome::failed)
    }

    async fn build_in_directory(&self) -> Outcome {
        let volume = &self.params.request.volume;
        let is_new = !volume.exists();
        let report = self.child(ChildRole::Fill, None).await;
        if is_new && report.outcome.status == Status::Failed {
            // The directory was created to confine the extractor to it. If it is not empty, removing it
            // fails and it stays.
            let _ = std::fs::remove_dir(volume);
        }
        self.finish(report)
    }

    /// Reports that the volume is sealed, if the child did so, and returns the outcome.
    fn finish(&self, report: ChildReport) -> Outcome {
        if let Some(event) = report.sealed {
            self.events.emit(event);
        }
        report.outcome
    }

    /// Runs a child of `role` until it ends, together with the fetcher that it needs.
    async fn child(&self, role: ChildRole, volume: Option<PathBuf>) -> ChildReport {
        if self.cancel.reason().is_some() {
            return ChildReport::failed(Class::Cancelled, "interrupted");
        }
        let failed = |e: io::Error| {
            ChildReport::failed(Class::Internal, &format!("starting the processes of the build: {e}"))
        };
        let fetches = role == ChildRole::Fill && self.params.request.source == ImageSource::Registries;
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
        Ok((self.start(ChildRole::Fetch, None, Some(theirs.as_fd()))?, ours.into()))
    }

    fn start(
        &self,
        role: ChildRole,
        volume: Option<PathBuf>,
        fetching: Option<BorrowedFd<'_>>,
    ) -> io::Result<Child> {
        let (child, stream) = Child::start(&self.params, role, volume, self.handler.greeting(), fetching)?;
        self.handler.serve(role, stream)?;
        Ok(child)
    }

    fn warn(&self, message: String) {
        self.events.emit(Event::Warning { message });
    }
}
