//! Publishes the image caches of the node for schedulers and people: labels, a condition, and the startup
//! taint.
//!
//! | on the Node object | value |
//! |---|---|
//! | label `cache.larder.dev/<namespace>.<name>` for each attached image cache | start of its digest |
//! | condition `larder.dev/ImageCachesAttached` | `True` if all of `node.caches` are attached |
//! | taint `readiness.k8s.io/larder.image-caches` | removed when all of `node.caches` are attached |
//!
//! The name of the taint follows the conventions of the Node Readiness Controller, which can also remove it
//! based on the condition. The controller is not required, because the agent removes the taint itself.
//!
//! The permissions for this are optional (`config/kubernetes/node/readiness`), because RBAC cannot limit them
//! to the agent's own node.

use std::collections::BTreeMap;

use chrono::{SecondsFormat, Utc};
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::ResourceExt as _;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::desired::DesiredVolume;
use crate::kubernetes::client::ApiServer;
use crate::kubernetes::fault::{Fault, request};

/// Prefix of the labels.
const LABEL: &str = "cache.larder.dev/";
/// Type of the condition.
pub(super) const CONDITION: &str = "larder.dev/ImageCachesAttached";
/// Key of the taint.
const TAINT: &str = "readiness.k8s.io/larder.image-caches";
/// Field manager of labels and condition. Fields that are not applied again are removed.
const MANAGER: &str = "larder-node";
/// Maximum length of the name part of a label key, characters.
const MAX_NAME: usize = 63;
/// Number of characters of a digest in the value of a label.
const DIGEST_CHARS: usize = 16;

/// The state of the node's image caches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    labels: BTreeMap<String, String>,
    /// Image caches of `node.caches` that are not attached.
    pending: Vec<String>,
}

impl State {
    /// Returns the state of a node on which the volumes of `attached` are attached, and which waits for the
    /// image caches `wanted`.
    pub(super) fn of<'a>(attached: impl Iterator<Item = &'a DesiredVolume>, wanted: &[String]) -> Self {
        let mut state = State { labels: BTreeMap::new(), pending: wanted.to_vec() };
        for desired in attached {
            state.pending.retain(|name| *name != desired.cache());
            // While the newest volume is not attached, an older one serves the image cache.
            let value = desired.seal.as_ref().map_or("older", |digest| &digest.hex()[..DIGEST_CHARS]);
            state.labels.insert(label(desired), value.to_owned());
        }
        state
    }

    /// Brings the Node object up to date.
    ///
    /// # Errors
    /// A request failed. The next call continues from there.
    pub(super) async fn publish(&self, client: &ApiServer, node: &str) -> Result<(), Fault> {
        let nodes: Api<Node> = Api::all((**client).clone());
        let mut object = request!(&format!("reading the node {node}"), nodes.get(node))?;
        let parameters = PatchParams::apply(MANAGER).force();
        if self.labels != labels_of(&object) {
            let labels = json!({
                "apiVersion": "v1", "kind": "Node",
                // The UID prevents an apply from creating a node that was deleted.
                "metadata": {"name": node, "uid": object.uid(), "labels": self.labels},
            });
            let doing = format!("labelling the node {node}");
            object = request!(&doing, nodes.patch(node, &parameters, &Patch::Apply(&labels)))?;
        }
        if let Some(condition) = self.condition(&object) {
            let status = json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "uid": object.uid()},
                "status": {"conditions": [condition]},
            });
            let doing = format!("writing the condition of the node {node}");
            object = request!(&doing, nodes.patch_status(node, &parameters, &Patch::Apply(&status)))?;
        }
        if self.pending.is_empty()
            && let Some(taints) = without_own_taint(&object)
        {
            let doing = format!("removing the taint of the node {node}");
            // The list is replaced as a whole; the version protects the taints of other writers.
            let patch = json!({
                "metadata": {"uid": object.uid(), "resourceVersion": object.resource_version()},
                "spec": {"taints": taints},
            });
            request!(&doing, nodes.patch(node, &PatchParams::default(), &Patch::Merge(&patch)))?;
        }
        Ok(())
    }

    /// Returns the condition, if the node has another one or none.
    fn condition(&self, node: &Node) -> Option<serde_json::Value> {
        let (status, reason) =
            if self.pending.is_empty() { ("True", "Attached") } else { ("False", "Pending") };
        let message = match self.pending.as_slice() {
            [] => "all image caches of node.caches are attached".to_owned(),
            pending => format!("not attached: {}", pending.join(", ")),
        };
        let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let before = conditions.into_iter().find(|condition| condition.type_ == CONDITION);
        if before.is_some_and(|old| old.status == status && old.message.as_ref() == Some(&message)) {
            return None;
        }
        let now = Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true);
        let since =
            before.filter(|old| old.status == status).and_then(|old| old.last_transition_time.as_ref());
        let since = since.map_or_else(|| json!(now), |time| json!(time));
        Some(json!({
            "type": CONDITION, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": since,
        }))
    }
}

