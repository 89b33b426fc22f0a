//! Builds on a disk: mounting it while a child fills it, and sealing it afterwards.

use std::path::Path;
use std::sync::Arc;

use super::child::ChildReport;
use super::{BuildParams, Supervisor};
use crate::cli::args::internal::ChildRole;
use crate::cli::outcome::usage_outcome;
use crate::volume::disk::{self, Disk, Entered, Error, Left, Request, Taken};
use crate::volume::seal::Files;
use larder_model::class::Class;
use larder_model::event::{Outcome, Status};
use larder_model::io_error::Context as _;
use larder_model::job::VolumeKind;
use larder_sys::mount;

/// Moves this process into its own mount namespace, and makes mounts below `share` visible to its children.
/// Must be called before a second thread is started.
pub(in crate::cli) fn enter_namespace(share: Option<&Path>) -> Result<(), Error> {
    let entered = mount::private_namespace().and_then(|()| share.map_or(Ok(()), mount::share_below));
    Ok(entered.context("creating a mount namespace", "for the disk")?)
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
    /// Builds on the disk of the request. An `Err` is the outcome of a step before or after the child.
    pub(super) async fn build_on_disk(&self) -> Result<Outcome, Outcome> {
        let params = Arc::clone(&self.params);
        match blocking(move || params.take()).await? {
            Taken::Sealed(entered) => self.sealed(entered).await,
            Taken::Filling(disk) => self.fill(*disk).await,
        }
    }

    /// Handles a sealed disk: the child checks whether it belongs to this job.
    async fn sealed(&self, entered: Entered) -> Result<Outcome, Outcome> {
        let at = self.params.request.volume.clone();
        let _attached = blocking(move || entered.attach(&at)).await?;
        let report = self.child(ChildRole::Fill, None).await;
        Ok(self.finish(report))
    }

    /// Fills the disk and seals it.
    async fn fill(&self, disk: Disk) -> Result<Outcome, Outcome> {
        let disk = match disk.left() {
            Left::New => disk,
            _ => self.sweep(disk).await?,
        };
        let is_new = disk.left() == Left::New;
        let (disk, space) = blocking(move || disk.host_space().map(|space| (disk, space))).await?;
        if let Some(space) = space {
            self.handler.set_host_space(space);
        }
        let MountedRun { disk, report, seal } = self.run_mounted(disk, ChildRole::Fill).await?;
        let Some((seal, direct)) = seal else {
            if is_new && !report.has_layers {
                // The directory is then free for another job, and the host gets its space back.
                blocking(move || disk.discard()).await?;
            }
            return Ok(report.outcome);
        };
        let shrink = self.params.disk_options.shrink;
        blocking(move || disk.seal(&seal, shrink, direct)).await?;
        Ok(self.finish(report))
    }

    /// Mounts the disk, runs a child of `role`, and unmounts it.
    async fn run_mounted(&self, disk: Disk, role: ChildRole) -> Result<MountedRun, Outcome> {
        let mounting = move || disk.mount().map(|mounted| (disk, mounted));
        let (disk, mounted) = blocking(mounting).await?;
        let direct = mounted.is_direct();
        if role == ChildRole::Fill && !direct {
            self.warn("writing the disk through the page cache of this host: its file system does not support direct I/O".into());
        }
        let device = matches!(self.params.request.volume_kind, VolumeKind::Block);
        let report = self.child(role, device.then(|| mounted.path().to_owned())).await;
        let reads = role == ChildRole::Fill && report.outcome.status == Status::Ok;
        let unmounting = move || {
            let seal = if reads { Some(mounted.seal()) } else { None };
            // The content is complete without it; only the host keeps less free space.
            if reads && let Err(error) = mounted.trim() {
                tracing::warn!(%error, "the sealed disk keeps its unused space");
            }
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

    /// Removes the leftovers of an earlier run. Formats a disk that an unclean end damaged.
    async fn sweep(&self, disk: Disk) -> Result<Disk, Outcome> {
        let role = if disk.left() == Left::Unclean { ChildRole::Prove } else { ChildRole::Sweep };
        let MountedRun { mut disk, report, .. } = self.run_mounted(disk, role).await?;
        let outcome = report.outcome;
        match (outcome.status, outcome.class) {
            (Status::Ok, _) => Ok(disk),
            (_, Some(Class::Corrupt | Class::Internal | Class::NotFound)) if role == ChildRole::Prove => {
                self.warn(format!("formatting the disk again: {}", outcome.message));
                blocking(move || disk.format().map(|()| disk)).await
            }
            _ => Err(outcome),
        }
    }
}

impl BuildParams {
    fn take(&self) -> Result<Taken, Error> {
        let job = self.request.identity().digest();
        let (path, size, sparse) = (&*self.request.volume, self.size().0, self.disk_options.sparse);
        let request = Request { path, job: &job, size, sparse };
        match self.request.volume_kind {
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
    match crate::blocking::spawn(work).await {
        Ok(result) => result.map_err(|error| usage_outcome(error.class(), &error.to_string())),
        Err(e) => Err(usage_outcome(Class::Internal, &format!("a step of the build panicked: {e}"))),
    }
}
