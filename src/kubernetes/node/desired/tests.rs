use serde_json::{Value, json};

use super::*;

/// Returns an image cache of `images`, sealed and offered to nodes, with a change applied.
pub(in crate::kubernetes::node) fn cache(
    namespace: &str,
    name: &str,
    images: &[&str],
    change: impl FnOnce(&mut Value),
) -> Arc<Cache> {
    let digest = |of: &str| Digest::sha256(of.as_bytes()).to_string();
    let images: Vec<&str> = if images.is_empty() { vec!["r.example.com/app:1"] } else { images.to_vec() };
    let sealed: Vec<Value> =
        images.iter().map(|image| json!({"reference": image, "manifest": digest(image)})).collect();
    let layers: Vec<Value> = (0..images.len())
        .map(|at| {
            json!({
                "blob": digest(images[at]), "images": [at], "compressedSize": 1000, "size": 2000, "elapsedMs": 1,
                "origin": "fetched",
            })
        })
        .collect();
    let time = "2026-01-01T00:00:00Z";
    // A valid UID derived from the name (RFC 9562, version 4).
    let hex = Digest::sha256(format!("{namespace}/{name}").as_bytes()).hex().to_owned();
    let uid = format!("{}-{}-4{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32]);
    let mut object = json!({
        "apiVersion": "larder.dev/v1", "kind": "ImageCache",
        "metadata": {"name": name, "namespace": namespace, "uid": uid},
        "spec": {"images": images, "imageCacheSize": 20},
        "status": {
            "phase": "Available", "since": time, "createdAt": time, "orderedBy": "cluster", "generation": 1,
            "content": {
                "generation": 1, "sealedAt": time, "digest": digest(name), "images": sealed, "layers": layers,
                "totals": {"layers": images.len(), "compressedSize": 1000, "size": 2000, "entries": 1},
                "snapshot": {"namespace": "larder", "name": format!("ic-{uid}"), "handle": "h", "driver": "d"},
            },
            "copies": [{"namespace": "larder-volumes", "ready": true}],
        },
    });
    change(&mut object);
    Arc::new(Cache::of(&serde_json::from_value(object).unwrap(), "larder-volumes").unwrap())
}

/// Returns the request of a node's configuration.
pub(in crate::kubernetes::node) fn named(cache: &str) -> Vec<Request> {
    requests(&[cache.to_owned()], &Namespaces::new(), &[])
}

fn pod(namespace: &str, name: &str, annotation: Option<&str>, images: &[&str]) -> Pod {
    let containers: Vec<Value> = images
        .iter()
        .enumerate()
        .map(|(at, image)| json!({"name": format!("c{at}"), "image": image}))
        .collect();
    let annotations = annotation.map_or(json!({}), |text| json!({IMAGE_CACHE: text}));
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": namespace, "uid": format!("{namespace}/{name}"), "annotations": annotations},
        "spec": {"containers": containers},
    }))
    .unwrap()
}

fn wanted(caches: &[Arc<Cache>], namespaces: &[(&str, &str)], pods: &[Pod]) -> (Vec<String>, Vec<String>) {
    // The prefix `accept:` selects the other annotation.
    let mut annotations = Namespaces::new();
    for (name, text) in namespaces {
        let one: &mut Annotations = annotations.entry((*name).to_owned()).or_default();
        match text.strip_prefix("accept:") {
            Some(list) => one.accept_from = Some(list.to_owned()),
            None => one.image_cache = Some((*text).to_owned()),
        }
    }
    let namespaces = annotations;
    let requests = requests(&[], &namespaces, &pods.iter().collect::<Vec<_>>());
    let decision = decide(&requests, caches, "node-a", 9);
    (
        decision.volumes.iter().map(DesiredVolume::cache).collect(),
        decision.refused.into_iter().map(|(_, why)| why).collect(),
    )
}

