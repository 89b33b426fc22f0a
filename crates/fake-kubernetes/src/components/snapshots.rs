//! snapshot-controller and csi-snapshotter (external-snapshotter
//! pkg/common-controller/snapshot_controller.go, pkg/sidecar-controller/snapshot_controller.go;
//! facts/kubernetes.md, 1 and 2.5).

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use super::super::driver::{DRIVER, SnapshotOutcome};
use super::super::kind::Id;
use super::super::object::{deleting, has_finalizer, meta, metadata, now, set_finalizer, text};
use super::super::rules::bytes;
use super::super::store::State;
use super::super::write::{DeleteOptions, WriteOptions};
use super::{id_of, volumes};

const GROUP: &str = "snapshot.storage.k8s.io";
const SNAPSHOTS: (&str, &str) = (GROUP, "volumesnapshots");
const CONTENTS: (&str, &str) = (GROUP, "volumesnapshotcontents");
const CONTROLLER: &str = "snapshot-controller";
const SIDECAR: &str = "csi-snapshotter";
// pkg/utils/util.go.
const BOUND: &str = "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection";
const AS_SOURCE: &str = "snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection";
const CONTENT_BOUND: &str = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection";
const CLAIM_AS_SOURCE: &str = "snapshot.storage.kubernetes.io/pvc-as-source-protection";
const BEING_DELETED: &str = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted";
const BEING_CREATED: &str = "snapshot.storage.kubernetes.io/volumesnapshot-being-created";
const DEFAULT_CLASS: &str = "snapshot.storage.kubernetes.io/is-default-class";

pub(super) fn step(state: &mut State) {
    let snapshots: Vec<_> = state.all(GROUP, "volumesnapshots", "").cloned().collect();
    for snapshot in &snapshots {
        sync(state, snapshot);
    }
    free_claims(state);
    let contents: Vec<_> = state.all(GROUP, "volumesnapshotcontents", "").cloned().collect();
    for content in &contents {
        sync_content(state, content);
    }
}

fn sync(state: &mut State, snapshot: &Arc<Value>) {
    let id = id_of(SNAPSHOTS, snapshot);
    let content = content_of(state, snapshot);
    if deleting(snapshot) {
        return end(state, &id, snapshot, content.as_deref());
    }
    let delete = content.as_ref().is_some_and(|content| text(content, "/spec/deletionPolicy") == "Delete");
    state.amend(&id, false, CONTROLLER, |snapshot| {
        set_finalizer(snapshot, AS_SOURCE, true);
        if delete {
            set_finalizer(snapshot, BOUND, true);
        }
    });
    // A ready snapshot is not checked again. It reports ready even if the storage has lost it.
    if snapshot["status"]["readyToUse"] == true {
        return;
    }
    match (content, snapshot.pointer("/spec/source/persistentVolumeClaimName").and_then(Value::as_str)) {
        (Some(content), _) => {
            if bind(state, snapshot, &content) {
                report(state, &id, &content);
            }
        }
        (None, Some(claim)) => {
            if let Err(why) = make_content(state, snapshot, claim) {
                fail(state, &id, &format!("Failed to create snapshot content with error {why}"));
            }
        }
        (None, None) => fail(state, &id, "VolumeSnapshotContent is missing"),
    }
}

/// Returns the content that a snapshot names, or the one created for it under a generated name.
fn content_of(state: &State, snapshot: &Value) -> Option<Arc<Value>> {
    let dynamic = format!("snapcontent-{}", meta(snapshot, "uid"));
    let name = snapshot
        .pointer("/spec/source/volumeSnapshotContentName")
        .and_then(Value::as_str)
        .unwrap_or(&dynamic);
    state.get(&Id::new(GROUP, "volumesnapshotcontents", "", name)).cloned()
}

/// Binds an existing content. It is an error if the content belongs to another snapshot.
fn bind(state: &mut State, snapshot: &Value, content: &Value) -> bool {
    let reference = &content["spec"]["volumeSnapshotRef"];
    let uid = text(reference, "/uid");
    let ours = text(reference, "/name") == meta(snapshot, "name")
        && text(reference, "/namespace") == meta(snapshot, "namespace")
        && (uid.is_empty() || uid == meta(snapshot, "uid"));
    if !ours {
        let why =
            format!("VolumeSnapshotContent [{}] is bound to a different snapshot", meta(content, "name"));
        fail(state, &id_of(SNAPSHOTS, snapshot), &why);
        return false;
    }
    if uid.is_empty() {
        state.amend(&id_of(CONTENTS, content), false, CONTROLLER, |content| {
            content["spec"]["volumeSnapshotRef"]["uid"] = meta(snapshot, "uid").into();
        });
    }
    true
}

