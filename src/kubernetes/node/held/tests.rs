use k8s_openapi::api::core::v1::Pod;
use kube_cel::KubeCelExt as _;
use kube_cel::cel::{Context, Program, Value as CelValue};
use serde_json::{Value, json};

use super::*;

/// Returns the rules of the shipped policy that refuse this change of a pod by a daemon.
fn refusals(old: &Value, new: &Value) -> Vec<String> {
    let shipped = include_str!("../../../../config/kubernetes/node/required/policy.yaml");
    let policy: Value = serde_saphyr::from_str(shipped.split("\n---\n").next().unwrap()).unwrap();
    let mut context = Context::default().with_all();
    context.add_variable("object", new).unwrap();
    context.add_variable("oldObject", old).unwrap();
    let rules = policy["spec"]["validations"].as_array().unwrap();
    assert_eq!(rules.len(), 5);
    let holds = |rule: &Value| {
        let program = Program::compile(rule["expression"].as_str().unwrap()).unwrap();
        program.execute(&context) == Ok(CelValue::Bool(true))
    };
    let refused = rules.iter().filter(|rule| !holds(rule));
    refused.map(|rule| rule["message"].as_str().unwrap().to_owned()).collect()
}

fn held() -> Value {
    json!({
        "metadata": {
            "name": "app", "namespace": "team-a", "uid": "u", "resourceVersion": "1",
            "labels": {"app": "web", "larder.dev/image-cache-required": "true"},
            "annotations": {"larder.dev/image-cache": "required"},
        },
        "spec": {
            "containers": [{"name": "app", "image": "app:1"}],
            "schedulingGates": [{"name": "larder.dev/image-cache"}, {"name": "other"}],
        },
    })
}

#[test]
fn the_policy_lets_a_daemon_release_pods_that_are_held_back() {
    let old = held();
    let pod: Pod = serde_json::from_value(old.clone()).unwrap();
    let caches = [super::super::desired::tests::cache("team-a", "web", &["app:1"], |_| {})];
    let desired = desired::Choices::new(&desired::Namespaces::new(), &caches).of(&pod).unwrap();
    for patch in [plan::release(&pod, &desired), plan::attach_on(&pod, "node-a")] {
        let mut new = old.clone();
        json_patch::merge(&mut new, &patch);
        assert_ne!(new, old);
        assert_eq!(refusals(&old, &new), Vec::<String>::new(), "{patch}");
    }
    type Change = fn(&mut Value);
    let changes: [(Change, &str); 9] = [
        (|pod| pod["spec"]["containers"][0]["image"] = json!("other"), "no container"),
        (|pod| pod["spec"]["initContainers"] = json!([{"name": "i"}]), "no container"),
        (|pod| pod["spec"]["tolerations"] = json!([{"operator": "Exists"}]), "no container"),
        (|pod| pod["spec"]["nodeSelector"] = json!({"a": "b"}), "no container"),
        (|pod| pod["spec"]["activeDeadlineSeconds"] = json!(1), "no container"),
        (|pod| pod["metadata"]["labels"]["app"] = json!("db"), "its own label"),
        (|pod| pod["metadata"]["annotations"]["a"] = json!("b"), "no annotation"),
        (|pod| pod["metadata"]["finalizers"] = json!(["a/b"]), "no annotation"),
        (|pod| pod["spec"]["schedulingGates"] = json!([]), "its own gate"),
    ];
    for (change, message) in changes {
        let mut new = old.clone();
        change(&mut new);
        let refused = refusals(&old, &new);
        assert!(refused.len() == 1 && refused[0].contains(message), "{message}: {refused:?}");
    }
    let mut free = old.clone();
    free["metadata"]["labels"] = json!({"app": "web"});
    assert!(refusals(&free, &free)[0].contains("pods that require"), "a pod that is not held back");
}

#[test]
fn patience_begins_again_with_each_node_and_doubles_after_the_release() {
    let start = Instant::now();
    let mut memory = Memory::new(start);
    let pod = |gated: bool, node: &str| -> Pod {
        let mut pod = held();
        if !gated {
            pod["spec"]["schedulingGates"] = json!([]);
        }
        pod["metadata"]["labels"]["larder.dev/attach-on"] = json!(node);
        serde_json::from_value(pod).unwrap()
    };
    let mut now = start;
    for (gated, node, patience) in [
        (true, "a", ATTACH_TIMEOUT),
        (true, "b", ATTACH_TIMEOUT),
        (false, "b", PLACE_TIMEOUT),
        (false, "c", PLACE_TIMEOUT * 2),
        (false, "d", PLACE_TIMEOUT * 4),
    ] {
        let pod = pod(gated, node);
        assert!(!memory.is_overdue(&pod, now), "{node}");
        assert!(!memory.is_overdue(&pod, now + patience - MIN_PASS_INTERVAL), "{node}");
        now += patience;
        assert!(memory.is_overdue(&pod, now), "{node}");
    }
}

#[test]
fn a_reason_is_reported_once_when_it_lasts() {
    let start = Instant::now();
    let mut memory = Memory::new(start);
    assert!(!memory.is_news("a", start));
    assert!(!memory.is_news("a", start + NOTIFY_AFTER - MIN_PASS_INTERVAL));
    assert!(memory.is_news("a", start + NOTIFY_AFTER));
    assert!(!memory.is_news("a", start + NOTIFY_AFTER * 2));
    // A new reason must also last.
    assert!(!memory.is_news("b", start + NOTIFY_AFTER * 3));
    assert!(memory.is_news("b", start + NOTIFY_AFTER * 4));
}