#[test]
fn a_node_watches_the_namespaces_that_matter() {
    let mut annotations = Namespaces::new();
    let accept = |list: &str| Annotations { accept_from: Some(list.to_owned()), ..Annotations::default() };
    annotations.insert("b".to_owned(), accept("a, d"));
    annotations.insert("all".to_owned(), accept("*"));
    let scope_of = |configured: &[&str], pods: &[Pod], held: &[&str]| {
        let configured: Vec<String> = configured.iter().map(|one| (*one).to_owned()).collect();
        let requests = requests(&configured, &annotations, &pods.iter().collect::<Vec<_>>());
        scope(&requests, held.iter().copied())
    };
    let only = |names: &[&str]| Scope::Namespaces(names.iter().map(|name| (*name).to_owned()).collect());
    let image = ["r.example.com/app:1"];
    assert_eq!(scope_of(&[], &[pod("x", "p", None, &image)], &[]), only(&[]), "it requests nothing");
    assert_eq!(scope_of(&["infra/base"], &[], &["old"]), only(&["infra", "old"]));
    assert_eq!(scope_of(&[], &[pod("b", "p", Some("web"), &image)], &[]), only(&["b"]));
    assert_eq!(scope_of(&[], &[pod("b", "p", Some("a/web"), &image)], &[]), only(&["a"]));
    assert_eq!(scope_of(&[], &[pod("b", "p", Some("c/web"), &image)], &[]), only(&[]), "b does not accept c");
    assert_eq!(scope_of(&[], &[pod("b", "p", Some("auto"), &image)], &[]), only(&["a", "b", "d"]));
    assert_eq!(scope_of(&[], &[pod("x", "p", Some("required"), &image)], &[]), only(&["x"]));
    assert_eq!(scope_of(&[], &[pod("all", "p", Some("auto"), &image)], &[]), Scope::All);
    assert_eq!(scope_of(&[], &[pod("all", "p", Some("c/web"), &image)], &[]), only(&["c"]));
}

#[test]
fn by_name_of_the_own_namespace_and_of_those_who_share() {
    let caches = [
        cache("team-a", "web", &[], |_| {}),
        cache("team-b", "web", &[], |_| {}),
        cache("team-b", "shared", &[], |object| object["spec"]["share"] = json!(["team-a"])),
        cache("team-b", "own", &[], |_| {}),
    ];
    let accepting = |list: &str, text: &str| {
        wanted(&caches, &[("team-a", &format!("accept:{list}"))], &[pod("team-a", "p", Some(text), &[])])
    };
    let by = |text: &str| accepting("team-b", text);
    assert_eq!(by("web").0, ["team-a/web"]);
    assert_eq!(by("team-b/shared").0, ["team-b/shared"]);
    // An image cache that is shared with a namespace that does not accept it is not offered to its pods, for
    // any kind of request.
    for (list, gets) in [("", false), ("team-c", false), ("team-c, team-b", true), ("*", true)] {
        assert_eq!(accepting(list, "team-b/shared").0.len(), usize::from(gets), "{list}");
        for text in ["auto", "required"] {
            let pods = [pod("team-a", "p", Some(text), &["r.example.com/app:1"])];
            let accepts = format!("accept:{list}");
            let found = wanted(&caches[2..3], &[("team-a", &accepts)], &pods).0;
            assert_eq!(found.len(), usize::from(gets), "{text} {list}");
        }
        assert_eq!(accepting(list, "web").0, ["team-a/web"]);
    }
    // An image cache of another namespace gets the same text as one that does not exist.
    let said = |text: &str| by(text).1.remove(0).replace(text, "IT");
    assert_eq!(by("team-b/own").0, Vec::<String>::new());
    assert_eq!(said("team-b/own"), said("team-b/none"));
    for unclear in ["", "web/", "a/b/c", "../x", "Web", "auto!"] {
        let (none, why) = by(unclear);
        assert!(none.is_empty() && why[0].contains("must be the name"), "{unclear}: {why:?}");
    }
    // A pod without a request gets no event.
    assert_eq!(wanted(&caches, &[], &[pod("team-a", "p", None, &[])]), Default::default());
    // The configuration of the node can name any image cache.
    let requests = named("team-b/own");
    assert_eq!(decide(&requests, &caches, "node-a", 9).volumes[0].cache(), "team-b/own");
}

