//! Pod Security admission (pod-security-admission policy/check_*.go; facts/kubernetes.md, 1 and 2.3).
//!
//! Only pods are checked: a Job that violates the rules is accepted, and its pods are refused.

use serde_json::Value;

use super::super::kind::{Id, Kind};
use super::super::object::{list, meta, text};
use super::super::status::Refusal;
use super::super::store::State;

/// Capabilities that a container can add under "baseline" (check_capabilities_baseline.go).
const BASELINE: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

pub(super) fn admit(state: &State, kind: &Kind, namespace: &str, pod: &Value) -> Result<(), Refusal> {
    let Some(found) = state.get(&Id::new("", "namespaces", "", namespace)) else { return Ok(()) };
    let label = |name: &str| {
        let labels = &found["metadata"]["labels"];
        labels[format!("pod-security.kubernetes.io/{name}")].as_str().unwrap_or_default()
    };
    let level = label("enforce");
    let broken = match level {
        "baseline" => baseline(&pod["spec"]),
        "restricted" => {
            let mut broken = baseline(&pod["spec"]);
            broken.extend(restricted(&pod["spec"]));
            broken
        }
        _ => return Ok(()),
    };
    if broken.is_empty() {
        return Ok(());
    }
    let version = if label("enforce-version").is_empty() { "latest" } else { label("enforce-version") };
    let why = format!("violates PodSecurity \"{level}:{version}\": {}", broken.join(", "));
    Err(Refusal::forbidden(kind, meta(pod, "name"), &why))
}

fn baseline(spec: &Value) -> Vec<String> {
    let mut broken = Vec::new();
    let shared: Vec<_> =
        ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|f| spec[*f] == true).collect();
    if !shared.is_empty() {
        broken.push(format!("host namespaces ({} must not be set)", shared.join(", ")));
    }
    if list(spec, "/volumes").iter().any(|volume| volume.get("hostPath").is_some()) {
        broken.push("hostPath volumes".to_owned());
    }
    if text(spec, "/securityContext/seccompProfile/type") == "Unconfined" {
        broken.push(
            "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")"
                .to_owned(),
        );
    }
    for container in list(spec, "/containers") {
        let name = text(container, "/name");
        let context = &container["securityContext"];
        if context["privileged"] == true {
            broken.push(format!(
                "privileged (container \"{name}\" must not set securityContext.privileged=true)"
            ));
        }
        let added = added(container);
        let wrong: Vec<_> = added.iter().filter(|capability| !BASELINE.contains(capability)).collect();
        if !wrong.is_empty() {
            let wrong: Vec<_> = wrong.iter().map(|capability| format!("\"{capability}\"")).collect();
            broken.push(format!(
                "non-default capabilities (container \"{name}\" must not include {} in securityContext.capabilities.add)",
                wrong.join(", ")
            ));
        }
        if text(context, "/seccompProfile/type") == "Unconfined" {
            broken.push(format!(
                "seccompProfile (container \"{name}\" must not set securityContext.seccompProfile.type to \"Unconfined\")"
            ));
        }
        if list(container, "/ports")
            .iter()
            .any(|port| port["hostPort"].as_i64().is_some_and(|port| port != 0))
        {
            broken.push(format!("hostPort (container \"{name}\" uses a hostPort)"));
        }
    }
    broken
}

fn restricted(spec: &Value) -> Vec<String> {
    const VOLUMES: [&str; 8] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    let mut broken = Vec::new();
    for volume in list(spec, "/volumes") {
        if !VOLUMES.iter().any(|sort| volume.get(*sort).is_some()) {
            broken.push(format!("restricted volume types (volume \"{}\")", text(volume, "/name")));
        }
    }
    for container in list(spec, "/containers") {
        let name = text(container, "/name");
        let context = &container["securityContext"];
        if context["allowPrivilegeEscalation"] != false {
            broken.push(format!(
                "allowPrivilegeEscalation != false (container \"{name}\" must set securityContext.allowPrivilegeEscalation=false)"
            ));
        }
        let dropped = list(context, "/capabilities/drop").iter().any(|capability| capability == "ALL");
        let wrong: Vec<_> =
            added(container).into_iter().filter(|added| *added != "NET_BIND_SERVICE").collect();
        if !dropped || !wrong.is_empty() {
            broken.push(format!(
                "unrestricted capabilities (container \"{name}\" must set securityContext.capabilities.drop=[\"ALL\"] and add \
                 nothing but NET_BIND_SERVICE)"
            ));
        }
        let set = |field: &str| context.get(field).or_else(|| spec["securityContext"].get(field));
        if set("runAsNonRoot") != Some(&Value::Bool(true)) {
            broken.push(format!(
                "runAsNonRoot != true (pod or container \"{name}\" must set securityContext.runAsNonRoot=true)"
            ));
        }
        if set("runAsUser").is_some_and(|user| user == 0) {
            broken.push(format!("runAsUser=0 (pod or container \"{name}\" must not set runAsUser=0)"));
        }
        let profile = set("seccompProfile").map_or("", |profile| text(profile, "/type"));
        if !matches!(profile, "RuntimeDefault" | "Localhost") {
            broken.push(format!(
                "seccompProfile (pod or container \"{name}\" must set securityContext.seccompProfile.type to \
                 \"RuntimeDefault\" or \"Localhost\")"
            ));
        }
    }
    broken
}

fn added(container: &Value) -> Vec<&str> {
    list(container, "/securityContext/capabilities/add").iter().filter_map(Value::as_str).collect()
}
