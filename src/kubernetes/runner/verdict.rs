//! Derives the result of a build from the end of a Job, that of its builder or of its verifier.

use k8s_openapi::api::batch::v1::{Job, JobCondition};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, Pod};
use kube::ResourceExt as _;

use super::objects::Role;
use crate::caches::runner::Ended;
use larder_model::class::Class;
use larder_model::escape::escape_to;
use larder_model::event::{Failure, Outcome, Status};

/// Maximum length of a reported text of a builder or of the cluster, characters.
const MAX_TEXT_CHARS: usize = 600;

/// The end of a Job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// One of its pods succeeded.
    Complete,
    /// The Job failed permanently.
    Failed {
        /// Reason such as `PodFailurePolicy`, `BackoffLimitExceeded` or `DeadlineExceeded`.
        reason: String,
        /// Explanation for people.
        message: String,
    },
}

/// Returns the end of a Job. `None` if it has not ended.
pub(super) fn end(job: &Job) -> Option<End> {
    let failed = condition(job, "Failed").map(|failed| {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        End::Failed { reason: text(&failed.reason), message: text(&failed.message) }
    });
    failed.or_else(|| condition(job, "Complete").map(|_| End::Complete))
}

/// Returns the reason why a Job will fail that still waits for its pods to end. On a node that does not
/// respond, pods end only when the node is back or removed from the cluster.
pub(super) fn doomed_reason(job: &Job) -> Option<&str> {
    Some(condition(job, "FailureTarget")?.reason.as_deref().unwrap_or("FailureTarget"))
}

fn condition<'a>(job: &'a Job, name: &str) -> Option<&'a JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == name && condition.status == "True")
}

/// Returns the state of the builder or verifier in a pod. Containers that other programs injected are
/// ignored.
pub(super) fn state(pod: &Pod) -> Option<&ContainerState> {
    let ours = [Role::Builder, Role::Verifier].map(Role::container);
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find(|status| ours.contains(&status.name.as_str()))?.state.as_ref()
}

/// Returns the termination of the builder in a pod. `None` if it has not ended.
pub(super) fn terminated(pod: &Pod) -> Option<&ContainerStateTerminated> {
    state(pod)?.terminated.as_ref()
}

/// Combines the end of the Job, the termination of its pods, and the results in their logs. `logged` returns
/// the result in the log of a pod, by its name.
pub(super) fn of(end: &End, pods: &[Pod], logged: impl Fn(&str) -> Option<Outcome>) -> Ended {
    match end {
        End::Complete => {
            let outcome = last(pods, true).and_then(|(pod, terminated)| result_of(pod, terminated, &logged));
            match outcome {
                Some(outcome) if outcome.status == Status::Ok && outcome.digest.is_some() => {
                    Ended::Result(outcome)
                }
                _ => Ended::Died("its job is complete, and its pod is gone or returned no result".to_owned()),
            }
        }
        End::Failed { reason, message } => {
            let Some((pod, terminated)) = last(pods, false) else {
                return Ended::Exhausted(without_result(Role::Builder, reason, message));
            };
            // If its deadline or the cluster ended a builder, its last result is not the cause.
            Ended::Exhausted(match result_of(pod, terminated, &logged) {
                Some(outcome) if outcome.status == Status::Failed => outcome,
                _ => died(Role::Builder, terminated, reason),
            })
        }
    }
}

/// Returns the reason why a volume is not accepted, from the end of the Job of its verifier; `None` if that
/// Job succeeded.
pub(super) fn refusal(end: &End, pods: &[Pod]) -> Option<Outcome> {
    let End::Failed { reason, message } = end else { return None };
    let Some((_, terminated)) = last(pods, false) else {
        return Some(without_result(Role::Verifier, reason, message));
    };
    let output = terminated.message.as_deref().unwrap_or_default().trim();
    Some(match terminated.exit_code {
        65 if !output.is_empty() => {
            let output = output.strip_prefix("larder: ").unwrap_or(output);
            let message = format!("the volume failed verification: {}", escape_to(output, MAX_TEXT_CHARS));
            outcome(Class::Corrupt, message)
        }
        _ => died(Role::Verifier, terminated, reason),
    })
}

