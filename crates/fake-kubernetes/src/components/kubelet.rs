//! Scheduler, kubelet and pod garbage collector (pkg/scheduler, pkg/kubelet, pkg/controller/podgc;
//! facts/kubernetes.md, 1 and 2.4).
//!
//! ```text
//!           no node, claim, room           image, volumes            exit code, message   
//! Pending ──────────────────────► Pending ─────────────► Running ─────────────────────────► Succeeded | Failed
//!         Unschedulable                    ContainerCreating, ImagePullBackOff
//! ```
//!
//! A pod has one container, which is a process of this machine: the program of its node with the container's
//! `args`. Paths below a mount are rewritten to the real location of the volume. Capabilities, users,
//! read-only roots and limits are not enforced. A claim that is mounted read-only can be written unless the
//! kubelet of the node mounts volumes (`mount_volumes`).

mod container;
mod mounts;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::super::kind::Id;
use super::super::node::{Kill, Log, Node, StartRequest};
use super::super::object::{deleting, list, meta, now, text};
use super::super::store::State;
use super::super::write::{DeleteOptions, WriteOptions};
use super::{id_of, set_condition, volumes};

pub(in super::super) use container::start;

const KUBELET: &str = "kubelet";
const PODS: (&str, &str) = ("", "pods");

impl State {
    pub(in super::super) fn add_node(&mut self, node: Node) {
        let Some(kind) = self.kind_of("", "nodes") else { return };
        let labels: HashMap<_, _> = node.labels.iter().cloned().collect();
        let object = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name, "labels": labels},
        });
        self.create(&kind, "", object, &WriteOptions::component(KUBELET))
            .map_or_else(|e| panic!("{}", e.message), drop);
        let id = Id::new("", "nodes", "", &node.name);
        self.amend(&id, true, KUBELET, |node| {
            set_condition(node, "Ready", true, "KubeletReady", "kubelet is posting ready status");
            // Pods are processes of this machine.
            node["status"]["addresses"] = json!([{"type": "InternalIP", "address": "127.0.0.1"}]);
        });
        self.node.lost.retain(|lost| *lost != node.name);
        self.node.nodes.insert(node.name.clone(), node);
    }

    pub(in super::super) fn mount_volumes(&mut self, node: &str, kubelet: &Path) {
        self.node.kubelets.insert(node.to_owned(), kubelet.to_owned());
    }

    /// Switches the machine off: its processes end, and no status is reported.
    pub(in super::super) fn lose_node(&mut self, name: &str) {
        self.switch_off(name);
        self.amend(&Id::new("", "nodes", "", name), true, "node-controller", |node| {
            set_condition(node, "Ready", false, "NodeStatusUnknown", "Kubelet stopped posting node status.");
        });
    }

    fn switch_off(&mut self, name: &str) {
        self.node.lost.push(name.to_owned());
        let there: Vec<_> = self
            .all("", "pods", "")
            .filter(|pod| text(pod, "/spec/nodeName") == name)
            .map(|pod| meta(pod, "uid").to_owned())
            .collect();
        for uid in there {
            self.node.kill(&uid, false);
        }
    }

    /// Removes the node, as a cloud provider does after deleting the machine.
    pub(in super::super) fn remove_node(&mut self, name: &str) {
        self.switch_off(name);
        self.node.nodes.remove(name);
        self.take(&Id::new("", "nodes", "", name));
    }
}

pub(super) fn step(state: &mut State) {
    let pods: Vec<_> = state.all("", "pods", "").cloned().collect();
    for pod in pods {
        let node = text(&pod, "/spec/nodeName");
        if node.is_empty() {
            schedule(state, &pod);
        } else if state.get(&Id::new("", "nodes", "", node)).is_none() {
            collect(state, &pod);
        } else if state.node.is_lost(node) {
            evict(state, &pod);
        } else {
            run(state, &pod);
        }
    }
}

fn ended(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
}

