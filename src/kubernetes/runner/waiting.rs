//! Why a builder does not start.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt;
use kube::api::{Api, ListParams};

use super::verdict::state;
use larder_model::escape::escape_to;

/// How much of a reason is told, characters.
const TOLD: usize = 400;

/// Waiting reasons of a container (kubelet, pkg/kubelet/images/types.go and kuberuntime) that no waiting heals: the name of
/// the image is malformed, it may not be pulled and is not there, a key of the secret is missing.
const FOR_EVER: [&str; 3] = ["InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError"];

/// Events of a claim without a disk (pkg/controller/volume/events/event.go). The first is no warning.
const NO_DISK: [&str; 2] = ["FailedBinding", "ProvisioningFailed"];

/// Whether the builder of a pod runs or has run.
pub(super) fn has_begun(pod: &Pod) -> bool {
    state(pod).is_some_and(|state| state.running.is_some() || state.terminated.is_some())
}

/// Whether the builder of a pod runs.
pub(super) fn runs(pod: &Pod) -> bool {
    state(pod).is_some_and(|state| state.running.is_some())
}

/// Whether a pod will never start, and why.
pub(super) fn never(pod: &Pod) -> Option<String> {
    let waiting = state(pod)?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref()?;
    FOR_EVER.contains(&reason).then(|| said(reason, waiting.message.as_deref()))
}

/// What is known of why a build waits: what its pod says, else what was told of its objects.
pub(super) async fn reason(pods: &[Pod], events: &Api<Event>, name: &str) -> String {
    // What was told of the objects, which is a matter of luck: events are kept for an hour and may be dropped.
    let told = events.list(&ListParams::default()).await.map(|events| events.items).unwrap_or_default();
    for pod in pods {
        if let Some(waiting) = state(pod).and_then(|state| state.waiting.as_ref())
            && let Some(reason) = waiting.reason.as_deref().filter(|reason| *reason != "ContainerCreating")
        {
            return said(reason, waiting.message.as_deref());
        }
        let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        for condition in conditions {
            if condition.type_ == "PodScheduled" && condition.status == "False" {
                let reason = condition.reason.as_deref().unwrap_or("Unschedulable");
                let reason = said(reason, condition.message.as_deref());
                // It may wait for its disk, of which more is known than that it is not there.
                let disk =
                    told.iter().filter(|event| NO_DISK.contains(&event.reason.as_deref().unwrap_or("")));
                return match last(disk, name) {
                    Some(disk) => format!("{reason} ({disk})"),
                    None => reason,
                };
            }
        }
    }
    // Of the pod first: a volume that cannot be mounted is told of it alone; of the Job, pods that a quota forbids; of the PVC,
    // a disk that cannot be made.
    let names = pods.iter().map(ResourceExt::name_any).chain([name.to_owned()]);
    let warnings = || told.iter().filter(|event| event.type_.as_deref() == Some("Warning"));
    let warning = names.filter_map(|name| last(warnings(), &name)).next();
    warning.unwrap_or_else(|| "the cluster gives no reason".to_owned())
}

/// The last of these events that is about objects of this name.
fn last<'a>(events: impl Iterator<Item = &'a Event>, name: &str) -> Option<String> {
    let about = |event: &&Event| {
        let named = event.regarding.as_ref().and_then(|about| about.name.as_deref());
        named == Some(name)
    };
    let last = events.filter(about).max_by_key(|event| {
        let repeated = event.series.as_ref().map(|series| series.last_observed_time.0);
        let older = event.deprecated_last_timestamp.as_ref().map(|time| time.0);
        repeated.or(event.event_time.as_ref().map(|time| time.0)).or(older)
    })?;
    Some(said(last.reason.as_deref().unwrap_or("Warning"), last.note.as_deref()))
}

fn said(reason: &str, message: Option<&str>) -> String {
    match message.filter(|message| !message.is_empty()) {
        Some(message) => format!("{}: {}", escape_to(reason, TOLD), escape_to(message, TOLD)),
        None => escape_to(reason, TOLD),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_pod_waits_for() {
        let pod = |state: serde_json::Value| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": "p"},
                "status": {"containerStatuses": [{
                    "name": "builder", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state,
                }]},
            }))
            .unwrap()
        };
        let waits = |reason: &str| pod(json!({"waiting": {"reason": reason, "message": "m"}}));
        assert_eq!(never(&waits("InvalidImageName")).unwrap(), "InvalidImageName: m");
        for heals in ["ImagePullBackOff", "ErrImagePull", "ContainerCreating", "PodInitializing"] {
            assert_eq!(never(&waits(heals)), None, "{heals}");
        }
        assert!(!has_begun(&waits("ErrImagePull")) && !has_begun(&Pod::default()));
        let running = pod(json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}}));
        assert!(has_begun(&running) && runs(&running));
        let ended = pod(json!({"terminated": {"exitCode": 1}}));
        assert!(has_begun(&ended) && !runs(&ended));
    }
}