fn make_content(state: &mut State, snapshot: &Value, claim: &str) -> Result<(), String> {
    let namespace = meta(snapshot, "namespace");
    let claim =
        state.get(&Id::new("", "persistentvolumeclaims", namespace, claim)).cloned().ok_or_else(|| {
            format!(
                "snapshot controller failed to update {} on API server: cannot get claim from snapshot",
                meta(snapshot, "name")
            )
        })?;
    let class = class(state, snapshot)?;
    let volume = text(&claim, "/spec/volumeName");
    let Some(volume) = state.get(&Id::new("", "persistentvolumes", "", volume)).cloned() else {
        return Err(format!(
            "the PVC {} is not yet bound to a PV, will not attempt to take a snapshot",
            meta(&claim, "name")
        ));
    };
    let object = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
        "metadata": {"name": format!("snapcontent-{}", meta(snapshot, "uid")), "finalizers": [CONTENT_BOUND]},
        "spec": {
            "deletionPolicy": class["deletionPolicy"], "driver": class["driver"],
            "source": {"volumeHandle": volume["spec"]["csi"]["volumeHandle"]},
            "sourceVolumeMode": volume["spec"]["volumeMode"],
            "volumeSnapshotClassName": meta(&class, "name"),
            "volumeSnapshotRef": {
                "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "name": meta(snapshot, "name"),
                "namespace": namespace, "uid": meta(snapshot, "uid"),
                "resourceVersion": meta(snapshot, "resourceVersion"),
            },
        },
    });
    state.amend(&id_of(("", "persistentvolumeclaims"), &claim), false, CONTROLLER, |claim| {
        if !deleting(claim) {
            set_finalizer(claim, CLAIM_AS_SOURCE, true);
        }
    });
    let kind = state.kind_of(CONTENTS.0, CONTENTS.1).ok_or("the kind is not served")?;
    state.create(&kind, "", object, &WriteOptions::component(CONTROLLER)).map(|_| ()).map_err(|e| e.message)
}

fn class(state: &State, snapshot: &Value) -> Result<Arc<Value>, String> {
    let name = snapshot.pointer("/spec/volumeSnapshotClassName").and_then(Value::as_str);
    let mut all = state.all(GROUP, "volumesnapshotclasses", "");
    let found = match name {
        Some(name) => all.find(|class| meta(class, "name") == name),
        None => all.find(|class| class["metadata"]["annotations"][DEFAULT_CLASS] == "true"),
    };
    found.cloned().ok_or_else(|| match name {
        Some(name) => format!(
            "failed to get input parameters to create snapshot {}: \"volumesnapshotclass.snapshot.storage.k8s.io \\\"{name}\\\" not found\"",
            meta(snapshot, "name")
        ),
        None => "cannot find default snapshot class".to_owned(),
    })
}

/// Copies the status of the content to the snapshot.
fn report(state: &mut State, id: &Id, content: &Value) {
    let mut status = json!({"boundVolumeSnapshotContentName": meta(content, "name")});
    let reported = &content["status"];
    status["readyToUse"] = (reported["readyToUse"] == true).into();
    if let Some(size) = reported["restoreSize"].as_u64() {
        status["restoreSize"] = quantity(size).into();
    }
    if let Some(nanos) = reported["creationTime"].as_i64() {
        let time = DateTime::<Utc>::from_timestamp_nanos(nanos);
        status["creationTime"] = time.to_rfc3339_opts(SecondsFormat::Secs, true).into();
    }
    if reported["error"].is_object() && reported["readyToUse"] != true {
        status["error"] = reported["error"].clone();
    }
    if !reported.is_object() {
        // Not started: the snapshot is bound, and nothing else is known.
        status["readyToUse"] = false.into();
    }
    state.amend(id, true, CONTROLLER, |snapshot| snapshot["status"] = status);
}

fn fail(state: &mut State, id: &Id, message: &str) {
    state.amend(id, true, CONTROLLER, |snapshot| {
        if snapshot["status"]["error"]["message"] != message {
            snapshot["status"]["error"] = json!({"message": message, "time": now()});
        }
        snapshot["status"]["readyToUse"] = false.into();
    });
}

/// Formats a size in the canonical form of a quantity: `1Gi` instead of bytes, if it is a multiple.
fn quantity(size: u64) -> String {
    for (unit, shift) in [("Gi", 30), ("Mi", 20), ("Ki", 10)] {
        if size > 0 && size.is_multiple_of(1 << shift) {
            return format!("{}{unit}", size >> shift);
        }
    }
    size.to_string()
}