/// Returns the last pod that succeeded, or the last one that failed.
fn last(pods: &[Pod], succeeded: bool) -> Option<(&Pod, &ContainerStateTerminated)> {
    let ended = pods.iter().filter_map(|pod| Some((pod, terminated(pod)?)));
    let wanted = ended.filter(|(_, terminated)| (terminated.exit_code == 0) == succeeded);
    wanted.max_by_key(|(pod, terminated)| {
        (terminated.finished_at.as_ref().map(|time| time.0), pod.creation_timestamp().map(|time| time.0))
    })
}

/// Returns the result of one pod: its termination message, or the complete result in its log.
fn result_of(
    pod: &Pod,
    terminated: &ContainerStateTerminated,
    logged: impl Fn(&str) -> Option<Outcome>,
) -> Option<Outcome> {
    let fits = |outcome: &Outcome| i32::from(outcome.exit_code) == terminated.exit_code;
    let short: Option<Outcome> =
        terminated.message.as_deref().and_then(|message| serde_json::from_str(message).ok()).filter(fits);
    let whole = logged(&pod.name_any()).filter(fits);
    match (short, whole) {
        // The termination message decides. The log can only complete it.
        (Some(short), Some(whole)) if short.truncated && whole.digest == short.digest => Some(whole),
        (Some(short), _) => Some(short),
        (None, whole) => whole,
    }
}

fn without_result(role: Role, reason: &str, message: &str) -> Outcome {
    match reason {
        "DeadlineExceeded" => {
            outcome(Class::Busy, format!("the {} did not end within its time limit", role.container()))
        }
        _ => outcome(
            Class::Internal,
            format!("the job failed: {reason}: {}", escape_to(message, MAX_TEXT_CHARS)),
        ),
    }
}

fn died(role: Role, terminated: &ContainerStateTerminated, of_job: &str) -> Outcome {
    let code = terminated.exit_code;
    let class = match code {
        64 => Class::Invalid,
        65 => Class::Corrupt,
        69 => Class::Transient,
        73 => Class::NoSpace,
        75 => Class::Busy,
        77 => Class::Denied,
        _ => Class::Internal,
    };
    let mut message = format!("the {} ended with exit code {code}", role.container());
    if let Some(reason) = terminated.reason.as_deref().filter(|reason| *reason != "Error") {
        message.push_str(&format!(" ({reason})"));
    }
    message.push_str(&format!(" and returned no result; reason of the job: {of_job}"));
    if let Some(output) = terminated.message.as_deref().filter(|output| !output.is_empty()) {
        message.push_str(&format!("; its last output: {}", escape_to(output.trim(), MAX_TEXT_CHARS)));
    }
    outcome(class, message)
}

