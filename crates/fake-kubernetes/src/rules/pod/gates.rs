//! Scheduling gates, and the changes that are allowed while a pod has one (KEP-3521, KEP-3838;
//! core/validation/validation.go, ValidatePodUpdate, validateNodeSelectorMutation,
//! validateNodeAffinityMutation).

use serde_json::Value;

use super::super::super::cause::Cause;
use super::super::super::object::{list, text};

pub(super) fn is_gated(pod: &Value) -> bool {
    !list(pod, "/spec/schedulingGates").is_empty()
}

/// Removes the fields of a specification that [`validate`] checks.
pub(super) fn remove_checked_fields(spec: &mut Value, gated: bool) {
    let Some(fields) = spec.as_object_mut() else { return };
    fields.remove("schedulingGates");
    if !gated {
        return;
    }
    fields.remove("nodeSelector");
    if let Some(affinity) = fields.get_mut("affinity").and_then(Value::as_object_mut) {
        affinity.remove("nodeAffinity");
        if affinity.is_empty() {
            fields.remove("affinity");
        }
    }
}

pub(super) fn validate(pod: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    if is_gated(pod) && !text(pod, "/spec/nodeName").is_empty() {
        let why = "cannot be set until all schedulingGates have been cleared";
        causes.push(Cause::forbidden("spec.nodeName", why));
    }
    let Some(old) = old else { return };
    for gate in list(pod, "/spec/schedulingGates") {
        if !list(old, "/spec/schedulingGates").contains(gate) {
            let why =
                format!("only deletion is allowed, but found new scheduling gate '{}'", text(gate, "/name"));
            causes.push(Cause::forbidden("spec.schedulingGates", &why));
        }
    }
    if is_gated(old) {
        selector(pod, old, causes);
        affinity(pod, old, causes);
    }
}

fn selector(pod: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let before = old["spec"]["nodeSelector"].as_object();
    if before.into_iter().flatten().any(|(key, value)| pod["spec"]["nodeSelector"][key] != *value) {
        let why = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        causes.push(Cause::invalid("spec.nodeSelector", &pod["spec"]["nodeSelector"], why));
    }
}

fn affinity(pod: &Value, old: &Value, causes: &mut Vec<Cause>) {
    const TERMS: &str =
        "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let path = TERMS.trim_start_matches('/').replace('/', ".");
    let (terms, before) = (list(pod, TERMS), list(old, TERMS));
    if before.is_empty() {
        return;
    }
    if before.len() != terms.len() {
        let why = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        causes.push(Cause::invalid(&path, &terms.into(), why));
        return;
    }
    for (at, (term, before)) in terms.iter().zip(before).enumerate() {
        let all =
            |term: &Value| [list(term, "/matchExpressions").to_vec(), list(term, "/matchFields").to_vec()];
        let (new, old) = (all(term), all(before));
        let is_empty = |lists: &[Vec<Value>; 2]| lists.iter().all(Vec::is_empty);
        let adds = new.iter().zip(&old).all(|(new, old)| new.starts_with(old));
        if !adds || (is_empty(&old) && !is_empty(&new)) {
            let why = "only additions are allowed (no mutations or deletions)";
            causes.push(Cause::invalid(&format!("{path}[{at}]"), term, why));
        }
    }
}
