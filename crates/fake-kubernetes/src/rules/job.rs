//! Jobs (pkg/apis/batch/v1/defaults.go, pkg/registry/batch/job/strategy.go,
//! pkg/apis/batch/validation/validation.go; facts/kubernetes.md, 1 and 2.4).

use serde_json::{Value, json};

use super::super::cause::Cause;
use super::super::object::{list, meta};
use super::{names, pod, set, text, unset_status};

pub(super) fn default(object: &mut Value) {
    if !object["spec"].is_object() {
        object["spec"] = json!({});
    }
    let policy =
        if object["spec"]["podFailurePolicy"].is_object() { "Failed" } else { "TerminatingOrFailed" };
    let unset = |spec: &Value, field: &str| spec.get(field).is_none_or(Value::is_null);
    if unset(&object["spec"], "completions") && unset(&object["spec"], "parallelism") {
        set(object, "/spec", "completions", json!(1));
    }
    for (field, value) in [
        ("parallelism", json!(1)),
        ("backoffLimit", json!(6)),
        ("completionMode", json!("NonIndexed")),
        ("suspend", json!(false)),
        ("manualSelector", json!(false)),
        ("podReplacementPolicy", json!(policy)),
        ("template", json!({})),
    ] {
        set(object, "/spec", field, value);
    }
    // strategy.go, generateSelector.
    let (name, uid) = (meta(object, "name").to_owned(), meta(object, "uid").to_owned());
    if object["spec"]["manualSelector"] == false && !uid.is_empty() {
        let labels = &mut object["spec"]["template"]["metadata"]["labels"];
        for prefix in ["", "batch.kubernetes.io/"] {
            labels[format!("{prefix}controller-uid")] = uid.clone().into();
            labels[format!("{prefix}job-name")] = name.clone().into();
        }
        set(object, "/spec", "selector", json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}));
    }
    if let Some(rules) = object.pointer_mut("/spec/podFailurePolicy/rules").and_then(Value::as_array_mut) {
        for pattern in rules.iter_mut().filter_map(|rule| rule["onPodConditions"].as_array_mut()).flatten() {
            set(pattern, "", "status", json!("True"));
        }
    }
    pod::default_spec(&mut object["spec"]["template"]["spec"]);
    unset_status(object, json!({}));
}

pub(super) fn validate(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    let template = &spec["template"];
    names::labels(&template["metadata"]["labels"], "spec.template.labels", causes);
    pod::validate_spec(&template["spec"], "spec.template.spec", causes);
    for field in
        ["parallelism", "completions", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"]
    {
        if spec[field].as_i64().is_some_and(|number| number < 0) {
            let why = "must be greater than or equal to 0";
            causes.push(Cause::invalid(&format!("spec.{field}"), &spec[field], why));
        }
    }
    let restart = text(template, "/spec/restartPolicy");
    let policy = &spec["podFailurePolicy"];
    if !matches!(restart, "OnFailure" | "Never") {
        let path = "spec.template.spec.restartPolicy";
        causes.push(Cause::unsupported(path, &restart.into(), &["OnFailure", "Never"]));
    } else if policy.is_object() && restart != "Never" {
        let why = "only \"Never\" is supported when podFailurePolicy is specified";
        causes.push(Cause::invalid("spec.template.spec.restartPolicy", &restart.into(), why));
    }
    if policy.is_object() && spec["podReplacementPolicy"] != "Failed" {
        causes.push(Cause::unsupported(
            "spec.podReplacementPolicy",
            &spec["podReplacementPolicy"],
            &["Failed"],
        ));
    }
    failure_policy(spec, causes);
    if let Some(old) = old {
        immutable(object, old, causes);
    }
}

fn failure_policy(spec: &Value, causes: &mut Vec<Cause>) {
    let containers = list(spec, "/template/spec/containers");
    for (at, rule) in list(spec, "/podFailurePolicy/rules").iter().enumerate() {
        let path = format!("spec.podFailurePolicy.rules[{at}]");
        const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];
        if !ACTIONS.iter().any(|action| rule["action"] == *action) {
            causes.push(Cause::unsupported(&format!("{path}.action"), &rule["action"], &ACTIONS));
        }
        let (codes, conditions) = (&rule["onExitCodes"], list(rule, "/onPodConditions"));
        if codes.is_object() != conditions.is_empty() {
            let why = "specifying one of OnExitCodes and OnPodConditions is required";
            causes.push(Cause::invalid(&path, &Value::Null, why));
        }
        if !codes.is_object() {
            continue;
        }
        let path = format!("{path}.onExitCodes");
        let values: Vec<_> = list(codes, "/values").iter().filter_map(Value::as_i64).collect();
        if values.is_empty() {
            causes.push(Cause::invalid(
                &format!("{path}.values"),
                &json!([]),
                "at least one value is required",
            ));
        }
        if !values.is_sorted_by(|a, b| a < b) {
            causes.push(Cause::invalid(&format!("{path}.values"), &json!(values), "must be ordered"));
        }
        if codes["operator"] == "In" && values.contains(&0) {
            let why = "must not be 0 for the In operator";
            causes.push(Cause::invalid(&format!("{path}.values[0]"), &0.into(), why));
        }
        if let Some(name) = codes["containerName"].as_str()
            && !containers.iter().any(|container| container["name"] == name)
        {
            let why = "must be one of the container or initContainer names in the pod template";
            causes.push(Cause::invalid(&format!("{path}.containerName"), &name.into(), why));
        }
    }
}

fn immutable(object: &Value, old: &Value, causes: &mut Vec<Cause>) {
    for field in ["completions", "selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex"] {
        if object["spec"][field] != old["spec"][field] {
            causes.push(Cause::invalid(
                &format!("spec.{field}"),
                &object["spec"][field],
                "field is immutable",
            ));
        }
    }
    // The scheduling directives of a suspended job that never ran can change (validateJobPodTemplateUpdate).
    let mut before = old["spec"]["template"].clone();
    let mut after = object["spec"]["template"].clone();
    if old["spec"]["suspend"] == true && old["status"].get("startTime").is_none() {
        for template in [&mut before, &mut after] {
            template["metadata"] = Value::Null;
            for field in ["nodeSelector", "tolerations", "affinity", "schedulingGates"] {
                template["spec"][field] = Value::Null;
            }
        }
    }
    if before != after {
        causes.push(Cause::invalid("spec.template", &"...".into(), "field is immutable"));
    }
}
