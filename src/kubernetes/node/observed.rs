//! Decides the next step for one volume on the node. Pure.
//!
//! ```text
//! wanted:      claim ──► holder ──► mounted, bound ──► attached       a holder that is deleted gets a successor at once
//! not wanted:  detached (retried while busy) ──► no holder ──► no claim ──► nothing left
//! ```

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt as _;

use super::desired::DesiredVolume;
use super::objects::fits;
use larder_model::digest::Digest;

/// The observed state of one volume.
#[derive(Clone, Debug, Default)]
pub(super) struct ObservedVolume {
    pub(super) claim: Option<Arc<PersistentVolumeClaim>>,
    pub(super) pods: Vec<Arc<Pod>>,
    /// `true` if the volume is attached, or an attach has started.
    pub(super) attached: bool,
    /// UID of the pod from whose mount the volume was last verified.
    pub(super) from: Option<String>,
}

/// The next step for a volume.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    MakeClaim,
    /// Create a holder, while these pods are being deleted.
    MakeHolder,
    /// Delete a holder that has ended.
    DeleteHolder(String),
    /// Attach the mount of this PersistentVolume in the pod with this UID. The seal must have this digest.
    Attach {
        uid: String,
        volume: String,
        seal: Digest,
    },
    Detach,
    DeleteClaim,
    /// Wait, with the reason.
    Wait(String),
    /// Do nothing: the volume is attached as wanted.
    Held,
    /// Do nothing: no part of the volume is left.
    Gone,
}

impl ObservedVolume {
    /// Returns the next step towards the desired state.
    pub(super) fn step(&self, desired: Option<&DesiredVolume>, node: &str) -> Step {
        match desired {
            Some(desired) => self.towards(desired, node),
            None => self.away(),
        }
    }

    fn towards(&self, desired: &DesiredVolume, node: &str) -> Step {
        let Some(claim) = &self.claim else {
            // A claim needs the snapshot, so it is created only if that can be used.
            return match &desired.offered {
                Ok(()) => Step::MakeClaim,
                Err(why) => Step::Wait(why.clone()),
            };
        };
        if !fits(claim, desired, node) {
            return Step::Wait(format!(
                "the claim {} is not restored from the expected snapshot for this node: delete it",
                desired.claim
            ));
        }
        if claim.metadata.deletion_timestamp.is_some() {
            // Another program deleted it. The claim exists as long as its holder.
            return match self.attached {
                true => Step::Held,
                false => self
                    .without_holder()
                    .unwrap_or_else(|| Step::Wait(format!("the claim {} is being deleted", desired.claim))),
            };
        }
        let Some(holder) = self.pods.iter().find(|pod| remains(pod)) else {
            return match self.pods.iter().find(|pod| pod.metadata.deletion_timestamp.is_none()) {
                Some(ended) => Step::DeleteHolder(ended.name_any()),
                None => Step::MakeHolder,
            };
        };
        let uid = holder.uid().unwrap_or_default();
        let Some(seal) = desired.seal.clone().filter(|_| !self.attached || self.from.as_ref() != Some(&uid))
        else {
            return Step::Held;
        };
        let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone());
        match (runs(holder, node), volume.filter(|_| is_bound(claim))) {
            (true, Some(volume)) => Step::Attach { uid, volume, seal },
            _ if self.attached && self.from.is_some() => Step::Held,
            _ => Step::Wait(why_not(holder)),
        }
    }

    fn away(&self) -> Step {
        if self.attached {
            return Step::Detach;
        }
        if let Some(step) = self.without_holder() {
            return step;
        }
        match &self.claim {
            Some(claim) if claim.metadata.deletion_timestamp.is_none() => Step::DeleteClaim,
            Some(claim) => Step::Wait(format!("the claim {} is being deleted", claim.name_any())),
            None => Step::Gone,
        }
    }

    /// Returns the step that removes the holder; `None` if there is no holder.
    fn without_holder(&self) -> Option<Step> {
        let first = self.pods.first()?;
        let remains = self.pods.iter().find(|pod| pod.metadata.deletion_timestamp.is_none());
        Some(match remains {
            Some(pod) => Step::DeleteHolder(pod.name_any()),
            None => Step::Wait(format!("the pod {} is being deleted", first.name_any())),
        })
    }
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn remains(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase(pod), "Succeeded" | "Failed")
}

/// Reports whether a pod runs. The kubelet starts a container only after all volumes are mounted.
fn runs(pod: &Pod, node: &str) -> bool {
    let on = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    on == Some(node) && phase(pod) == "Running"
}

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
}

/// Returns the reason why a holder does not run yet, from its status. The reason why a claim is not bound is
/// only in events of the claim.
fn why_not(pod: &Pod) -> String {
    let name = pod.name_any();
    let status = pod.status.as_ref();
    let waiting = status.and_then(|status| {
        let containers = status.container_statuses.iter().flatten();
        containers.filter_map(|container| container.state.as_ref()?.waiting.as_ref()).next()
    });
    let describe = |reason: Option<&str>, message: Option<&str>| {
        let parts: Vec<&str> =
            [reason, message].into_iter().flatten().filter(|part| !part.is_empty()).collect();
        parts.join(": ")
    };
    if let Some(waiting) = waiting {
        return format!(
            "the pod {name} waits: {}",
            describe(waiting.reason.as_deref(), waiting.message.as_deref())
        );
    }
    let conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let mut unscheduled = conditions.filter(|one| one.type_ == "PodScheduled" && one.status == "False");
    match unscheduled.next() {
        Some(one) => {
            format!("the pod {name} waits: {}", describe(one.reason.as_deref(), one.message.as_deref()))
        }
        None => format!("the pod {name} does not run yet"),
    }
}

#[cfg(test)]
mod tests;