fn schedule(state: &mut State, pod: &Arc<Value>) {
    let id = id_of(PODS, pod);
    if deleting(pod) {
        // podgc, gcUnscheduledTerminating.
        if !ended(pod) {
            state.amend(&id, true, "pod-garbage-collector", |pod| pod["status"]["phase"] = "Failed".into());
        }
        return;
    }
    // plugins/schedulinggates: a pod with a gate is not queued.
    if !list(pod, "/spec/schedulingGates").is_empty() {
        return;
    }
    match select_node_for(state, pod) {
        Ok(node) => {
            state.amend(&id, false, "kube-scheduler", |pod| pod["spec"]["nodeName"] = node.into());
            state.amend(&id, true, KUBELET, |pod| {
                set_condition(pod, "PodScheduled", true, "", "");
                waiting(pod, "ContainerCreating", "");
            });
        }
        Err(why) => {
            state.amend(&id, true, "kube-scheduler", |pod| {
                set_condition(pod, "PodScheduled", false, "Unschedulable", &why);
            });
            state.record_event(pod, true, "FailedScheduling", &why);
        }
    }
}

/// Selects a node for a pod, or returns the reason why none fits (pkg/scheduler/framework/plugins).
fn select_node_for(state: &mut State, pod: &Value) -> Result<String, String> {
    let (namespace, uid) = (meta(pod, "namespace"), meta(pod, "uid"));
    let mut nodes: Vec<_> =
        state.node.nodes.values().filter(|node| !state.node.is_lost(&node.name)).cloned().collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    if nodes.is_empty() {
        return Err("no nodes available to schedule pods".to_owned());
    }
    let count = nodes.len();
    let mut wanted = Vec::new();
    for name in volumes::claims_of(pod) {
        let Some(claim) = state.get(&Id::new("", "persistentvolumeclaims", namespace, name)).cloned() else {
            return Err(format!(
                "0/{count} nodes are available: persistentvolumeclaim \"{name}\" not found."
            ));
        };
        if deleting(&claim) {
            return Err(format!(
                "0/{count} nodes are available: persistentvolumeclaim \"{name}\" is being deleted."
            ));
        }
        let once = list(&claim, "/spec/accessModes").iter().any(|mode| mode == "ReadWriteOncePod");
        let taken = state.all("", "pods", namespace).any(|other| {
            let there = !text(other, "/spec/nodeName").is_empty() && !ended(other);
            there && meta(other, "uid") != uid && volumes::claims_of(other).any(|used| used == name)
        });
        if once && taken {
            return Err(format!(
                "0/{count} nodes are available: {count} node has pod using PersistentVolumeClaim with the same name and \
                 ReadWriteOncePod access mode."
            ));
        }
        if text(&claim, "/status/phase") != "Bound" {
            let class = text(&claim, "/spec/storageClassName");
            let class = state.get(&Id::new("storage.k8s.io", "storageclasses", "", class));
            if class.is_none_or(|class| text(class, "/volumeBindingMode") != "WaitForFirstConsumer") {
                return Err(format!(
                    "0/{count} nodes are available: pod has unbound immediate PersistentVolumeClaims."
                ));
            }
            wanted.push(claim);
        }
    }
    let selector = pod["spec"]["nodeSelector"].as_object();
    let fits = |node: &&Node| {
        let labelled = selector.into_iter().flatten().all(|(name, value)| {
            node.labels.iter().any(|(own, label)| own == name && value == label.as_str())
        });
        let object = state.get(&Id::new("", "nodes", "", &node.name));
        labelled && object.is_some_and(|object| matches_affinity(pod, object))
    };
    let Some(node) = nodes.iter().find(fits) else {
        return Err(format!(
            "0/{count} nodes are available: {count} node(s) didn't match Pod's node affinity/selector."
        ));
    };
    if !wanted.is_empty() {
        for claim in &wanted {
            volumes::select_node(state, claim, &node.name);
        }
        return Err("waiting for volumes to be provisioned".to_owned());
    }
    Ok(node.name.clone())
}