#[test]
fn the_best_for_the_images() {
    let (one, two) = ("r.example.com/one:1", "r.example.com/two:1");
    let caches = [
        cache("team-a", "one", &[one], |_| {}),
        cache("team-a", "both", &[one, two], |_| {}),
        cache("team-b", "hidden", &[one, two, "r.example.com/three:1"], |_| {}),
    ];
    let best = |images: &[&str]| wanted(&caches, &[], &[pod("team-a", "p", Some("auto"), images)]);
    assert_eq!(best(&[one, two]).0, ["team-a/both"]);
    assert!(best(&["r.example.com/three:1"]).1[0].contains("contains any"));
    let (none, why) = wanted(&caches, &[], &[pod("team-a", "p", Some("required"), &["not an image!"])]);
    assert!(none.is_empty() && why[0].contains("required"), "{why:?}");
}

#[test]
fn namespaces_ask_for_their_pods_and_before_them() {
    let caches =
        [cache("team-a", "web", &["r.example.com/app:1"], |_| {}), cache("team-a", "own", &["x:1"], |_| {})];
    // A named image cache is attached before the first pod.
    assert_eq!(wanted(&caches, &[("team-a", "web")], &[]).0, ["team-a/web"]);
    assert_eq!(wanted(&caches, &[("team-a", "auto")], &[]).0, Vec::<String>::new());
    let pods = [pod("team-a", "p", None, &["r.example.com/app:1"])];
    assert_eq!(wanted(&caches, &[("team-a", "auto")], &pods).0, ["team-a/web"]);
    // The annotation of a pod overrides that of its namespace.
    let pods = [pod("team-a", "p", Some("own"), &["r.example.com/app:1"])];
    assert_eq!(wanted(&caches, &[("team-a", "auto")], &pods).0, ["team-a/own"]);
    // A namespace cannot request more than its pods.
    assert_eq!(wanted(&caches, &[("team-b", "team-a/web")], &[]).0, Vec::<String>::new());
}

#[test]
fn what_is_not_served_is_not_wanted() {
    for (phase, said) in [("Unavailable", "Unavailable"), ("Failed", "Failed"), ("Creating", "Creating")] {
        let caches = [cache("team-a", "web", &[], |object| object["status"]["phase"] = json!(phase))];
        let (none, why) = wanted(&caches, &[], &[pod("team-a", "p", Some("web"), &[])]);
        assert!(none.is_empty() && why[0].contains(said), "{why:?}");
    }
    let deleted = |object: &mut Value| {
        object["metadata"]["deletionTimestamp"] = json!("2026-01-02T00:00:00Z");
    };
    let caches = [cache("team-a", "web", &[], deleted)];
    assert!(wanted(&caches, &[], &[pod("team-a", "p", Some("web"), &[])]).0.is_empty());
    // A pod that has ended requests nothing.
    let caches = [cache("team-a", "web", &[], |_| {})];
    let mut ended = pod("team-a", "p", Some("web"), &[]);
    ended.status = Some(serde_json::from_value(json!({"phase": "Succeeded"})).unwrap());
    assert_eq!(wanted(&caches, &[], &[ended]), Default::default());
}

#[test]
fn a_snapshot_that_cannot_be_used_yet_is_waited_for() {
    for (copies, said) in [
        (json!([]), "node_namespace"),
        (json!([{"namespace": "larder-volumes", "ready": false}]), "not ready"),
        (json!([{"namespace": "larder-volumes", "ready": false, "message": "forbidden"}]), "forbidden"),
        (json!([{"namespace": "team-a", "ready": true}]), "node_namespace"),
    ] {
        let caches = [cache("team-a", "web", &[], |object| object["status"]["copies"] = copies)];
        let decision = decide(&named("team-a/web"), &caches, "node-a", 9);
        assert!(decision.volumes[0].offered.clone().unwrap_err().contains(said));
    }
}