/// Returns the outcome of a failed build for which no builder reported one.
pub(super) fn outcome(class: Class, message: String) -> Outcome {
    Outcome::failed(vec![Failure::job(class, message)])
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use larder_model::digest::Digest;
    use larder_model::event::SealedImage;

    fn pod(name: &str, finished: &str, code: i32, message: Option<Value>) -> Pod {
        let message =
            message.map(|message| message.as_str().map_or_else(|| message.to_string(), str::to_owned));
        serde_json::from_value(json!({
            "metadata": {"name": name, "creationTimestamp": finished},
            "status": {"containerStatuses": [{
                "name": "builder", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {
                    "exitCode": code, "finishedAt": finished, "message": message,
                    "reason": if code == 137 { "OOMKilled" } else { "Error" },
                }},
            }]},
        }))
        .unwrap()
    }

    fn failed(reason: &str) -> End {
        End::Failed { reason: reason.into(), message: "m\u{1b}".into() }
    }

    fn sealed(truncated: bool) -> Outcome {
        Outcome {
            status: Status::Ok,
            exit_code: 0,
            class: None,
            failures: Vec::new(),
            digest: Some(Digest::sha256(b"d")),
            truncated,
            ..outcome(Class::Internal, String::new())
        }
    }

    const EARLY: &str = "2026-01-01T00:00:00Z";
    const LATE: &str = "2026-01-01T00:01:00Z";

    #[test]
    fn the_message_decides_for_a_complete_job() {
        let short = serde_json::to_value(sealed(true)).unwrap();
        let pods = [pod("a", EARLY, 69, None), pod("b", LATE, 0, Some(short))];
        let image = SealedImage { reference: "a".into(), manifest: Digest::sha256(b"m"), index: None };
        let whole = Outcome { images: vec![image], ..sealed(false) };
        let of = |logged: Option<Outcome>| match of(&End::Complete, &pods, |name| {
            logged.clone().filter(|_| name == "b")
        }) {
            Ended::Result(outcome) => outcome.images.len(),
            other => panic!("{other:?}"),
        };
        assert_eq!((of(None), of(Some(whole.clone()))), (0, 1));
        let other = Outcome { digest: Some(Digest::sha256(b"x")), ..whole };
        assert_eq!(of(Some(other)), 0, "a log with another result is not trusted");
        assert!(matches!(super::of(&End::Complete, &[], |_| None), Ended::Died(_)));
        assert!(matches!(super::of(&End::Complete, &pods[..1], |_| None), Ended::Died(_)));
    }

    #[test]
    fn the_last_pod_decides_for_a_failed_job() {
        let of = |end: &End, pods: &[Pod]| match of(end, pods, |_| None) {
            Ended::Exhausted(outcome) => (outcome.class.unwrap(), outcome.message),
            other => panic!("{other:?}"),
        };
        let denied = serde_json::to_value(outcome(Class::Denied, "no".into())).unwrap();
        let pods = [pod("b", LATE, 77, Some(denied)), pod("a", EARLY, 69, None)];
        assert_eq!(of(&failed("PodFailurePolicy"), &pods), (Class::Denied, "no".into()));
        let (class, message) = of(&failed("BackoffLimitExceeded"), &[pod("a", EARLY, 137, None)]);
        assert_eq!(class, Class::Internal);
        assert!(message.contains("137 (OOMKilled)"), "{message}");
        let output = Some(json!("boom\u{1b}[2J"));
        let (class, message) = of(&failed("PodFailurePolicy"), &[pod("a", EARLY, 65, output)]);
        assert_eq!(class, Class::Corrupt);
        assert!(message.ends_with("its last output: boom\\u{1b}[2J"), "{message}");
        assert_eq!(of(&failed("DeadlineExceeded"), &[]).0, Class::Busy);
        let (_, message) = of(&failed("Odd"), &[]);
        assert_eq!(message, "the job failed: Odd: m\\u{1b}");
    }

    #[test]
    fn the_last_failure_decides_for_a_verifier() {
        assert!(refusal(&End::Complete, &[pod("a", EARLY, 69, None)]).is_none());
        let of = |reason: &str, pods: &[Pod]| {
            let refused = refusal(&failed(reason), pods).unwrap();
            (refused.class.unwrap(), refused.message)
        };
        let output = Some(json!("larder: layer x differs\u{1b}[2J\n"));
        let pods = [pod("b", LATE, 65, output), pod("a", EARLY, 69, None)];
        let refused = "the volume failed verification: layer x differs\\u{1b}[2J".to_owned();
        assert_eq!(of("PodFailurePolicy", &pods), (Class::Corrupt, refused));
        let (class, message) = of("BackoffLimitExceeded", &[pod("a", EARLY, 137, None)]);
        assert_eq!(class, Class::Internal);
        assert!(message.starts_with("the verifier ended with exit code 137 (OOMKilled)"), "{message}");
        let (class, message) = of("DeadlineExceeded", &[]);
        assert_eq!(
            (class, message.as_str()),
            (Class::Busy, "the verifier did not end within its time limit")
        );
    }
}
