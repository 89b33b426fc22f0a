//! Waits for the end of a Job of the builder or of the verifier.

use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt as _;
use kube::api::Api;

use super::log::Logs;
use super::objects::Role;
use super::verdict::{self, End};
use super::{Build, NODE_GONE, exhausted, waiting};
use crate::caches::pull_secrets::Unusable;
use crate::caches::runner::Ended;
use crate::kubernetes::fault::{Fault, request};
use larder_model::class::Class;

/// The result of waiting for a Job.
pub(super) enum Waited {
    /// The Job has ended. Contains its pods, oldest first.
    Ended(End, Vec<Pod>),
    /// The build cannot continue.
    Failed(Ended),
}

impl Build<'_> {
    /// Follows the builder to its end and forwards the log of its pods.
    pub(super) async fn follow(&self, unusable: Unusable) -> Result<Ended, Fault> {
        let pods: Api<Pod> = self.runner.own();
        let mut logs = Logs::new(pods, self.lines.clone(), unusable.clone(), self.runner.timing.look);
        let listen = |pods: &[Pod]| {
            for pod in pods.iter().filter(|pod| waiting::has_begun(pod)) {
                logs.listen(&pod.name_any(), verdict::terminated(pod).is_some());
            }
        };
        let (end, pods) = match self.wait_for(Role::Builder, &self.name, listen).await? {
            Waited::Ended(end, pods) => (end, pods),
            Waited::Failed(ended) => return Ok(ended),
        };
        logs.drain().await;
        Ok(self.name_unusable(verdict::of(&end, &pods, |pod| logs.result(pod)), &unusable))
    }

    /// Waits for the end of the Job `name`. Calls `seen` with its pods after each list.
    pub(super) async fn wait_for(
        &self,
        role: Role,
        name: &str,
        mut seen: impl FnMut(&[Pod]),
    ) -> Result<Waited, Fault> {
        let pending = self.runner.timing.pending;
        let pods: Api<Pod> = self.runner.own();
        let labels = self.runner.names.of(&self.volume);
        let who = role.container();
        let mut waits = self.waits();
        let mut doomed_since = None;
        loop {
            let Some(job) = self.find_job(name).await? else {
                let how = format!("another program deleted the job of its {who}");
                return Ok(Waited::Failed(Ended::Died(how)));
            };
            // Pods are listed after the Job, so the list is complete for a Job that has ended.
            let uid = job.uid();
            let all = request!("listing the pods of builders", pods.list(&labels))?.items;
            let of_job =
                |pod: &Pod| pod.owner_references().iter().any(|owner| Some(&owner.uid) == uid.as_ref());
            let mut pods: Vec<Pod> = all.into_iter().filter(of_job).collect();
            pods.sort_by_key(|pod| pod.creation_timestamp().map(|time| time.0));
            seen(&pods);
            if let Some(end) = verdict::end(&job) {
                return Ok(Waited::Ended(end, pods));
            }
            if let Some(why) = verdict::doomed_reason(&job)
                && doomed_since.get_or_insert_with(Instant::now).elapsed() >= pending
            {
                let message = format!("the job has failed ({why}), and its {who} does not end: {NODE_GONE}");
                return Ok(Waited::Failed(exhausted(Class::Busy, message)));
            }
            if pods.iter().any(waiting::runs) {
                waits.end();
            } else if let Some(why) = pods.iter().find_map(waiting::permanent_failure) {
                let message = format!("the {who} cannot start: {why}");
                return Ok(Waited::Failed(exhausted(Class::Internal, message)));
            } else if waits.elapsed() >= pending || waits.is_due() {
                let events: Api<Event> = self.runner.own();
                let why = waiting::reason(&pods, &events, name).await;
                if waits.elapsed() >= pending {
                    let message = format!("the {who} did not start within {} s: {why}", pending.as_secs());
                    return Ok(Waited::Failed(exhausted(Class::Internal, message)));
                }
                waits.report(format!("the {who} does not start: {why}"));
            }
            self.pause().await;
        }
    }
}
