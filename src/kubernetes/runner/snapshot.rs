//! The snapshot of a build's volume.

use super::super::fault::{Fault, opt, request};
use super::super::names::RESULT;
use super::super::snapshot::VolumeSnapshot;
use super::attachments::Attachments;
use super::{Build, MAX_RESULT, StepFailure, exhausted};
use crate::caches::runner::Ended;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt as _;
use kube::api::Api;
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::escape::escape_to;
use larder_model::event::Outcome;

impl Build<'_> {
    pub(super) async fn snapshot(&self) -> Result<Option<VolumeSnapshot>, Fault> {
        let api: Api<VolumeSnapshot> = self.runner.own();
        let doing = format!("reading the snapshot {}", self.name);
        opt(request!(&doing, api.get(&self.name)))
    }

    /// Takes the snapshot of a volume in which the verifier found the digest `verified`.
    pub(super) async fn take_snapshot(
        &self,
        outcome: &Outcome,
        verified: &Digest,
    ) -> Result<VolumeSnapshot, StepFailure> {
        self.wait_until_detached().await?;
        let result = outcome.to_short_line(MAX_RESULT);
        let result =
            result.map_err(|e| StepFailure::Ended(Ended::Died(format!("writing its result: {e}"))))?;
        let snapshot = self.parts(&self.order.job).snapshot(&result, verified);
        let made: VolumeSnapshot = self.apply("the snapshot", &self.name, &snapshot).await?;
        let of = made.spec.source.persistent_volume_claim_name.as_deref();
        if of != Some(&self.name) {
            let message = format!("the snapshot {} was taken from {of:?} by another program", self.name);
            return Err(StepFailure::Ended(exhausted(Class::Conflict, message)));
        }
        Ok(made)
    }

    /// Waits until the disk is detached, for a limited time. The file system of a disk that is still mounted
    /// has a journal to replay.
    pub(super) async fn wait_until_detached(&self) -> Result<(), Fault> {
        let claims: Api<PersistentVolumeClaim> = self.runner.own();
        let doing = format!("reading the volume claim {}", self.name);
        let claim = opt(request!(&doing, claims.get(&self.name)))?;
        let Some(disk) = claim.and_then(|claim| claim.spec?.volume_name) else { return Ok(()) };
        let attachments = self.runner.attachments.get_or_init(|| Attachments::new(&self.runner.client));
        let mut waits = self.waits();
        let limit = self.runner.timing.attached;
        while let Some(left) = limit.checked_sub(waits.elapsed()) {
            let pause = left.min(self.runner.timing.report);
            if tokio::time::timeout(pause, attachments.detached(&disk)).await.is_ok() {
                waits.end();
                return Ok(());
            }
            if waits.is_due() {
                waits.report(format!("the disk {disk} is still attached to the node of its builder"));
            }
        }
        tracing::warn!(disk, "taking a snapshot of a disk that is still attached");
        Ok(())
    }

    /// Waits until a snapshot is ready, and deletes the Job that it was made from.
    pub(super) async fn finish(&self, mut snapshot: VolumeSnapshot) -> Result<Ended, StepFailure> {
        let mut waits = self.waits();
        while !snapshot.is_ready() {
            let why = || escape_to(snapshot.error().unwrap_or("its driver gives no reason"), 400);
            if waits.elapsed() >= self.runner.timing.snapshot {
                let limit = self.runner.timing.snapshot.as_secs();
                let message = format!("the snapshot was not ready within {limit} s: {}", why());
                return Ok(exhausted(Class::Transient, message));
            }
            if waits.is_due() {
                waits.report(format!("the snapshot is not ready: {}", why()));
            }
            self.pause().await;
            snapshot = match self.snapshot().await? {
                Some(snapshot) if snapshot.metadata.deletion_timestamp.is_none() => snapshot,
                _ => return Ok(Ended::Died("another program deleted its snapshot".to_owned())),
            };
        }
        self.delete_job().await?;
        let result = snapshot.annotations().get(RESULT).and_then(|text| serde_json::from_str(text).ok());
        Ok(match result {
            Some(outcome) => Ended::Result(outcome),
            None => exhausted(
                Class::Corrupt,
                format!("the snapshot {} has no result in its annotations", self.name),
            ),
        })
    }
}
