//! What is to be done next about one volume on the node. Pure.
//!
//! ```text
//! wanted:      claim ──► holder ──► mounted, bound ──► attached       a holder that goes has its successor at once
//! not wanted:  detached (later, while busy) ──► no holder ──► no claim ──► nothing
//! ```

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt as _;

use super::objects::fits;
use super::wish::Wish;
use larder_model::digest::Digest;

/// What there is of one volume.
#[derive(Clone, Debug, Default)]
pub(super) struct Holding {
    pub(super) claim: Option<Arc<PersistentVolumeClaim>>,
    pub(super) pods: Vec<Arc<Pod>>,
    /// Whether it is attached, or about to be.
    pub(super) attached: bool,
    /// UID of the pod from whose mount it was last seen to be sound.
    pub(super) from: Option<String>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    MakeClaim,
    /// With these pods on their way out.
    MakeHolder,
    /// A holder that has come to an end.
    DeleteHolder(String),
    /// From the mount of a pod, by its UID, of this PersistentVolume; what its seal must be.
    Attach {
        uid: String,
        volume: String,
        seal: Digest,
    },
    Detach,
    DeleteClaim,
    /// Nothing for now, for this reason.
    Wait(String),
    /// Nothing as it is.
    Held,
    /// Nothing is left.
    Gone,
}

impl Holding {
    /// The next step towards what is wanted.
    pub(super) fn step(&self, wish: Option<&Wish>, node: &str) -> Step {
        match wish {
            Some(wish) => self.towards(wish, node),
            None => self.away(),
        }
    }

    fn towards(&self, wish: &Wish, node: &str) -> Step {
        let Some(claim) = &self.claim else {
            // Made from what is there for as long as that is so.
            return match &wish.offered {
                Ok(()) => Step::MakeClaim,
                Err(why) => Step::Wait(why.clone()),
            };
        };
        if !fits(claim, wish, node) {
            return Step::Wait(format!("the claim {} is not what was asked for: delete it", wish.claim));
        }
        if claim.metadata.deletion_timestamp.is_some() {
            // Somebody else deleted it. It stays as long as its holder does.
            return match self.attached {
                true => Step::Held,
                false => self
                    .without_holder()
                    .unwrap_or_else(|| Step::Wait(format!("the claim {} is being deleted", wish.claim))),
            };
        }
        let Some(holder) = self.pods.iter().find(|pod| stays(pod)) else {
            return match self.pods.iter().find(|pod| pod.metadata.deletion_timestamp.is_none()) {
                Some(ended) => Step::DeleteHolder(ended.name_any()),
                None => Step::MakeHolder,
            };
        };
        let uid = holder.uid().unwrap_or_default();
        let Some(seal) = wish.seal.clone().filter(|_| !self.attached || self.from.as_ref() != Some(&uid))
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

    /// The step after which there is no holder; none where there is no holder.
    fn without_holder(&self) -> Option<Step> {
        let first = self.pods.first()?;
        let stays = self.pods.iter().find(|pod| pod.metadata.deletion_timestamp.is_none());
        Some(match stays {
            Some(pod) => Step::DeleteHolder(pod.name_any()),
            None => Step::Wait(format!("the pod {} is being deleted", first.name_any())),
        })
    }
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn stays(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase(pod), "Succeeded" | "Failed")
}

/// The kubelet starts no container before all volumes are mounted.
fn runs(pod: &Pod, node: &str) -> bool {
    let on = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    on == Some(node) && phase(pod) == "Running"
}

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
}

/// Why a holder does not run yet, as far as it says so itself. Why a claim is not bound is said in events of the claim.
fn why_not(pod: &Pod) -> String {
    let name = pod.name_any();
    let status = pod.status.as_ref();
    let waiting = status.and_then(|status| {
        let containers = status.container_statuses.iter().flatten();
        containers.filter_map(|container| container.state.as_ref()?.waiting.as_ref()).next()
    });
    let said = |reason: Option<&str>, message: Option<&str>| {
        let parts: Vec<&str> =
            [reason, message].into_iter().flatten().filter(|part| !part.is_empty()).collect();
        parts.join(": ")
    };
    if let Some(waiting) = waiting {
        return format!(
            "the pod {name} waits: {}",
            said(waiting.reason.as_deref(), waiting.message.as_deref())
        );
    }
    let conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let mut unscheduled = conditions.filter(|one| one.type_ == "PodScheduled" && one.status == "False");
    match unscheduled.next() {
        Some(one) => format!("the pod {name} waits: {}", said(one.reason.as_deref(), one.message.as_deref())),
        None => format!("the pod {name} does not run yet"),
    }
}

#[cfg(test)]
mod tests;