/// Returns the key of the label of an image cache. A name that is too long for a label is replaced by the
/// UID.
pub(super) fn label(desired: &DesiredVolume) -> String {
    let name = format!("{}.{}", desired.volume.tenant, desired.name);
    let name = if name.len() <= MAX_NAME { name } else { desired.volume.id.to_string() };
    format!("{LABEL}{name}")
}

fn labels_of(node: &Node) -> BTreeMap<String, String> {
    let labels = node.labels().iter().filter(|(key, _)| key.starts_with(LABEL));
    labels.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Returns the taints of a node without Larder's; `None` if the node does not have it.
fn without_own_taint(node: &Node) -> Option<Vec<&Taint>> {
    let taints: Vec<&Taint> = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).collect();
    let others: Vec<&Taint> = taints.iter().copied().filter(|taint| taint.key != TAINT).collect();
    (others.len() < taints.len()).then_some(others)
}

#[cfg(test)]
mod tests {
    use kube_cel::{VapEvaluator, VapExpression};
    use serde_json::Value;

    use super::super::desired::decide;
    use super::super::desired::tests::{cache, named};
    use super::super::objects::tests::of_evaluator;
    use super::*;

    fn desired_volumes(name: &str) -> Vec<DesiredVolume> {
        let caches = [cache("team-a", name, &[], |_| {})];
        decide(&named(&format!("team-a/{name}")), &caches, "node-a", 1).volumes
    }

    #[test]
    fn what_is_attached_is_labelled_and_no_longer_pending() {
        let attached = desired_volumes("web");
        let wanted = ["team-a/web".to_owned(), "team-a/api".to_owned()];
        let state = State::of(attached.iter(), &wanted);
        let digest = attached[0].seal.as_ref().unwrap().hex();
        assert_eq!(state.labels["cache.larder.dev/team-a.web"], digest[..DIGEST_CHARS]);
        assert_eq!(state.pending, ["team-a/api"]);
        let older = [DesiredVolume { seal: None, ..attached[0].clone() }];
        assert_eq!(State::of(older.iter(), &[]).labels["cache.larder.dev/team-a.web"], "older");
    }

    #[test]
    fn a_name_that_is_too_long_is_a_uid() {
        let long = desired_volumes(&"w".repeat(60));
        assert_eq!(label(&long[0]), format!("cache.larder.dev/{}", long[0].volume.id));
        assert_eq!(label(&desired_volumes(&"w".repeat(56))[0]).len(), LABEL.len() + MAX_NAME);
    }

    #[test]
    fn a_condition_keeps_its_time_until_it_changes() {
        let node = |conditions: serde_json::Value| -> Node {
            serde_json::from_value(json!({"metadata": {"name": "a"}, "status": {"conditions": conditions}}))
                .unwrap()
        };
        let pending = State { pending: vec!["team-a/web".into()], ..State::default() };
        let mut first = pending.condition(&node(json!([]))).unwrap();
        assert_eq!((&first["status"], &first["reason"]), (&json!("False"), &json!("Pending")));
        first["lastTransitionTime"] = json!("2026-01-01T00:00:00Z");
        let old = node(json!([first]));
        assert_eq!(pending.condition(&old), None);
        let more = State { pending: vec!["team-a/api".into()], ..State::default() };
        assert_eq!(more.condition(&old).unwrap()["lastTransitionTime"], "2026-01-01T00:00:00Z");
        let ready = State::default().condition(&old).unwrap();
        assert_eq!(ready["status"], "True");
        assert_ne!(ready["lastTransitionTime"], "2026-01-01T00:00:00Z");
    }

