//! Claims and volumes: provisioning, binding, protection, attachment, reclaim (pkg/controller/volume,
//! external-provisioner; facts/kubernetes.md, 1 and 2.5).

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::driver::DRIVER;
use super::super::kind::Id;
use super::super::object::{deleting, has_finalizer, list, meta, metadata, set_finalizer, text};
use super::super::rules::bytes;
use super::super::store::State;
use super::super::write::{DeleteOptions, WriteOptions};
use super::id_of;

const MANAGER: &str = "kube-controller-manager";
const PROVISIONER: &str = "csi-provisioner";
const CLAIMS: (&str, &str) = ("", "persistentvolumeclaims");
const VOLUMES: (&str, &str) = ("", "persistentvolumes");
const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
/// Annotation with the node of a claim that waits for its first consumer.
pub(super) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

pub(super) fn step(state: &mut State) {
    let claims: Vec<_> = state.all("", "persistentvolumeclaims", "").cloned().collect();
    for claim in claims {
        if deleting(&claim) {
            protect(state, &claim);
        } else if text(&claim, "/status/phase") == "Pending" {
            provision(state, &claim);
        }
    }
    let volumes: Vec<_> = state.all("", "persistentvolumes", "").cloned().collect();
    for volume in volumes {
        reclaim(state, &volume);
    }
    detach(state);
}

/// Keeps a claim while a scheduled pod refers to it, even if the pod has ended
/// (pkg/controller/volume/pvcprotection/pvc_protection_controller.go).
fn protect(state: &mut State, claim: &Value) {
    let used = state.all("", "pods", meta(claim, "namespace")).any(|pod| {
        !text(pod, "/spec/nodeName").is_empty() && claims_of(pod).any(|name| name == meta(claim, "name"))
    });
    if !used && has_finalizer(claim, CLAIM_PROTECTION) {
        state.amend(&id_of(CLAIMS, claim), false, MANAGER, |claim| {
            set_finalizer(claim, CLAIM_PROTECTION, false);
        });
    }
}

/// Returns the names of the claims that a pod mounts.
pub(super) fn claims_of(pod: &Value) -> impl Iterator<Item = &str> {
    list(pod, "/spec/volumes")
        .iter()
        .filter_map(|volume| volume.pointer("/persistentVolumeClaim/claimName")?.as_str())
}