/// Matches required node affinity (component-helpers scheduling/corev1/nodeaffinity). `Gt` and `Lt` are not
/// simulated and match no node.
fn matches_affinity(pod: &Value, node: &Value) -> bool {
    let required = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution";
    if pod.pointer(required).is_none() {
        return true;
    }
    let holds = |requirement: &Value, value: Option<&str>| {
        let is_listed = list(requirement, "/values").iter().any(|one| one.as_str() == value);
        match text(requirement, "/operator") {
            "In" => is_listed,
            "NotIn" => !is_listed,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    };
    let label = |key: &str| node["metadata"]["labels"][key].as_str();
    list(pod, &format!("{required}/nodeSelectorTerms")).iter().any(|term| {
        let (fields, expressions) = (list(term, "/matchFields"), list(term, "/matchExpressions"));
        !(fields.is_empty() && expressions.is_empty())
            && fields
                .iter()
                .all(|field| text(field, "/key") == "metadata.name" && holds(field, Some(meta(node, "name"))))
            && expressions.iter().all(|one| holds(one, label(text(one, "/key"))))
    })
}

/// podgc, gcOrphaned: deletes a pod whose node no longer exists.
fn collect(state: &mut State, pod: &Arc<Value>) {
    let id = id_of(PODS, pod);
    if !ended(pod) {
        state.amend(&id, true, "pod-garbage-collector", |pod| {
            let why = "PodGC: node no longer exists";
            set_condition(pod, "DisruptionTarget", true, "DeletionByPodGC", why);
            pod["status"]["phase"] = "Failed".into();
        });
    }
    finish_deletion(state, pod);
}

/// The node controller deletes the pods of a lost node. They end only when a kubelet can report it.
fn evict(state: &mut State, pod: &Arc<Value>) {
    if ended(pod) || deleting(pod) || !state.timers.due(meta(pod, "uid"), "evict", state.timing.eviction) {
        return;
    }
    let id = id_of(PODS, pod);
    state.amend(&id, true, "taint-eviction-controller", |pod| {
        let why = "Taint manager: deleting due to NoExecute taint";
        set_condition(pod, "DisruptionTarget", true, "DeletionByTaintManager", why);
    });
    if let Some(kind) = state.kind_of("", "pods") {
        let _ = state.delete(&kind, &id, &DeleteOptions::of(meta(pod, "uid")));
    }
}

/// Completes the deletion of a pod. The kubelet releases its volumes first (pkg/kubelet/status,
/// PodCouldHaveRunningContainers and mounted volumes).
fn finish_deletion(state: &mut State, pod: &Value) {
    mounts::tear_down(state, meta(pod, "uid"));
    if let Some(kind) = state.kind_of("", "pods") {
        let _ = state.delete(&kind, &id_of(PODS, pod), &DeleteOptions::now(meta(pod, "uid")));
    }
}

fn run(state: &mut State, pod: &Arc<Value>) {
    let (id, uid) = (id_of(PODS, pod), meta(pod, "uid").to_owned());
    if ended(pod) {
        // Nothing is left to stop, so the rest of the grace period is skipped.
        if deleting(pod) && pod["metadata"]["deletionGracePeriodSeconds"] != 0 {
            finish_deletion(state, pod);
        }
        return;
    }
    if let Some(kill) = state.node.started.get(&uid).cloned() {
        if deleting(pod) {
            let grace = pod["metadata"]["deletionGracePeriodSeconds"].as_u64().unwrap_or(0);
            let grace = state.timing.second * u32::try_from(grace).unwrap_or(u32::MAX);
            let over = state.timers.due(&uid, "grace", grace);
            let _ = kill.send(if over { Kill::Now } else { Kill::Terminate });
        }
        return;
    }
    if deleting(pod) {
        state.amend(&id, true, KUBELET, |pod| pod["status"]["phase"] = "Failed".into());
        return finish_deletion(state, pod);
    }
    let Some(container) = list(pod, "/spec/containers").first().cloned() else { return };
    let Some(node) = state.node.nodes.get(text(pod, "/spec/nodeName")).cloned() else { return };
    let layout = match mounts::lay_out(state, pod, &container) {
        Ok(layout) => layout,
        Err(why) => {
            // The kubelet retries without limit; only the event has the reason (facts/kubernetes.md, 1).
            state.amend(&id, true, KUBELET, |pod| waiting(pod, "ContainerCreating", ""));
            state.timers.due(&uid, "mount", state.timing.second);
            return state.record_event(pod, true, "FailedMount", &why);
        }
    };
    let image = text(&container, "/image");
    if node.images.as_ref().is_some_and(|images| !images.iter().any(|known| known == image)) {
        let again = state.timers.due(&uid, "pull", state.timing.start);
        let (reason, message) = if again {
            ("ImagePullBackOff", format!("Back-off pulling image \"{image}\""))
        } else {
            ("ErrImagePull", format!("failed to pull and unpack image \"{image}\": not found"))
        };
        state.amend(&id, true, KUBELET, |pod| waiting(pod, reason, &message));
        return state.record_event(pod, true, "Failed", &format!("Failed to pull image \"{image}\""));
    }
    if !state.timers.due(&uid, "start", state.timing.start) {
        return;
    }
    let (kill, killed) = mpsc::unbounded_channel();
    let log = Arc::new(Log::default());
    state.node.started.insert(uid.clone(), kill);
    state.node.logs.insert(uid.clone(), Arc::clone(&log));
    state.amend(&id, true, KUBELET, |pod| {
        pod["status"]["phase"] = "Running".into();
        pod["status"]["startTime"] = now().into();
        container_state(pod, true, json!({"running": {"startedAt": now()}}));
        for condition in ["Initialized", "ContainersReady", "Ready"] {
            set_condition(pod, condition, true, "", "");
        }
    });
    state.node.start_requests.push(StartRequest::new(&node, id, uid, &container, &layout, log, killed));
}

/// Sets the container to waiting, with a reason.
fn waiting(pod: &mut Value, reason: &str, message: &str) {
    let mut waiting = json!({"reason": reason});
    if !message.is_empty() {
        waiting["message"] = message.into();
    }
    container_state(pod, false, json!({"waiting": waiting}));
}

fn container_state(pod: &mut Value, ready: bool, state: Value) {
    let container = &pod["spec"]["containers"][0];
    pod["status"]["containerStatuses"] = json!([{
        "name": container["name"], "image": container["image"], "imageID": "", "restartCount": 0, "lastState": {},
        "ready": ready, "started": ready, "state": state,
    }]);
}

/// Records the end of a container. A lost node reports nothing.
fn exited(state: &mut State, id: &Id, uid: &str, exit: &container::Exit) {
    state.node.started.remove(uid);
    mounts::tear_down(state, uid);
    let Some(pod) = state.get(id).filter(|pod| meta(pod, "uid") == uid).cloned() else { return };
    if state.node.is_lost(text(&pod, "/spec/nodeName")) || ended(&pod) {
        return;
    }
    let begun =
        pod.pointer("/status/containerStatuses/0/state/running/startedAt").cloned().unwrap_or_default();
    state.amend(id, true, KUBELET, |pod| {
        pod["status"]["phase"] = if exit.code == 0 { "Succeeded" } else { "Failed" }.into();
        let mut terminated = json!({
            "exitCode": exit.code, "reason": exit.reason, "startedAt": begun, "finishedAt": now(),
        });
        if !exit.message.is_empty() {
            terminated["message"] = exit.message.clone().into();
        }
        container_state(pod, false, json!({"terminated": terminated}));
        let reason = if exit.code == 0 { "PodCompleted" } else { "PodFailed" };
        for condition in ["ContainersReady", "Ready"] {
            set_condition(pod, condition, false, reason, "");
        }
    });
}
