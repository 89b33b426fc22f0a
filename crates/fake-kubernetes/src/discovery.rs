//! Discovery: the versions, groups and resources that are served (apiserver pkg/endpoints/discovery).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::kind::{Id, Kind};
use super::store::State;

/// Returns the document at a path of discovery or health, if it is one.
pub(super) fn document(state: &State, path: &str) -> Option<Value> {
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
    match parts.as_slice() {
        ["version"] => Some(json!({
            "major": "1", "minor": "33", "gitVersion": "v1.33.0-larder", "gitCommit": "", "gitTreeState": "clean",
            "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "", "platform": "linux/amd64",
        })),
        ["healthz" | "livez" | "readyz"] => Some(json!("ok")),
        ["api"] => Some(json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})),
        ["apis"] => {
            let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for kind in state.kinds.iter().filter(|kind| !kind.group.is_empty()) {
                let versions = groups.entry(&kind.group).or_default();
                if !versions.contains(&kind.version.as_str()) {
                    versions.push(&kind.version);
                }
            }
            let groups: Vec<_> = groups.into_iter().map(|(name, versions)| group(name, &versions)).collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["api", version] => resources(state, "", version),
        ["apis", group, version] => resources(state, group, version),
        _ => None,
    }
}

fn group(name: &str, versions: &[&str]) -> Value {
    let versions: Vec<_> = versions
        .iter()
        .map(|version| json!({"groupVersion": format!("{name}/{version}"), "version": version}))
        .collect();
    json!({"name": name, "versions": versions, "preferredVersion": versions[0]})
}

fn resources(state: &State, group: &str, version: &str) -> Option<Value> {
    let kinds: Vec<&Kind> = state
        .kinds
        .iter()
        .filter(|kind| kind.group == group && kind.version == version)
        .map(AsRef::as_ref)
        .collect();
    let first = kinds.first()?;
    const VERBS: [&str; 8] =
        ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
    let resource = |kind: &Kind, name: String, verbs: &[&str]| {
        let mut described = json!({
            "name": name, "singularName": kind.kind.to_lowercase(), "namespaced": kind.namespaced, "kind": kind.kind,
            "verbs": verbs,
        });
        if let Some(short) = short_names(state, kind).filter(|_| name == kind.plural) {
            described["shortNames"] = short;
        }
        described
    };
    let mut listed = Vec::new();
    for kind in &kinds {
        listed.push(resource(kind, kind.plural.clone(), &VERBS));
        if kind.status {
            listed.push(resource(kind, format!("{}/status", kind.plural), &["get", "patch", "update"]));
        }
    }
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": first.api_version(), "resources": listed,
    }))
}

/// Returns the short names of a custom resource from its definition.
fn short_names(state: &State, kind: &Kind) -> Option<Value> {
    let name = format!("{}.{}", kind.plural, kind.group);
    let id = Id::new("apiextensions.k8s.io", "customresourcedefinitions", "", &name);
    state.get(&id)?.pointer("/spec/names/shortNames").cloned()
}
