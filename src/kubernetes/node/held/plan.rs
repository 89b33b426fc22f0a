//! Decides the next step for one pod that is held back. Pure.

use k8s_openapi::api::core::v1::{Node, NodeSelectorTerm, Pod};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::super::desired::DesiredVolume;
use super::super::labels::{ATTACH_ON, GATE, node_label};
use super::super::readiness::{CONDITION, label};
use larder_model::digest::Digest;

/// The next step for a pod that is held back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Release the pod: the image cache is attached on a node that it can use.
    Release,
    /// Let this node attach the image cache.
    Attach(String),
    /// Wait, with the reason.
    Wait(String),
}

/// The inputs of the decision for one pod.
#[derive(Debug)]
pub(super) struct Held<'a> {
    pub(super) pod: &'a Pod,
    /// The image cache of the pod, or the reason why there is none.
    pub(super) desired: Result<DesiredVolume, String>,
    /// The nodes that the pod can use and that have an agent.
    pub(super) nodes: &'a [&'a Node],
    /// `true` if the time limit of the chosen node has passed.
    pub(super) overdue: bool,
}

/// Reports whether an agent of a node reports the image caches that are attached there.
pub(super) fn has_agent(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == CONDITION)
}

/// Reports whether a pod has Larder's scheduling gate.
pub(super) fn is_gated(pod: &Pod) -> bool {
    let gates = pod.spec.iter().flat_map(|spec| spec.scheduling_gates.iter().flatten());
    gates.into_iter().any(|gate| gate.name == GATE)
}

/// Returns the node that was chosen for a pod, as [`node_label`].
pub(super) fn chosen(pod: &Pod) -> Option<&str> {
    pod.labels().get(ATTACH_ON).map(String::as_str)
}

impl Held<'_> {
    /// Decides the next step.
    pub(super) fn next(&self) -> Next {
        let desired = match &self.desired {
            Ok(desired) => desired,
            Err(why) => return Next::Wait(why.clone()),
        };
        let (cache, key) = (desired.cache(), label(desired));
        let is_attached = |node: &&&Node| node.labels().contains_key(&key);
        let gated = is_gated(self.pod);
        if gated && self.nodes.iter().any(|node| is_attached(&node)) {
            return Next::Release;
        }
        if let Err(why) = &desired.offered {
            return Next::Wait(format!("{cache} cannot be attached yet: {why}"));
        }
        let chosen = chosen(self.pod);
        let current = self.nodes.iter().find(|node| Some(node_label(&node.name_any()).as_str()) == chosen);
        match current {
            Some(node) if gated && !self.overdue => {
                Next::Wait(format!("{cache} is not attached yet; the node {} attaches it", node.name_any()))
            }
            _ if !gated && !self.overdue => {
                Next::Wait(format!("{cache} is attached; the scheduler finds no place there yet"))
            }
            _ => self.next_node(&cache, chosen, |node| !is_attached(&node)),
        }
    }

    /// Chooses the next node. Each pod has its own order of nodes, so that pods spread over nodes.
    fn next_node(&self, cache: &str, chosen: Option<&str>, is_free: impl Fn(&&Node) -> bool) -> Next {
        let uid = self.pod.uid().unwrap_or_default();
        let rank = |hash: &str| Digest::sha256(format!("{uid} {hash}").as_bytes()).hex().to_owned();
        let free = self.nodes.iter().filter(|node| is_free(node));
        let mut free: Vec<(String, String)> =
            free.map(|node| (rank(&node_label(&node.name_any())), node.name_any())).collect();
        free.sort();
        let last = chosen.map(rank);
        let next = free.iter().find(|(rank, _)| last.as_ref().is_none_or(|last| rank > last));
        match next.or(free.first()) {
            Some((_, node)) => Next::Attach(node.clone()),
            None if self.nodes.is_empty() => Next::Wait(format!(
                "no node that this pod can use has an agent that can attach {cache} (larder node, node.readiness)"
            )),
            None => Next::Wait(format!(
                "{cache} is attached on all nodes that this pod can use; they have no room"
            )),
        }
    }
}

/// Returns the merge patch that releases a pod to the scheduler. It adds the label of the image cache to each
/// term of the node affinity, and removes Larder's gate. API servers permit both for a gated pod (KEP-3838).
/// The version in the patch protects changes by other writers to these lists.
pub(super) fn release(pod: &Pod, desired: &DesiredVolume) -> Value {
    let spec = pod.spec.clone().unwrap_or_default();
    let required = spec
        .affinity
        .and_then(|affinity| affinity.node_affinity)
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution);
    let attached = json!({"key": label(desired), "operator": "Exists"});
    let terms: Vec<Value> = match required {
        None => vec![json!({"matchExpressions": [attached]})],
        Some(required) => required.node_selector_terms.iter().map(|term| and(term, &attached)).collect(),
    };
    let gates: Vec<_> =
        spec.scheduling_gates.into_iter().flatten().filter(|gate| gate.name != GATE).collect();
    json!({
        "metadata": {"uid": pod.uid(), "resourceVersion": pod.resource_version()},
        "spec": {
            "schedulingGates": gates,
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": terms,
            }}},
        },
    })
}

/// Adds the label to a term. An empty term matches no node, so it stays empty.
fn and(term: &NodeSelectorTerm, attached: &Value) -> Value {
    let mut term = json!(term);
    let is_empty = ["matchExpressions", "matchFields"]
        .iter()
        .all(|list| term[list].as_array().is_none_or(Vec::is_empty));
    if is_empty {
        return term;
    }
    if term["matchExpressions"].is_null() {
        term["matchExpressions"] = json!([]);
    }
    if let Some(expressions) = term["matchExpressions"].as_array_mut() {
        expressions.push(attached.clone());
    }
    term
}

/// Returns the merge patch that lets a node attach the image cache of a pod.
pub(super) fn attach_on(pod: &Pod, node: &str) -> Value {
    json!({"metadata": {
        "uid": pod.uid(), "resourceVersion": pod.resource_version(), "labels": {ATTACH_ON: node_label(node)},
    }})
}

#[cfg(test)]
mod tests;
