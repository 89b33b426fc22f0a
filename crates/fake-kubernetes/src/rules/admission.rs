//! ResourceQuota and ServiceAccount admission on creation (apiserver
//! pkg/admission/plugin/resourcequota/controller.go, plugin/pkg/admission/serviceaccount/admission.go).
//!
//! Enforces counts of objects (`count/<plural>.<group>`, and the old names of the core kinds) and
//! `requests.storage`; other resources are not limited.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::kind::{Id, Kind};
use super::super::object::{meta, text};
use super::super::status::Refusal;
use super::super::store::State;
use super::claim;

/// Checks that the service account of a pod exists. `default` exists in every namespace.
pub(super) fn account(state: &State, kind: &Kind, namespace: &str, pod: &Value) -> Result<(), Refusal> {
    let name = text(pod, "/spec/serviceAccountName");
    if matches!(name, "" | "default") || state.get(&Id::new("", "serviceaccounts", namespace, name)).is_some()
    {
        return Ok(());
    }
    let why =
        format!("error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found");
    Err(Refusal::forbidden(kind, meta(pod, "name"), &why))
}

/// Refuses an object that exceeds a quota, or that a quota limits but does not count yet. A quota limits
/// nothing until its controller has copied the limits into its status.
pub(super) fn quota(state: &State, kind: &Kind, namespace: &str, object: &Value) -> Result<(), Refusal> {
    if !kind.namespaced {
        return Ok(());
    }
    for quota in state.all("", "resourcequotas", namespace) {
        for (resource, hard) in quota["status"]["hard"].as_object().into_iter().flatten() {
            let Some(more) = costs(kind, object).remove(resource) else { continue };
            if quota["status"]["used"].get(resource).is_none() {
                let quota = meta(quota, "name");
                let why = format!("status unknown for quota: {quota}, resources: {resource}");
                return Err(Refusal::forbidden(kind, meta(object, "name"), &why));
            }
            let used = usage(state, namespace, resource);
            let limit = hard.as_str().and_then(claim::bytes).unwrap_or_default();
            if used + more > limit {
                let why = format!(
                    "exceeded quota: {}, requested: {resource}={more}, used: {resource}={used}, limited: {resource}={}",
                    meta(quota, "name"),
                    hard.as_str().unwrap_or_default()
                );
                return Err(Refusal::forbidden(kind, meta(object, "name"), &why));
            }
        }
    }
    Ok(())
}

/// Returns the usage of one object, by resource.
fn costs(kind: &Kind, object: &Value) -> BTreeMap<String, u64> {
    let mut costs = BTreeMap::from([(format!("count/{}", kind.qualified()), 1)]);
    if kind.group.is_empty() {
        // A pod that has ended no longer counts.
        let done = matches!(text(object, "/status/phase"), "Succeeded" | "Failed");
        if !(kind.plural == "pods" && done) {
            costs.insert(kind.plural.clone(), 1);
        }
    }
    if kind.is("", "persistentvolumeclaims") {
        let size = claim::bytes(text(object, "/spec/resources/requests/storage"));
        costs.insert("requests.storage".to_owned(), size.unwrap_or_default());
    }
    costs
}

/// Returns the usage of a resource in a namespace.
pub(in super::super) fn usage(state: &State, namespace: &str, resource: &str) -> u64 {
    let used = state.kinds.iter().filter(|kind| kind.namespaced).flat_map(|kind| {
        let objects = state.all(&kind.group, &kind.plural, namespace);
        objects.filter_map(|object| costs(kind, object).remove(resource))
    });
    used.sum()
}