#[test]
fn at_most_max_caches_are_attached() {
    let caches: Vec<Arc<Cache>> = (0..4).map(|at| cache("team-a", &format!("c{at}"), &[], |_| {})).collect();
    let mut pods: Vec<Pod> =
        (0..4).map(|at| pod("team-a", &format!("p{at}"), Some(&format!("c{at}")), &[])).collect();
    pods.push(pod("team-a", "p9", Some("c0"), &[]));
    for (at, pod) in pods.iter_mut().enumerate() {
        let time = format!("2026-01-01T00:00:0{}Z", 9 - at);
        pod.metadata.creation_timestamp = Some(serde_json::from_value(json!(time)).unwrap());
    }
    let requests = requests(&["team-a/c1".into()], &Namespaces::new(), &pods.iter().collect::<Vec<_>>());
    let decision = decide(&requests, &caches, "node-a", 3);
    let caches: Vec<String> = decision.volumes.iter().map(DesiredVolume::cache).collect();
    // The configuration comes first, then the oldest pods.
    assert_eq!(caches, ["team-a/c1", "team-a/c0", "team-a/c3"]);
    assert_eq!(
        decision.volumes.iter().map(|desired| desired.requested_by.len()).collect::<Vec<_>>(),
        [1, 2, 1]
    );
    let [(pod, why)] = decision.refused.as_slice() else { panic!("{:?}", decision.refused) };
    assert!(pod.name.as_deref() == Some("p2") && why.contains("max_caches"), "{why}");
}

#[test]
fn a_namespace_leaves_places_to_others() {
    let mut caches: Vec<Arc<Cache>> =
        (0..4).map(|at| cache("team-a", &format!("c{at}"), &[], |_| {})).collect();
    caches.push(cache("team-b", "web", &[], |_| {}));
    let mut pods: Vec<Pod> =
        (0..4).map(|at| pod("team-a", &format!("p{at}"), Some(&format!("c{at}")), &[])).collect();
    pods.push(pod("team-b", "late", Some("web"), &[]));
    for (at, pod) in pods.iter_mut().enumerate() {
        let time = format!("2026-01-01T00:00:0{at}Z");
        pod.metadata.creation_timestamp = Some(serde_json::from_value(json!(time)).unwrap());
    }
    let decide = |pods: &[Pod]| {
        let requests = requests(&[], &Namespaces::new(), &pods.iter().collect::<Vec<_>>());
        decide(&requests, &caches, "node-a", 3)
    };
    let names = |decision: &Decision| decision.volumes.iter().map(DesiredVolume::cache).collect::<Vec<_>>();
    assert_eq!(names(&decide(&pods[..4])), ["team-a/c0", "team-a/c1", "team-a/c2"]);
    let decision = decide(&pods);
    assert_eq!(names(&decision), ["team-a/c0", "team-a/c1", "team-b/web"]);
    let refused: Vec<_> = decision.refused.iter().filter_map(|(pod, _)| pod.name.as_deref()).collect();
    assert_eq!(refused, ["p2", "p3"]);
    assert!(decision.refused[0].1.contains("fairly"), "{}", decision.refused[0].1);
}

#[test]
fn a_claim_is_large_enough() {
    let size = |restore: Option<u64>| {
        let caches = [cache("team-a", "web", &[], |object| {
            object["status"]["content"]["snapshot"]["restoreSize"] = json!(restore);
        })];
        decide(&named("team-a/web"), &caches, "node-a", 1).volumes[0].size
    };
    assert_eq!(size(None), 20 << 30);
    assert_eq!(size(Some(1 << 30)), 20 << 30);
    assert_eq!(size(Some((20 << 30) + 1)), (20 << 30) + 1);
}