/// processSnapshotWithDeletionTimestamp: deletes the content first if its policy requires it.
fn end(state: &mut State, id: &Id, snapshot: &Value, content: Option<&Value>) {
    let content =
        content.filter(|content| text(content, "/spec/volumeSnapshotRef/uid") == meta(snapshot, "uid"));
    let restoring = state.all("", "persistentvolumeclaims", &id.namespace).any(|claim| {
        let source = &claim["spec"]["dataSource"];
        text(claim, "/status/phase") == "Pending"
            && source["kind"] == "VolumeSnapshot"
            && source["name"] == id.name
    });
    if content.is_some() && restoring {
        return state.record_event(
            snapshot,
            true,
            "SnapshotDeletePending",
            "Snapshot is being used to restore a PVC",
        );
    }
    let mut delete = false;
    if let Some(content) = content {
        let content_id = id_of(CONTENTS, content);
        state.amend(&content_id, false, CONTROLLER, |content| {
            metadata(content).entry("annotations").or_insert_with(|| json!({}))[BEING_DELETED] = "yes".into();
        });
        delete = text(content, "/spec/deletionPolicy") == "Delete";
        if delete
            && !deleting(content)
            && let Some(kind) = state.kind_of(CONTENTS.0, CONTENTS.1)
        {
            let _ = state.delete(&kind, &content_id, &DeleteOptions::of(meta(content, "uid")));
        }
    }
    state.amend(id, false, CONTROLLER, |snapshot| {
        set_finalizer(snapshot, AS_SOURCE, false);
        if !delete {
            set_finalizer(snapshot, BOUND, false);
        }
    });
}

/// Releases claims once no snapshot of them is being taken (checkandRemovePVCFinalizer).
fn free_claims(state: &mut State) {
    let held: Vec<_> = state
        .all("", "persistentvolumeclaims", "")
        .filter(|claim| has_finalizer(claim, CLAIM_AS_SOURCE))
        .cloned()
        .collect();
    for claim in held {
        let name = meta(&claim, "name");
        let making = state.all(GROUP, "volumesnapshots", meta(&claim, "namespace")).any(|snapshot| {
            snapshot.pointer("/spec/source/persistentVolumeClaimName").is_some_and(|of| of == name)
                && snapshot["status"].get("creationTime").is_none()
                && !deleting(snapshot)
        });
        if !making {
            state.amend(&id_of(("", "persistentvolumeclaims"), &claim), false, CONTROLLER, |claim| {
                set_finalizer(claim, CLAIM_AS_SOURCE, false);
            });
        }
    }
}

fn sync_content(state: &mut State, content: &Arc<Value>) {
    let id = id_of(CONTENTS, content);
    if text(content, "/spec/driver") != DRIVER {
        return;
    }
    let given = content.pointer("/spec/source/snapshotHandle").and_then(Value::as_str);
    let annotated = |name: &str| content["metadata"]["annotations"].get(name).is_some();
    if deleting(content) {
        let unbound = given.is_some() && text(content, "/spec/volumeSnapshotRef/uid").is_empty();
        // shouldDelete of the sidecar.
        if unbound || (!annotated(BEING_CREATED) && annotated(BEING_DELETED)) {
            if text(content, "/spec/deletionPolicy") == "Delete" {
                let handle = text(content, "/status/snapshotHandle");
                let offered = state
                    .all(GROUP, "volumesnapshotcontents", "")
                    .any(|other| text(other, "/spec/source/snapshotHandle") == handle && !handle.is_empty());
                state.driver.delete_snapshot(handle, offered);
            }
            state.amend(&id, false, SIDECAR, |content| set_finalizer(content, CONTENT_BOUND, false));
            return;
        }
        // The request has no response yet: it is repeated until the result is known.
        if annotated(BEING_CREATED) {
            take(state, &id, content);
        }
        return;
    }
    if !text(content, "/spec/volumeSnapshotRef/uid").is_empty() {
        state.amend(&id, false, CONTROLLER, |content| set_finalizer(content, CONTENT_BOUND, true));
    }
    if content["status"]["readyToUse"] == true {
        return;
    }
    match given {
        Some(handle) => imported(state, &id, handle),
        None => take(state, &id, content),
    }
}

