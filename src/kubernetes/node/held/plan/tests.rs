use std::sync::Arc;

use super::super::super::desired::tests::cache;
use super::super::super::desired::{Cache, Choices, Namespaces};
use super::*;

fn pod(gated: bool, change: impl FnOnce(&mut Value)) -> Pod {
    let mut pod = json!({
        "metadata": {
            "name": "app", "namespace": "team-a", "uid": "u", "resourceVersion": "7",
            "annotations": {"larder.dev/image-cache": "web", "larder.dev/image-cache-required": "true"},
        },
        "spec": {"containers": [{"name": "app", "image": "r.example.com/app:1"}]},
    });
    if gated {
        pod["spec"]["schedulingGates"] = json!([{"name": GATE}, {"name": "other"}]);
    }
    change(&mut pod);
    serde_json::from_value(pod).unwrap()
}

fn node(name: &str, caches: &[&str]) -> Node {
    let labels: serde_json::Map<_, _> =
        caches.iter().map(|cache| (format!("cache.larder.dev/{cache}"), json!("0"))).collect();
    serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap()
}

fn caches() -> [Arc<Cache>; 1] {
    [cache("team-a", "web", &["r.example.com/app:1"], |_| {})]
}

fn for_pod(pod: &Pod, caches: &[Arc<Cache>]) -> Result<DesiredVolume, String> {
    Choices::new(&Namespaces::new(), caches).of(pod)
}

fn next(pod: &Pod, nodes: &[&Node], overdue: bool) -> Next {
    let desired = for_pod(pod, &caches());
    Held { pod, desired, nodes, overdue }.next()
}

fn waits(next: &Next, text: &str) {
    assert!(matches!(next, Next::Wait(why) if why.contains(text)), "{next:?}");
}

#[test]
fn a_pod_is_released_when_a_node_it_can_use_has_its_image_cache() {
    let held = pod(true, |_| {});
    let (with, without) = (node("a", &["team-a.web"]), node("b", &["team-a.api"]));
    assert_eq!(next(&held, &[&without, &with], false), Next::Release);
    assert_eq!(next(&held, &[&without], false), Next::Attach("b".into()));
    let chosen = pod(true, |pod| pod["metadata"]["labels"] = json!({ATTACH_ON: node_label("b")}));
    waits(&next(&chosen, &[&without], false), "the node b attaches it");
    let third = node("c", &[]);
    assert_eq!(next(&chosen, &[&without, &third], true), Next::Attach("c".into()));
    // Without another node, the same one is tried again.
    assert_eq!(next(&chosen, &[&without], true), Next::Attach("b".into()));
    // The chosen node is one that the pod can no longer use.
    assert_eq!(next(&chosen, &[&third], false), Next::Attach("c".into()));
    waits(&next(&held, &[], false), "no node that this pod can use has an agent");
}

#[test]
fn a_pod_without_an_image_cache_says_why() {
    let named =
        |name: &str| pod(true, |pod| pod["metadata"]["annotations"]["larder.dev/image-cache"] = json!(name));
    let a = node("a", &["team-b.web", "team-a.web"]);
    waits(&next(&named("team-b/web"), &[&a], false), "there is no image cache team-b/web");
    let best = pod(true, |pod| {
        pod["metadata"]["annotations"] = json!({"larder.dev/image-cache": "required"});
    });
    assert_eq!(next(&best, &[&a], false), Next::Release);
    let none = pod(true, |pod| {
        pod["metadata"]["annotations"] = json!({"larder.dev/image-cache-required": "true"});
        pod["spec"]["containers"][0]["image"] = json!("other:1");
    });
    waits(&next(&none, &[&a], false), "no image cache for this pod contains any of its images");
    let desired = for_pod(
        &best,
        &[cache("team-a", "web", &["r.example.com/app:1"], |object| {
            object["status"]["copies"] = json!([]);
        })],
    );
    let b = node("b", &[]);
    waits(&Held { pod: &best, desired, nodes: &[&b], overdue: false }.next(), "node_namespace");
}

#[test]
fn a_pod_that_has_no_place_gets_another_node() {
    let released = pod(false, |_| {});
    let (full, free) = (node("a", &["team-a.web"]), node("b", &[]));
    waits(&next(&released, &[&full, &free], false), "the scheduler finds no place");
    assert_eq!(next(&released, &[&full, &free], true), Next::Attach("b".into()));
    waits(&next(&released, &[&full], true), "no room");
}

#[test]
fn each_pod_has_an_order_of_nodes() {
    let nodes: Vec<Node> = (0..8).map(|at| node(&format!("n{at}"), &[])).collect();
    let nodes: Vec<&Node> = nodes.iter().collect();
    let mut first = std::collections::BTreeSet::new();
    for uid in 0..64 {
        let mut held = pod(true, |pod| pod["metadata"]["uid"] = json!(uid.to_string()));
        let mut visited = std::collections::BTreeSet::new();
        for turn in 0..8 {
            let Next::Attach(node) = next(&held, &nodes, true) else { panic!("no node") };
            if turn == 0 {
                first.insert(node.clone());
            }
            held.metadata.labels = Some([(ATTACH_ON.to_owned(), node_label(&node))].into());
            visited.insert(node);
        }
        assert_eq!(visited.len(), 8, "each node has its turn");
    }
    assert_eq!(first.len(), 8, "pods spread over nodes");
}

#[test]
fn a_release_only_adds_to_what_a_pod_requires() {
    let desired = for_pod(&pod(true, |_| {}), &caches()).unwrap();
    let terms = |pod: &Pod| {
        let patch = release(pod, &desired);
        assert_eq!(patch["spec"]["schedulingGates"], json!([{"name": "other"}]));
        assert_eq!(patch["metadata"], json!({"uid": "u", "resourceVersion": "7"}));
        patch["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
            .clone()
    };
    let ours = json!({"key": "cache.larder.dev/team-a.web", "operator": "Exists"});
    assert_eq!(terms(&pod(true, |_| {})), json!([{"matchExpressions": [ours]}]));
    let zone = json!({"key": "zone", "operator": "In", "values": ["a"]});
    let name = json!({"key": "metadata.name", "operator": "In", "values": ["n"]});
    let near = pod(true, |pod| {
        pod["spec"]["affinity"] = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [zone]}, {"matchFields": [name]}, {}],
        }}});
    });
    // The empty term matches no node, and must not match the nodes with the image cache.
    assert_eq!(
        terms(&near),
        json!([
            {"matchExpressions": [zone, ours]},
            {"matchFields": [name], "matchExpressions": [ours]},
            {},
        ])
    );
}