fn provision(state: &mut State, claim: &Arc<Value>) {
    let uid = meta(claim, "uid").to_owned();
    let name = text(claim, "/spec/storageClassName");
    let Some(class) = state.get(&Id::new("storage.k8s.io", "storageclasses", "", name)).cloned() else {
        let (reason, note) = if name.is_empty() {
            let why = "no persistent volumes available for this claim and no storage class is set";
            ("FailedBinding", why.to_owned())
        } else {
            ("ProvisioningFailed", format!("storageclass.storage.k8s.io \"{name}\" not found"))
        };
        return state.record_event(claim, reason != "FailedBinding", reason, &note);
    };
    let waits = text(&class, "/volumeBindingMode") == "WaitForFirstConsumer";
    if waits && claim["metadata"]["annotations"].get(SELECTED_NODE).is_none() {
        let note = "waiting for first consumer to be created before binding";
        return state.record_event(claim, false, "WaitForFirstConsumer", note);
    }
    if text(&class, "/provisioner") != DRIVER {
        let note = "Waiting for a volume to be created either by the external provisioner or manually";
        return state.record_event(claim, false, "ExternalProvisioning", note);
    }
    if !state.timers.due(&uid, "bind", state.timing.bind) {
        return;
    }
    let size = text(claim, "/spec/resources/requests/storage").to_owned();
    let made = source(state, claim, &size).and_then(|source| state.driver.create_volume(source.as_deref()));
    let handle = match made {
        Ok(handle) => handle,
        Err(why) => {
            // The provisioner retries without limit.
            state.timers.reset(&uid, "bind");
            state.timers.due(&uid, "bind", state.timing.bind);
            let note = format!("failed to provision volume with StorageClass \"{name}\": {why}");
            return state.record_event(claim, true, "ProvisioningFailed", &note);
        }
    };
    let volume = format!("pvc-{uid}");
    let object = json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {
            "name": volume, "finalizers": [VOLUME_PROTECTION],
            "annotations": {"pv.kubernetes.io/provisioned-by": DRIVER},
        },
        "spec": {
            "accessModes": claim["spec"]["accessModes"], "capacity": {"storage": size},
            "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": meta(claim, "name"),
                "namespace": meta(claim, "namespace"), "uid": uid,
            },
            "csi": {"driver": DRIVER, "volumeHandle": handle, "fsType": "ext4"},
            "persistentVolumeReclaimPolicy": class["reclaimPolicy"], "storageClassName": name,
            "volumeMode": claim["spec"]["volumeMode"],
        },
    });
    let Some(kind) = state.kind_of(VOLUMES.0, VOLUMES.1) else { return };
    if let Err(refusal) = state.create(&kind, "", object, &WriteOptions::component(PROVISIONER)) {
        return state.record_event(claim, true, "ProvisioningFailed", &refusal.message);
    }
    let volume_id = Id::new(VOLUMES.0, VOLUMES.1, "", &volume);
    state.amend(&volume_id, true, MANAGER, |volume| volume["status"] = json!({"phase": "Bound"}));
    let id = id_of(CLAIMS, claim);
    state.amend(&id, false, MANAGER, |claim| {
        claim["spec"]["volumeName"] = volume.into();
        let annotations = &mut claim["metadata"]["annotations"];
        annotations["pv.kubernetes.io/bind-completed"] = "yes".into();
        annotations["pv.kubernetes.io/bound-by-controller"] = "yes".into();
        annotations["volume.kubernetes.io/storage-provisioner"] = DRIVER.into();
    });
    state.amend(&id, true, MANAGER, |claim| {
        let modes = claim["spec"]["accessModes"].clone();
        claim["status"] = json!({"phase": "Bound", "accessModes": modes, "capacity": {"storage": size}});
    });
}

/// Returns the handle of the snapshot that is the source of a claim.
fn source(state: &State, claim: &Value, size: &str) -> Result<Option<String>, String> {
    let source = &claim["spec"]["dataSource"];
    if !source.is_object() {
        return Ok(None);
    }
    let (kind, name) = (text(source, "/kind"), text(source, "/name"));
    if kind != "VolumeSnapshot" {
        return Err(format!("the dataSource {kind} is not supported"));
    }
    const GROUP: &str = "snapshot.storage.k8s.io";
    let snapshot = state.get(&Id::new(GROUP, "volumesnapshots", meta(claim, "namespace"), name));
    let snapshot =
        snapshot.ok_or_else(|| format!("error getting snapshot {name} from api server: not found"))?;
    // external-provisioner, pkg/controller/controller.go, getSnapshotSource.
    if deleting(snapshot) {
        return Err(format!("snapshot {name} is currently being deleted"));
    }
    if snapshot["status"]["readyToUse"] != true {
        return Err(format!("snapshot {name} is not Ready"));
    }
    let content = text(snapshot, "/status/boundVolumeSnapshotContentName");
    let content = state.get(&Id::new(GROUP, "volumesnapshotcontents", "", content));
    let content = content.ok_or("the snapshot content does not exist")?;
    let least = bytes(text(snapshot, "/status/restoreSize")).unwrap_or(0);
    if bytes(size).unwrap_or(0) < least {
        return Err(format!(
            "requested volume size is less than the size {least} for the source snapshot {name}"
        ));
    }
    Ok(Some(text(content, "/status/snapshotHandle").to_owned()))
}

