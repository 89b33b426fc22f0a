//! Finds the reason why a builder does not start.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt;
use kube::api::{Api, ListParams};

use super::verdict::state;
use larder_model::escape::escape_to;

/// Maximum length of a reported reason, characters.
const MAX_REASON_CHARS: usize = 400;

/// Reasons of a waiting container that are permanent (kubelet, pkg/kubelet/images/types.go and kuberuntime):
/// the image name is malformed, the image must not be pulled and is not present, or a key of the secret is
/// missing.
const PERMANENT_REASONS: [&str; 3] = ["InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError"];

/// Reasons of events about a claim without a disk (pkg/controller/volume/events/event.go). The first one is
/// not a warning.
const NO_DISK: [&str; 2] = ["FailedBinding", "ProvisioningFailed"];

/// Reports whether the builder of a pod has started.
pub(super) fn has_begun(pod: &Pod) -> bool {
    state(pod).is_some_and(|state| state.running.is_some() || state.terminated.is_some())
}

/// Reports whether the builder of a pod is running.
pub(super) fn runs(pod: &Pod) -> bool {
    state(pod).is_some_and(|state| state.running.is_some())
}

/// Returns the reason why a pod will never start. `None` if it can start.
pub(super) fn permanent_failure(pod: &Pod) -> Option<String> {
    let waiting = state(pod)?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref()?;
    PERMANENT_REASONS.contains(&reason).then(|| describe(reason, waiting.message.as_deref()))
}

/// Returns the known reason why a build waits: from its pod, or else from events about its objects.
pub(super) async fn reason(pods: &[Pod], events: &Api<Event>, name: &str) -> String {
    // Events are best effort: they are kept for an hour and can be dropped.
    let recent = events.list(&ListParams::default()).await.map(|events| events.items).unwrap_or_default();
    for pod in pods {
        if let Some(waiting) = state(pod).and_then(|state| state.waiting.as_ref())
            && let Some(reason) = waiting.reason.as_deref().filter(|reason| *reason != "ContainerCreating")
        {
            return describe(reason, waiting.message.as_deref());
        }
        let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        for condition in conditions {
            if condition.type_ == "PodScheduled" && condition.status == "False" {
                let reason = condition.reason.as_deref().unwrap_or("Unschedulable");
                let reason = describe(reason, condition.message.as_deref());
                // It may wait for its disk. An event of the claim gives the reason.
                let disk =
                    recent.iter().filter(|event| NO_DISK.contains(&event.reason.as_deref().unwrap_or("")));
                return match last(disk, name) {
                    Some(disk) => format!("{reason} ({disk})"),
                    None => reason,
                };
            }
        }
    }
    // Events of the pod come first: a volume that cannot be mounted is reported only there. A quota that
    // forbids pods is reported on the Job, and a disk that cannot be provisioned on the PVC.
    let names = pods.iter().map(ResourceExt::name_any).chain([name.to_owned()]);
    let warnings = || recent.iter().filter(|event| event.type_.as_deref() == Some("Warning"));
    let warning = names.filter_map(|name| last(warnings(), &name)).next();
    warning.unwrap_or_else(|| "the cluster gives no reason".to_owned())
}

/// Returns the last of these events about an object of this name.
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
    Some(describe(last.reason.as_deref().unwrap_or("Warning"), last.note.as_deref()))
}

fn describe(reason: &str, message: Option<&str>) -> String {
    match message.filter(|message| !message.is_empty()) {
        Some(message) => {
            format!("{}: {}", escape_to(reason, MAX_REASON_CHARS), escape_to(message, MAX_REASON_CHARS))
        }
        None => escape_to(reason, MAX_REASON_CHARS),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reasons_of_waiting_pods() {
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
        assert_eq!(permanent_failure(&waits("InvalidImageName")).unwrap(), "InvalidImageName: m");
        for heals in ["ImagePullBackOff", "ErrImagePull", "ContainerCreating", "PodInitializing"] {
            assert_eq!(permanent_failure(&waits(heals)), None, "{heals}");
        }
        assert!(!has_begun(&waits("ErrImagePull")) && !has_begun(&Pod::default()));
        let running = pod(json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}}));
        assert!(has_begun(&running) && runs(&running));
        let ended = pod(json!({"terminated": {"exitCode": 1}}));
        assert!(has_begun(&ended) && !runs(&ended));
    }
}
