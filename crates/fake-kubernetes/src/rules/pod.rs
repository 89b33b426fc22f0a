//! Pods and pod templates (pkg/apis/core/v1/defaults.go, pkg/registry/core/pod/strategy.go,
//! core/validation/validation.go).

mod gates;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::super::cause::Cause;
use super::super::object::list;
use super::{names, set, text, unset_status};

pub(super) fn default(object: &mut Value) {
    default_spec(&mut object["spec"]);
    let mut status = json!({"phase": "Pending", "qosClass": "Burstable"});
    if !list(object, "/spec/schedulingGates").is_empty() {
        // strategy.go, applySchedulingGatedCondition.
        status["conditions"] = json!([{
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
        }]);
    }
    unset_status(object, status);
}

pub(super) fn default_spec(spec: &mut Value) {
    for (field, value) in [
        ("restartPolicy", json!("Always")),
        ("dnsPolicy", json!("ClusterFirst")),
        ("schedulerName", json!("default-scheduler")),
        ("terminationGracePeriodSeconds", json!(30)),
        ("securityContext", json!({})),
    ] {
        set(spec, "", field, value);
    }
    for volume in spec["volumes"].as_array_mut().into_iter().flatten() {
        set(volume, "/secret", "defaultMode", json!(0o644));
        set(volume, "/configMap", "defaultMode", json!(0o644));
    }
    for container in spec["containers"].as_array_mut().into_iter().flatten() {
        let image = text(container, "/image").to_owned();
        let tag =
            image.rsplit('/').next().and_then(|last| last.split_once(':')).map_or("latest", |(_, tag)| tag);
        let pull = if tag == "latest" && !image.contains('@') { "Always" } else { "IfNotPresent" };
        for (field, value) in [
            ("imagePullPolicy", json!(pull)),
            ("terminationMessagePath", json!("/dev/termination-log")),
            ("terminationMessagePolicy", json!("File")),
            ("resources", json!({})),
        ] {
            set(container, "", field, value);
        }
    }
}

pub(super) fn validate(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    validate_spec(&object["spec"], "spec", causes);
    gates::validate(object, old, causes);
    if let Some(old) = old {
        // Images, deadlines and tolerations can change in Kubernetes, but no client here changes them.
        // Binding sets the node.
        let stable = |object: &Value| {
            let mut spec = object["spec"].clone();
            for field in ["nodeName", "activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds"]
            {
                spec.as_object_mut().map(|fields| fields.remove(field));
            }
            gates::remove_checked_fields(&mut spec, gates::is_gated(old));
            spec
        };
        if stable(old) != stable(object) {
            let why = "pod updates may not change fields other than `spec.containers[*].image`,\
                 `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
                 tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
            causes.push(Cause::forbidden("spec", why));
        }
    }
}

pub(super) fn validate_spec(spec: &Value, path: &str, causes: &mut Vec<Cause>) {
    const RESTARTS: [&str; 3] = ["Always", "OnFailure", "Never"];
    if !RESTARTS.iter().any(|restart| spec["restartPolicy"] == *restart) {
        causes.push(Cause::unsupported(&format!("{path}.restartPolicy"), &spec["restartPolicy"], &RESTARTS));
    }
    let mut volumes = BTreeSet::new();
    for (at, volume) in list(spec, "/volumes").iter().enumerate() {
        let path = format!("{path}.volumes[{at}]");
        let name = text(volume, "/name");
        if !names::is_label(name) {
            causes.push(Cause::invalid(
                &format!("{path}.name"),
                &name.into(),
                "a lowercase RFC 1123 label must be given",
            ));
        }
        if !volumes.insert(name) {
            causes.push(Cause::new(
                "FieldValueDuplicate",
                &format!("{path}.name"),
                format!("Duplicate value: \"{name}\""),
            ));
        }
        if volume.as_object().is_none_or(|fields| fields.len() != 2) {
            causes.push(Cause::required(&path, "must specify a volume type"));
        }
        projected(&volume["secret"], "secretName", &format!("{path}.secret"), causes);
    }
    let containers = list(spec, "/containers");
    if containers.is_empty() {
        causes.push(Cause::required(&format!("{path}.containers"), ""));
    }
    for (at, container) in containers.iter().enumerate() {
        validate_container(container, &volumes, &format!("{path}.containers[{at}]"), causes);
    }
}

/// Validates a secret that is mounted as files.
fn projected(source: &Value, name: &str, path: &str, causes: &mut Vec<Cause>) {
    if !source.is_object() {
        return;
    }
    if text(source, &format!("/{name}")).is_empty() {
        causes.push(Cause::required(&format!("{path}.{name}"), ""));
    }
    let modes = list(source, "/items").iter().map(|item| &item["mode"]).chain([&source["defaultMode"]]);
    for mode in modes.filter(|mode| !mode.is_null()) {
        if mode.as_i64().is_none_or(|mode| !(0..=0o777).contains(&mode)) {
            let why = "must be a number between 0 and 0777 (octal), both inclusive";
            causes.push(Cause::invalid(&format!("{path}.defaultMode"), mode, why));
        }
    }
    for (at, item) in list(source, "/items").iter().enumerate() {
        let path = format!("{path}.items[{at}]");
        let to = text(item, "/path");
        if text(item, "/key").is_empty() {
            causes.push(Cause::required(&format!("{path}.key"), ""));
        }
        if to.is_empty() {
            causes.push(Cause::required(&format!("{path}.path"), ""));
        } else if to.starts_with('/') {
            causes.push(Cause::invalid(&format!("{path}.path"), &to.into(), "must be a relative path"));
        } else if to.split('/').any(|part| part == "..") {
            causes.push(Cause::invalid(&format!("{path}.path"), &to.into(), "must not contain '..'"));
        } else if to.starts_with("..") {
            causes.push(Cause::invalid(&format!("{path}.path"), &to.into(), "must not start with '..'"));
        }
    }
}

fn validate_container(container: &Value, volumes: &BTreeSet<&str>, path: &str, causes: &mut Vec<Cause>) {
    let name = text(container, "/name");
    if !names::is_label(name) {
        causes.push(Cause::invalid(
            &format!("{path}.name"),
            &name.into(),
            "a lowercase RFC 1123 label must be given",
        ));
    }
    if text(container, "/image").is_empty() {
        causes.push(Cause::required(&format!("{path}.image"), ""));
    }
    let mut places = BTreeSet::new();
    for (at, mount) in list(container, "/volumeMounts").iter().enumerate() {
        let path = format!("{path}.volumeMounts[{at}]");
        let (volume, place) = (text(mount, "/name"), text(mount, "/mountPath"));
        if !volumes.contains(volume) {
            causes.push(Cause::new(
                "FieldValueNotFound",
                &format!("{path}.name"),
                format!("Not found: \"{volume}\""),
            ));
        }
        if place.is_empty() {
            causes.push(Cause::required(&format!("{path}.mountPath"), ""));
        } else if !places.insert(place) {
            causes.push(Cause::invalid(&format!("{path}.mountPath"), &place.into(), "must be unique"));
        }
    }
    const POLICIES: [&str; 2] = ["FallbackToLogsOnError", "File"];
    if !POLICIES.iter().any(|policy| container["terminationMessagePolicy"] == *policy) {
        let path = format!("{path}.terminationMessagePolicy");
        causes.push(Cause::unsupported(&path, &container["terminationMessagePolicy"], &POLICIES));
    }
}