fn reclaim(state: &mut State, volume: &Arc<Value>) {
    let id = id_of(VOLUMES, volume);
    let (namespace, name) = (text(volume, "/spec/claimRef/namespace"), text(volume, "/spec/claimRef/name"));
    let claim = state.get(&Id::new(CLAIMS.0, CLAIMS.1, namespace, name));
    if claim.is_some_and(|claim| meta(claim, "uid") == text(volume, "/spec/claimRef/uid")) {
        return;
    }
    if text(volume, "/status/phase") != "Released" {
        state.amend(&id, true, MANAGER, |volume| volume["status"] = json!({"phase": "Released"}));
    }
    if text(volume, "/spec/persistentVolumeReclaimPolicy") != "Delete" && !deleting(volume) {
        return;
    }
    let attached = state
        .all("storage.k8s.io", "volumeattachments", "")
        .any(|attachment| text(attachment, "/spec/source/persistentVolumeName") == id.name);
    if attached {
        return;
    }
    state.driver.delete_volume(text(volume, "/spec/csi/volumeHandle"));
    if let Some(kind) = state.kind_of(VOLUMES.0, VOLUMES.1) {
        let _ = state.delete(&kind, &id, &DeleteOptions::of(meta(volume, "uid")));
    }
    state.amend(&id, false, MANAGER, |volume| set_finalizer(volume, VOLUME_PROTECTION, false));
}

/// Attaches a volume to a node (attach-detach controller and external-attacher).
pub(super) fn attach(state: &mut State, volume: &str, node: &str) {
    let name = attachment(volume, node);
    let id = Id::new("storage.k8s.io", "volumeattachments", "", &name);
    let Some(kind) = state.kind_of("storage.k8s.io", "volumeattachments") else { return };
    if state.get(&id).is_some() {
        return;
    }
    let object = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": name},
        "spec": {"attacher": DRIVER, "nodeName": node, "source": {"persistentVolumeName": volume}},
    });
    if state.create(&kind, "", object, &WriteOptions::component(MANAGER)).is_ok() {
        state.amend(&id, true, "csi-attacher", |object| object["status"] = json!({"attached": true}));
    }
}

fn attachment(volume: &str, node: &str) -> String {
    format!("csi-{volume}-{node}")
}

/// Reports whether a volume is attached to any node.
pub(super) fn attached(state: &State, volume: &str) -> bool {
    let mut all = state.all("storage.k8s.io", "volumeattachments", "");
    all.any(|attachment| text(attachment, "/spec/source/persistentVolumeName") == volume)
}

/// Detaches volumes that no pod on the node uses. A lost node keeps its volumes until it is removed, because
/// it might still write to them (pkg/controller/volume/attachdetach; maxWaitForUnmountDuration is not
/// simulated).
fn detach(state: &mut State) {
    let attachments: Vec<_> = state.all("storage.k8s.io", "volumeattachments", "").cloned().collect();
    for object in attachments {
        let (volume, node) =
            (text(&object, "/spec/source/persistentVolumeName"), text(&object, "/spec/nodeName"));
        let there = state.get(&Id::new("", "nodes", "", node)).is_some();
        if there && state.node.is_lost(node) {
            continue;
        }
        let used = there
            && state.all("", "pods", "").any(|pod| {
                let ended = matches!(text(pod, "/status/phase"), "Succeeded" | "Failed");
                text(pod, "/spec/nodeName") == node
                    && !ended
                    && claims_of(pod).any(|claim| {
                        let claim = state.get(&Id::new(CLAIMS.0, CLAIMS.1, meta(pod, "namespace"), claim));
                        claim.is_some_and(|claim| text(claim, "/spec/volumeName") == volume)
                    })
            });
        let uid = meta(&object, "uid");
        if used {
            state.timers.reset(uid, "detach");
        } else if state.timers.due(uid, "detach", state.timing.detach)
            && let Some(kind) = state.kind_of("storage.k8s.io", "volumeattachments")
        {
            let disk = state.get(&Id::new(VOLUMES.0, VOLUMES.1, "", volume));
            if let Some(disk) = disk.map(|disk| text(disk, "/spec/csi/volumeHandle").to_owned())
                && there
            {
                state.driver.unplug(&disk);
            }
            let id = Id::new("storage.k8s.io", "volumeattachments", "", meta(&object, "name"));
            let _ = state.delete(&kind, &id, &DeleteOptions::of(uid));
        }
    }
}

/// Records the node on which a claim is wanted.
pub(super) fn select_node(state: &mut State, claim: &Value, node: &str) {
    state.amend(&id_of(CLAIMS, claim), false, "kube-scheduler", |claim| {
        metadata(claim).entry("annotations").or_insert_with(|| json!({}))[SELECTED_NODE] = node.into();
    });
}
