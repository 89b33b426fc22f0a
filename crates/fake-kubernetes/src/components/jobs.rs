//! Job controller for Jobs that are not indexed (pkg/controller/job/job_controller.go, pod_failure_policy.go;
//! facts/kubernetes.md, 1 and 2.4).

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::kind::Id;
use super::super::object::{condition, deleting, has_finalizer, list, meta, now, set_finalizer, text};
use super::super::store::State;
use super::super::write::{DeleteOptions, WriteOptions};
use super::{id_of, set_condition};

const MANAGER: &str = "kube-controller-manager";
/// Finalizer that keeps pods until this controller has counted them.
const TRACKING: &str = "batch.kubernetes.io/job-tracking";
const PODS: (&str, &str) = ("", "pods");
/// Maximum pause after a failure, as a multiple of the first: 10 s, 20 s … 10 min.
const MAX_BACKOFF: u32 = 60;

pub(super) fn step(state: &mut State) {
    let jobs: Vec<_> = state.all("batch", "jobs", "").cloned().collect();
    for job in jobs {
        sync(state, &job);
    }
    orphans(state);
}

/// Removes the finalizer of pods whose Job no longer exists.
fn orphans(state: &mut State) {
    let tracked: Vec<_> =
        state.all("", "pods", "").filter(|pod| has_finalizer(pod, TRACKING)).cloned().collect();
    for pod in tracked {
        let owner = controller(&pod).map(|owner| text(owner, "/uid"));
        let there =
            state.all("batch", "jobs", meta(&pod, "namespace")).any(|job| owner == Some(meta(job, "uid")));
        if !there {
            state.amend(&id_of(PODS, &pod), false, MANAGER, |pod| set_finalizer(pod, TRACKING, false));
        }
    }
}

fn controller(object: &Value) -> Option<&Value> {
    list(object, "/metadata/ownerReferences").iter().find(|owner| owner["controller"] == true)
}

fn terminal(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
}

/// Reason for the failure of a Job.
struct Failure {
    reason: String,
    message: String,
}

fn sync(state: &mut State, job: &Arc<Value>) {
    let id = id_of(("batch", "jobs"), job);
    let uid = meta(job, "uid").to_owned();
    let mut new = job.as_ref().clone();
    let finished = condition(job, "Complete") || condition(job, "Failed");
    let policy = track(state, job, &mut new, finished);
    if finished || deleting(job) {
        store(state, &id, &new);
        if let (true, Some(ttl)) =
            (finished && !deleting(job), job["spec"]["ttlSecondsAfterFinished"].as_u64())
            && state.timers.due(&uid, "ttl", state.timing.second * u32::try_from(ttl).unwrap_or(u32::MAX))
        {
            delete(state, &id, &DeleteOptions::of(&uid).propagating("Foreground"));
        }
        return;
    }
    let suspended = job["spec"]["suspend"] == true;
    if suspended {
        state.timers.reset(&uid, "deadline");
        set_condition(&mut new, "Suspended", true, "JobSuspended", "Job suspended");
        new["status"].as_object_mut().map(|status| status.remove("startTime"));
    } else {
        if condition(job, "Suspended") {
            set_condition(&mut new, "Suspended", false, "JobResumed", "Job resumed");
        }
        if new["status"].get("startTime").is_none() {
            new["status"]["startTime"] = now().into();
        }
    }
    let failure = failure(state, &new, policy, suspended);
    let pods = pods(state, &uid, &id.namespace);
    let running: Vec<_> = pods.iter().filter(|pod| !terminal(pod)).collect();
    if failure.is_some() || suspended {
        for pod in running.iter().filter(|pod| !deleting(pod)) {
            delete(state, &id_of(PODS, pod), &DeleteOptions::of(meta(pod, "uid")));
        }
    }
    let running: Vec<_> = pods_not_ended(state, &uid, &id.namespace);
    if let Some(Failure { reason, message }) = failure {
        set_condition(&mut new, "FailureTarget", true, &reason, &message);
        // The Job is reported as failed once the last pod has ended.
        if running.is_empty() {
            set_condition(&mut new, "Failed", true, &reason, &message);
            state.record_event(&new, true, &reason, &message);
        }
    } else if new["status"]["succeeded"].as_u64().unwrap_or(0)
        >= new["spec"]["completions"].as_u64().unwrap_or(1)
    {
        let (reason, message) = ("CompletionsReached", "Reached expected number of succeeded pods");
        set_condition(&mut new, "SuccessCriteriaMet", true, reason, message);
        if running.is_empty() {
            set_condition(&mut new, "Complete", true, reason, message);
            if new["status"].get("completionTime").is_none() {
                new["status"]["completionTime"] = now().into();
            }
        }
    } else if !suspended {
        create_missing_pods(state, &new, &running);
    }
    counts(state, &mut new, &uid, &id.namespace);
    store(state, &id, &new);
}

