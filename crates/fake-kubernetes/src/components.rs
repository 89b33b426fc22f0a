//! Components of a cluster besides its API server: garbage collector, Job controller, scheduler and kubelet,
//! volume and snapshot controllers with their CSI driver.
//!
//! Each component is a step that reads the state and moves it towards the wanted state. All steps repeat
//! until nothing changes, and again after a change or a delay. Components write like every client, but
//! without access control.

mod garbage;
mod jobs;
pub(super) mod kubelet;
mod snapshots;
mod volumes;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::kind::{Form, Id};
use super::object::{meta, now, now_micro, text};
use super::rules::usage;
use super::shared::Shared;
use super::store::State;
use super::write::WriteOptions;

/// Interval at which components look for work without a wake-up. Changes that a test makes outside of objects
/// wake no component.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Runs all components until the future is dropped.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut wake = shared.subscribe();
    loop {
        wake.borrow_and_update();
        let (start_requests, next) = shared.write(|state| {
            state.timers.next = None;
            settle(state);
            (std::mem::take(&mut state.node.start_requests), state.timers.next)
        });
        for request in start_requests {
            kubelet::start(&shared, request);
        }
        let next = next.unwrap_or_else(|| Instant::now() + POLL_INTERVAL);
        tokio::select! {
            changed = wake.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = sleep_until(next) => {}
        }
    }
}

fn settle(state: &mut State) {
    // A step that never settles is a bug in this crate. The rest is done at the next wake-up.
    for _ in 0..64 {
        let before = state.revision;
        garbage::step(state);
        quotas(state);
        volumes::step(state);
        kubelet::step(state);
        jobs::step(state);
        snapshots::step(state);
        if state.revision == before {
            return;
        }
    }
}

/// Writes the limits and the usage of each quota into its status (pkg/controller/resourcequota). Objects of a
/// custom kind are counted late: the controller looks for new kinds every 30 s, and at all quotas every 5
/// minutes.
pub(super) fn quotas(state: &mut State) {
    let quotas: Vec<_> = state.all("", "resourcequotas", "").cloned().collect();
    for quota in quotas {
        let namespace = meta(&quota, "namespace");
        let hard = quota["spec"]["hard"].clone();
        let mut used = serde_json::Map::new();
        for (resource, _) in hard.as_object().into_iter().flatten() {
            if is_counted(state, resource) {
                used.insert(resource.clone(), json!(usage(state, namespace, resource).to_string()));
            }
        }
        let id = Id::new("", "resourcequotas", namespace, meta(&quota, "name"));
        state.amend(&id, true, "kube-controller-manager", |quota| {
            quota["status"] = json!({"hard": hard, "used": used});
        });
    }
}

fn is_counted(state: &mut State, resource: &str) -> bool {
    let Some(counted) = resource.strip_prefix("count/") else { return true };
    match state.kinds.iter().find(|kind| kind.qualified() == counted).map(|kind| &kind.form) {
        None => false,
        Some(Form::BuiltIn(_)) => true,
        Some(Form::Custom(_)) => state.timers.due(resource, "count", state.timing.count),
    }
}

impl State {
    /// Records an event about an object, unless the same event exists.
    pub(super) fn record_event(&mut self, about: &Value, warning: bool, reason: &str, note: &str) {
        let namespace = match meta(about, "namespace") {
            "" => "default",
            namespace => namespace,
        };
        let exists = self.all("events.k8s.io", "events", namespace).any(|event| {
            text(event, "/regarding/uid") == meta(about, "uid")
                && text(event, "/reason") == reason
                && text(event, "/note") == note
        });
        let Some(kind) = self.kind_of("events.k8s.io", "events").filter(|_| !exists) else { return };
        let event = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event",
            // client-go tools/events/event_recorder.go: the recorder sets the name itself; it is not
            // generated.
            "metadata": {"name": format!("{}.{:x}", meta(about, "name"), Uuid::new_v4().as_u128() >> 64), "namespace": namespace},
            "eventTime": now_micro(), "reason": reason, "note": note, "action": reason,
            "type": if warning { "Warning" } else { "Normal" },
            "reportingController": "larder.dev/test", "reportingInstance": "test",
            "regarding": {
                "apiVersion": about["apiVersion"], "kind": about["kind"], "name": meta(about, "name"),
                "namespace": meta(about, "namespace"), "uid": meta(about, "uid"),
            },
        });
        // A namespace that is being deleted accepts no new events.
        let _ = self.create(&kind, namespace, event, &WriteOptions::component("test"));
    }
}

/// Sets a condition of a status. Updates the transition time only if the status of the condition changes.
fn set_condition(object: &mut Value, kind: &str, status: bool, reason: &str, message: &str) {
    let status = if status { "True" } else { "False" };
    if !object["status"]["conditions"].is_array() {
        object["status"]["conditions"] = json!([]);
    }
    let Some(conditions) = object["status"]["conditions"].as_array_mut() else { return };
    let at = conditions.iter().position(|condition| condition["type"] == kind).unwrap_or_else(|| {
        conditions.push(json!({"type": kind}));
        conditions.len() - 1
    });
    let condition = &mut conditions[at];
    if condition["status"] != status {
        condition["lastTransitionTime"] = now().into();
    }
    condition["status"] = status.into();
    for (field, value) in [("reason", reason), ("message", message)] {
        if value.is_empty() {
            condition.as_object_mut().map(|fields| fields.remove(field));
        } else {
            condition[field] = value.into();
        }
    }
}

fn id_of(kind: (&str, &str), object: &Value) -> Id {
    Id::new(kind.0, kind.1, meta(object, "namespace"), meta(object, "name"))
}