    /// Returns the number of rules of the shipped policy that refuse this change of a node by an agent on
    /// `node-a`.
    fn refusals(old: &Value, new: &Value) -> usize {
        let shipped = include_str!("../../../config/kubernetes/node/readiness/policy.yaml");
        let policy: Value = serde_saphyr::from_str(shipped.split("\n---\n").next().unwrap()).unwrap();
        let rules: Vec<VapExpression> = policy["spec"]["validations"]
            .as_array()
            .unwrap()
            .iter()
            .map(|rule| VapExpression {
                expression: of_evaluator(rule["expression"].as_str().unwrap()),
                message: None,
                message_expression: None,
            })
            .collect();
        let request = json!({"userInfo": {"extra": {"authentication.kubernetes.io/node-name": ["node-a"]}}});
        let evaluator = VapEvaluator::builder().params(request).object(new.clone()).old_object(old.clone());
        let results = evaluator.build().evaluate(&rules);
        assert_eq!(results.len(), 7);
        results.iter().filter(|result| !result.passed).count()
    }

    #[test]
    fn the_policy_limits_an_agent_to_its_own_fields() {
        let condition = |type_: &str, status: &str| json!({"type": type_, "status": status});
        let taint = |key: &str| json!({"key": key, "effect": "NoSchedule"});
        let old = json!({
            "metadata": {"name": "node-a", "labels": {"zone": "a", "cache.larder.dev/team-a.web": "0"}},
            "spec": {"taints": [taint(TAINT), taint("other")]},
            "status": {"capacity": {"cpu": "4"}, "conditions": [condition("Ready", "True")]},
        });
        let changed = |change: fn(&mut Value)| {
            let mut new = old.clone();
            change(&mut new);
            refusals(&old, &new)
        };
        assert_eq!(refusals(&old, &old), 0);
        let mine = json!([taint("other")]);
        let mut new = old.clone();
        new["metadata"]["labels"] = json!({"zone": "a", "cache.larder.dev/team-a.api": "1"});
        new["spec"]["taints"] = mine;
        new["status"]["conditions"] = json!([condition("Ready", "True"), condition(CONDITION, "True")]);
        assert_eq!(refusals(&old, &new), 0);
        assert_eq!(changed(|node| node["metadata"]["name"] = json!("node-b")), 1, "another node");
        assert_eq!(changed(|node| node["metadata"]["labels"]["zone"] = json!("b")), 1, "a label of others");
        assert_eq!(changed(|node| node["metadata"]["labels"] = json!({})), 1, "no label of others");
        assert_eq!(changed(|node| node["metadata"]["annotations"] = json!({"a": "b"})), 1, "an annotation");
        assert_eq!(changed(|node| node["spec"]["unschedulable"] = json!(true)), 1, "a cordon");
        assert_eq!(changed(|node| node["spec"]["taints"] = json!([])), 1, "a taint of others");
        assert_eq!(changed(|node| node["status"]["conditions"] = json!([])), 1, "a condition of others");
        assert_eq!(changed(|node| node["status"]["capacity"]["cpu"] = json!("8")), 1, "capacity");
    }

    #[test]
    fn taints_of_others_stay() {
        let node = |taints: serde_json::Value| -> Node {
            serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": {"taints": taints}})).unwrap()
        };
        let other = json!({"key": "other", "effect": "NoSchedule"});
        assert_eq!(without_own_taint(&node(json!([other]))), None);
        let both = node(json!([{"key": TAINT, "effect": "NoSchedule"}, other]));
        assert_eq!(without_own_taint(&both).unwrap().len(), 1);
    }
}