fn pods(state: &State, uid: &str, namespace: &str) -> Vec<Arc<Value>> {
    let all = state.all("", "pods", namespace);
    all.filter(|pod| controller(pod).is_some_and(|owner| owner["uid"] == uid)).cloned().collect()
}

fn pods_not_ended(state: &State, uid: &str, namespace: &str) -> Vec<Arc<Value>> {
    pods(state, uid, namespace).into_iter().filter(|pod| !terminal(pod)).collect()
}

/// Counts each ended pod once and removes its finalizer. Returns the failure that the policy determines.
fn track(state: &mut State, job: &Value, new: &mut Value, finished: bool) -> Option<Failure> {
    let mut failure = None;
    for pod in pods(state, meta(job, "uid"), meta(job, "namespace")) {
        if !has_finalizer(&pod, TRACKING) || !(terminal(&pod) || deleting(job) || finished) {
            continue;
        }
        if terminal(&pod) && !finished {
            let field = if text(&pod, "/status/phase") == "Succeeded" { "succeeded" } else { "failed" };
            let (count, decided) =
                if field == "failed" { match_failure_policy(job, &pod) } else { (true, None) };
            failure = failure.or(decided);
            if count {
                new["status"][field] = (new["status"][field].as_u64().unwrap_or(0) + 1).into();
            }
        }
        state.amend(&id_of(PODS, &pod), false, MANAGER, |pod| set_finalizer(pod, TRACKING, false));
    }
    failure
}

/// Decides whether a failed pod counts, and whether it fails the Job at once (matchPodFailurePolicy).
fn match_failure_policy(job: &Value, pod: &Value) -> (bool, Option<Failure>) {
    for (at, rule) in list(job, "/spec/podFailurePolicy/rules").iter().enumerate() {
        let matched = match rule["onExitCodes"].as_object() {
            Some(_) => exit_codes(&rule["onExitCodes"], pod).map(|(container, code)| {
                format!(
                    "Container {container} for pod {}/{} failed with exit code {code} matching {} rule at index {at}",
                    meta(pod, "namespace"),
                    meta(pod, "name"),
                    text(rule, "/action")
                )
            }),
            None => {
                let met = list(rule, "/onPodConditions").iter().find(|pattern| {
                    list(pod, "/status/conditions").iter().any(|condition| {
                        condition["type"] == pattern["type"] && condition["status"] == pattern["status"]
                    })
                });
                met.map(|pattern| {
                    format!(
                        "Pod {}/{} has condition {} matching {} rule at index {at}",
                        meta(pod, "namespace"),
                        meta(pod, "name"),
                        text(pattern, "/type"),
                        text(rule, "/action")
                    )
                })
            }
        };
        let Some(message) = matched else { continue };
        return match text(rule, "/action") {
            "Ignore" => (false, None),
            "FailJob" => (true, Some(Failure { reason: "PodFailurePolicy".to_owned(), message })),
            _ => (true, None),
        };
    }
    (true, None)
}

fn exit_codes<'a>(requirement: &Value, pod: &'a Value) -> Option<(&'a str, i64)> {
    let codes: Vec<_> = list(requirement, "/values").iter().filter_map(Value::as_i64).collect();
    let name = requirement["containerName"].as_str();
    let ended = list(pod, "/status/containerStatuses").iter().filter_map(|status| {
        let code = status.pointer("/state/terminated/exitCode")?.as_i64()?;
        Some((text(status, "/name"), code))
    });
    let mut ended =
        ended.filter(|(container, code)| *code != 0 && name.is_none_or(|name| name == *container));
    ended.find(|(_, code)| codes.contains(code) == (requirement["operator"] == "In"))
}