/// Reports the status of a snapshot that already exists in the storage.
fn imported(state: &mut State, id: &Id, handle: &str) {
    let status = match state.driver.snapshot(handle) {
        Some(stored) => json!({
            "readyToUse": true, "snapshotHandle": handle, "restoreSize": stored.restore_size,
            "creationTime": Utc::now().timestamp_nanos_opt(),
        }),
        None => {
            let message = format!(
                "Failed to check and update snapshot content: failed to list snapshot for content {}: \"rpc error: code = \
                 NotFound desc = snapshot {handle} not found\"",
                id.name
            );
            let error = error(state, id, message);
            json!({"readyToUse": false, "error": error})
        }
    };
    state.amend(id, true, SIDECAR, |content| content["status"] = status);
}

/// Returns an error with the time of its first occurrence, so that a repetition is not a change.
fn error(state: &State, id: &Id, message: String) -> Value {
    let before = state.get(id).map(|content| content["status"]["error"].clone()).unwrap_or_default();
    if before["message"] == message { before } else { json!({"message": message, "time": now()}) }
}

/// Pause before the next request to a driver that refused one. The sidecar starts with one second and doubles
/// it (external-snapshotter, `retry-interval-start`). Without a pause, the other components would never
/// settle.
const RETRY: Duration = Duration::from_millis(200);

/// Requests a snapshot of a volume from the driver.
fn take(state: &mut State, id: &Id, content: &Value) {
    let uid = meta(content, "uid").to_owned();
    if content["status"].get("snapshotHandle").is_some() {
        // The snapshot is cut. It becomes ready once it is uploaded.
        let fate = state.driver.fate(&uid).clone();
        if let Some(SnapshotOutcome::Uploads(wait)) = fate
            && !state.timers.due(&uid, "upload", wait)
        {
            return;
        }
        state.amend(id, true, SIDECAR, |content| content["status"]["readyToUse"] = true.into());
        return;
    }
    if content["status"].get("error").is_some() && !state.timers.due(&uid, "retry", RETRY) {
        return;
    }
    set_being_created(state, id, true);
    if !state.timers.due(&uid, "snapshot", state.timing.snapshot) {
        return;
    }
    match state.driver.fate(&uid) {
        Some(SnapshotOutcome::Hangs) => return,
        Some(SnapshotOutcome::Fails { message, times }) if *times > 0 => {
            if *times != u32::MAX {
                *times -= 1;
            }
            let message = format!(
                "Failed to check and update snapshot content: failed to take snapshot of the volume {}: \"rpc error: code = \
                 Internal desc = {message}\"",
                text(content, "/spec/source/volumeHandle")
            );
            return refuse(state, id, &uid, message);
        }
        _ => {}
    }
    let volume = text(content, "/spec/source/volumeHandle");
    let found = state
        .all("", "persistentvolumes", "")
        .find(|pv| text(pv, "/spec/csi/volumeHandle") == volume)
        .cloned();
    let size = found.as_ref().and_then(|pv| bytes(text(pv, "/spec/capacity/storage"))).unwrap_or(0);
    let attached = found.as_ref().is_some_and(|pv| volumes::attached(state, meta(pv, "name")));
    match state.driver.create_snapshot(volume, size, attached) {
        Ok(handle) => {
            set_being_created(state, id, false);
            let uploads = matches!(state.driver.fate(&uid), Some(SnapshotOutcome::Uploads(_)));
            let status = json!({
                "readyToUse": !uploads, "snapshotHandle": handle, "restoreSize": size,
                "creationTime": Utc::now().timestamp_nanos_opt(),
            });
            state.amend(id, true, SIDECAR, |content| content["status"] = status);
        }
        Err(why) => refuse(state, id, &uid, format!("Failed to create snapshot: {why}")),
    }
}

/// Records a final error of the driver and schedules the next attempt.
fn refuse(state: &mut State, id: &Id, uid: &str, message: String) {
    set_being_created(state, id, false);
    let error = error(state, id, message);
    state.amend(id, true, SIDECAR, |content| {
        content["status"] = json!({"readyToUse": false, "error": error});
    });
    state.timers.reset(uid, "snapshot");
    state.timers.reset(uid, "retry");
    state.timers.due(uid, "retry", RETRY);
}

/// Marks a content whose snapshot request has no response. The snapshot might exist, so the content must not
/// be deleted.
fn set_being_created(state: &mut State, id: &Id, being: bool) {
    state.amend(id, false, SIDECAR, |content| {
        let annotations = metadata(content).entry("annotations").or_insert_with(|| json!({}));
        if being {
            annotations[BEING_CREATED] = "yes".into();
        } else {
            annotations.as_object_mut().map(|annotations| annotations.remove(BEING_CREATED));
        }
    });
}
