//! Reports whether the scheduler can place a pod on a node, judging by labels, taints and cordons only.
//!
//! The scheduler decides about resources, ports and topology. The rules are those of component-helpers
//! `scheduling/corev1/nodeaffinity` and `scheduling/corev1/helpers.go`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration};
use kube::ResourceExt as _;

/// Taint of a node that is cordoned (k8s.io/api/core/v1/well_known_taints.go).
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Reports whether labels, taints and a cordon of a node allow a pod there.
pub(super) fn fits(pod: &Pod, node: &Node) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let (name, labels) = (node.name_any(), node.labels());
    let selector = spec.node_selector.iter().flatten();
    let is_selected = selector.into_iter().all(|(key, value)| labels.get(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    let is_near = required
        .is_none_or(|required| required.node_selector_terms.iter().any(|term| meets(term, &name, labels)));
    is_selected && is_near && tolerates(spec.tolerations.as_deref().unwrap_or_default(), node)
}

/// Reports whether a node meets a term. A term without requirements matches no node.
fn meets(term: &NodeSelectorTerm, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|one| holds(one, labels.get(&one.key).map(String::as_str)))
        && fields.iter().all(|one| one.key == "metadata.name" && holds(one, Some(name)))
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let is_listed = value.is_some_and(|value| values.iter().any(|one| one == value));
    let numbers = || {
        let limit: i64 = values.first()?.parse().ok()?;
        Some((value?.parse::<i64>().ok()?, limit))
    };
    match requirement.operator.as_str() {
        "In" => is_listed,
        "NotIn" => !is_listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(own, limit)| own > limit),
        "Lt" => numbers().is_some_and(|(own, limit)| own < limit),
        _ => false,
    }
}

fn tolerates(tolerations: &[Toleration], node: &Node) -> bool {
    let Some(spec) = &node.spec else { return true };
    let cordon = Taint { key: UNSCHEDULABLE.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
    let cordon = spec.unschedulable.unwrap_or(false).then_some(&cordon);
    let taints = spec.taints.iter().flatten().chain(cordon);
    let mut hard = taints.filter(|taint| taint.effect != "PreferNoSchedule");
    hard.all(|taint| tolerations.iter().any(|one| covers(one, taint)))
}

fn covers(toleration: &Toleration, taint: &Taint) -> bool {
    let is_unset = |text: Option<&str>| text.is_none_or(str::is_empty);
    let (effect, key) = (toleration.effect.as_deref(), toleration.key.as_deref());
    let value =
        || toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default();
    (is_unset(effect) || effect == Some(&taint.effect))
        && (is_unset(key) || key == Some(&taint.key))
        && (toleration.operator.as_deref() == Some("Exists") || (!is_unset(key) && value()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(json!({"metadata": {"name": "app"}, "spec": spec})).unwrap()
    }

    fn near(term: Value) -> Value {
        json!({"affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]},
        }}})
    }

    #[test]
    fn labels_taints_and_cordons_decide() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "a", "labels": {"zone": "x", "size": "8"}},
            "spec": {"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"},
                {"key": "soft", "effect": "PreferNoSchedule"}]},
        }))
        .unwrap();
        let gpu = json!([{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]);
        let expression = |key: &str, operator: &str, values: Value| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        let field = |name: &str| json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]});
        for (spec, want) in [
            (json!({}), true),
            (json!({"nodeSelector": {"zone": "x"}}), true),
            (json!({"nodeSelector": {"zone": "y"}}), false),
            (near(json!({})), false),
            (near(expression("zone", "In", json!(["y", "x"]))), true),
            (near(expression("zone", "NotIn", json!(["x"]))), false),
            (near(expression("none", "NotIn", json!(["x"]))), true),
            (near(expression("zone", "Exists", json!([]))), true),
            (near(expression("none", "Exists", json!([]))), false),
            (near(expression("none", "DoesNotExist", json!([]))), true),
            (near(expression("size", "Gt", json!(["7"]))), true),
            (near(expression("size", "Lt", json!(["8"]))), false),
            (near(expression("zone", "Gt", json!(["7"]))), false),
            (near(field("a")), true),
            (near(field("b")), false),
        ] {
            let mut tolerant = spec.clone();
            tolerant["tolerations"] = gpu.clone();
            assert_eq!(fits(&pod(tolerant), &node), want, "{spec}");
            assert!(!fits(&pod(spec.clone()), &node), "the taint keeps it away: {spec}");
        }
        let tolerant = |toleration: Value| fits(&pod(json!({"tolerations": [toleration]})), &node);
        assert!(tolerant(json!({"operator": "Exists"})));
        assert!(tolerant(json!({"key": "gpu", "operator": "Exists"})));
        assert!(!tolerant(json!({"key": "gpu", "value": "no"})));
        assert!(!tolerant(json!({"key": "gpu", "operator": "Exists", "effect": "NoExecute"})));
        let mut cordoned = node.clone();
        cordoned.spec.as_mut().unwrap().unschedulable = Some(true);
        assert!(!fits(&pod(json!({"tolerations": gpu})), &cordoned));
        assert!(fits(&pod(json!({"tolerations": [{"operator": "Exists"}]})), &cordoned));
    }
}
