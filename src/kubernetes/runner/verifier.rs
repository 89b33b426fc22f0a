//! The second process of a build, which verifies the volume that the first one wrote.
//!
//! The builder parses data from registries, and it is the only source of information about its volume.
//! Therefore a separate Job reads the volume afterwards. Its pod has the volume, read-only, and no network,
//! credential, key or token. An attacker who takes over a builder can neither impersonate the verifier nor
//! change the volume after verification. The snapshot is taken only then.
//!
//! The Job of the build owns that of the verifier, and its end is recorded in the cluster like that of a
//! builder. So another daemon that continues the build finds it.

use k8s_openapi::api::batch::v1::Job as KubeJob;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams};

use super::follow::Waited;
use super::objects::{Parts, Role};
use super::{Build, StepFailure, exhausted, verdict};
use crate::caches::runner::Ended;
use crate::kubernetes::fault::{Fault, opt, request};
use crate::kubernetes::names::{RESULT, VERIFIED, verifier};
use crate::kubernetes::snapshot::VolumeSnapshot;
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::event::Outcome;
use larder_model::job::LayerFormat;

/// Reports whether a snapshot was taken of a verified volume, with the digest that its builder reported.
pub(super) fn has_verified(snapshot: &VolumeSnapshot) -> bool {
    let annotations = snapshot.annotations();
    let reported = annotations.get(RESULT).and_then(|text| serde_json::from_str::<Outcome>(text).ok());
    let verified = annotations.get(VERIFIED).and_then(|text| text.parse::<Digest>().ok());
    verified.is_some() && reported.is_some_and(|outcome| outcome.digest == verified)
}

/// Returns the layer format that a Job was created for.
fn format_of(build: &KubeJob) -> LayerFormat {
    let pod = build.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let context = pod.and_then(|pod| pod.security_context.as_ref());
    match context.and_then(|context| context.run_as_non_root) {
        Some(true) => LayerFormat::Erofs,
        _ => LayerFormat::Overlay,
    }
}

impl Build<'_> {
    /// Verifies the volume that `build` filled. Returns the digest of its content, which equals the one that
    /// its builder reported. The inner error is the end of the build.
    pub(super) async fn verify(
        &self,
        build: &KubeJob,
        outcome: &Outcome,
    ) -> Result<Result<Digest, Ended>, StepFailure> {
        let Some(digest) = &outcome.digest else {
            let how = "the builder reported no digest of what it sealed".to_owned();
            return Ok(Err(Ended::Died(how)));
        };
        let name = verifier(&self.volume);
        self.verifier_job(build, digest, &name).await?;
        match self.wait_for(Role::Verifier, &name, |_| {}).await? {
            Waited::Ended(end, pods) => Ok(match verdict::refusal(&end, &pods) {
                None => Ok(digest.clone()),
                Some(outcome) => Err(Ended::Exhausted(outcome)),
            }),
            Waited::Failed(ended) => Ok(Err(ended)),
        }
    }

    /// Creates the Job of the verifier, unless `build` has one.
    async fn verifier_job(&self, build: &KubeJob, digest: &Digest, name: &str) -> Result<(), StepFailure> {
        let owner = build.uid();
        loop {
            let present = self.find_job(name).await?;
            let is_current = |job: &KubeJob| {
                let mut owners = job.owner_references().iter();
                job.metadata.deletion_timestamp.is_none()
                    && owners.any(|one| Some(&one.uid) == owner.as_ref())
            };
            match present {
                Some(job) if is_current(&job) => return Ok(()),
                // It verified the volume of an earlier attempt, which says nothing about this volume.
                Some(_) => self.remove_verifier(name).await?,
                None => {
                    // The same user as that of the builder, even if the configuration has changed since: that
                    // user owns the files.
                    let parts = Parts { layer_format: format_of(build), ..self.parts(&self.order.job) };
                    let object = parts.verifier(build, digest, self.timeout_seconds());
                    self.apply::<KubeJob>("the job of the verifier", name, &object).await?;
                    return Ok(());
                }
            }
            self.pause().await;
        }
    }

    async fn remove_verifier(&self, name: &str) -> Result<(), Fault> {
        let jobs: Api<KubeJob> = self.runner.own();
        let doing = format!("deleting the job {name}");
        opt(request!(&doing, jobs.delete(name, &DeleteParams::foreground())))?;
        Ok(())
    }

    /// Returns the end of a build whose snapshot was not verified, because a version of Larder without
    /// verifiers took it.
    pub(super) fn unverified(&self) -> Ended {
        let message = format!(
            "the snapshot {} was taken without a verification of its volume: build the image cache again",
            self.name
        );
        exhausted(Class::Conflict, message)
    }
}