fn failure(state: &mut State, new: &Value, policy: Option<Failure>, suspended: bool) -> Option<Failure> {
    if let Some(target) = list(new, "/status/conditions").iter().find(|c| c["type"] == "FailureTarget") {
        return Some(Failure {
            reason: text(target, "/reason").to_owned(),
            message: text(target, "/message").to_owned(),
        });
    }
    if policy.is_some() {
        return policy;
    }
    if new["status"]["failed"].as_u64().unwrap_or(0) > new["spec"]["backoffLimit"].as_u64().unwrap_or(6) {
        return Some(Failure {
            reason: "BackoffLimitExceeded".to_owned(),
            message: "Job has reached the specified backoff limit".to_owned(),
        });
    }
    let deadline = new["spec"]["activeDeadlineSeconds"].as_u64().filter(|_| !suspended)?;
    let deadline = state.timing.second * u32::try_from(deadline).unwrap_or(u32::MAX);
    state.timers.due(meta(new, "uid"), "deadline", deadline).then(|| Failure {
        reason: "DeadlineExceeded".to_owned(),
        message: "Job was active longer than specified deadline".to_owned(),
    })
}

/// Creates missing pods. With `podReplacementPolicy: Failed`, a terminating pod still counts.
fn create_missing_pods(state: &mut State, job: &Value, running: &[Arc<Value>]) {
    let failed_only = job["spec"]["podReplacementPolicy"] == "Failed";
    let there = running.iter().filter(|pod| failed_only || !deleting(pod)).count() as u64;
    let left =
        job["spec"]["completions"].as_u64().unwrap_or(1) - job["status"]["succeeded"].as_u64().unwrap_or(0);
    let wanted = job["spec"]["parallelism"].as_u64().unwrap_or(1).min(left);
    let failed = u32::try_from(job["status"]["failed"].as_u64().unwrap_or(0)).unwrap_or(u32::MAX);
    let uid = meta(job, "uid");
    if failed > 0 && there < wanted {
        let pause = state.timing.backoff * 2u32.saturating_pow(failed - 1).min(MAX_BACKOFF);
        if !state.timers.due(&format!("{uid}/{failed}"), "backoff", pause) {
            return;
        }
    }
    for _ in there..wanted {
        if !create(state, job) {
            return;
        }
    }
}

fn create(state: &mut State, job: &Value) -> bool {
    let Some(kind) = state.kind_of("", "pods") else { return false };
    let template = &job["spec"]["template"];
    let mut metadata = template["metadata"].clone();
    metadata["generateName"] = format!("{}-", meta(job, "name")).into();
    metadata["namespace"] = meta(job, "namespace").into();
    metadata["finalizers"] = json!([TRACKING]);
    metadata["ownerReferences"] = json!([{
        "apiVersion": "batch/v1", "kind": "Job", "name": meta(job, "name"), "uid": meta(job, "uid"),
        "controller": true, "blockOwnerDeletion": true,
    }]);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]});
    // A refused pod is retried after a pause, so that it does not fill the log.
    let (key, pause) = (format!("{}/refused", meta(job, "uid")), state.timing.backoff * 4);
    if state.timers.waits(&key) && !state.timers.due(&key, "refused", pause) {
        return false;
    }
    match state.create(&kind, meta(job, "namespace"), pod, &WriteOptions::component(MANAGER)) {
        Ok(_) => true,
        Err(refusal) => {
            state.record_event(job, true, "FailedCreate", &format!("Error creating: {}", refusal.message));
            state.timers.reset(&key, "refused");
            state.timers.due(&key, "refused", pause);
            false
        }
    }
}

fn counts(state: &State, new: &mut Value, uid: &str, namespace: &str) {
    let running = pods_not_ended(state, uid, namespace);
    let active = running.iter().filter(|pod| !deleting(pod)).count();
    let ready = running.iter().filter(|pod| !deleting(pod) && condition(pod, "Ready")).count();
    let status = &mut new["status"];
    if active == 0 {
        status.as_object_mut().map(|status| status.remove("active"));
    } else {
        status["active"] = active.into();
    }
    status["ready"] = ready.into();
    status["terminating"] = (running.len() - active).into();
    status["uncountedTerminatedPods"] = json!({});
}

fn store(state: &mut State, id: &Id, new: &Value) {
    let status = new["status"].clone();
    state.amend(id, true, MANAGER, |job| job["status"] = status);
}

fn delete(state: &mut State, id: &Id, options: &DeleteOptions) {
    if let Some(kind) = state.kind_of(&id.group, &id.plural) {
        let _ = state.delete(&kind, id, options);
    }
}
