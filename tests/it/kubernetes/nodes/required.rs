//! Pods that require an image cache start only on a node that has it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{ListParams, PostParams};
use serde_json::json;

use super::Scene;
use crate::harness::cluster::{LARDER, World, shipped};
use crate::harness::isolated;

const PODS: usize = 100;

/// Returns a world with the component `required`.
fn scene() -> Option<Scene> {
    Scene::with(World::faked(), |world| {
        for file in ["readiness/rbac", "required/rbac", "required/policy", "required/admission"] {
            for object in shipped(&format!("node/{file}.yaml")) {
                world.fake().install(&object);
            }
        }
        world.config.cluster[0].hold_pods = true;
    })
}

fn require(scene: &Scene, name: &str, cache: &str, image: &str) {
    let annotations = match cache {
        "required" => json!({"larder.dev/image-cache": "required"}),
        named => json!({"larder.dev/image-cache": named, "larder.dev/image-cache-required": "true"}),
    };
    let pod = json!({
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"containers": [{"name": "app", "image": image, "args": ["node", "hold"]}]},
    });
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let pods = scene.world.api::<Pod>(&scene.world.team);
    scene.world.wait(pods.create(&PostParams::default(), &pod)).unwrap();
}

fn pods(scene: &Scene) -> Vec<Pod> {
    let pods = scene.world.api::<Pod>(&scene.world.team);
    scene.world.wait(pods.list(&ListParams::default())).unwrap().items
}

fn node_of(pod: &Pod) -> Option<String> {
    pod.spec.as_ref()?.node_name.clone()
}

fn runs(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
}

#[case]
fn a_hundred_pods_wait_for_their_image_cache() {
    isolated(&[], || {
        let Some(scene) = scene() else { return };
        scene.world.add_node("node-b");
        // Only these pods need the image cache.
        for at in 0..PODS {
            require(&scene, &format!("app-{at}"), "web", "larder:1");
        }
        std::thread::sleep(std::time::Duration::from_secs(1));
        assert!(
            pods(&scene).iter().all(|pod| node_of(pod).is_none()),
            "a pod was placed although no node has an agent"
        );
        let agents = BTreeMap::from(
            ["node-a", "node-b"].map(|node| (node, scene.agent(node, "readiness = true\nkeep_minutes = 60"))),
        );
        let begin = Instant::now();
        let mut attached: BTreeMap<&str, f64> = BTreeMap::new();
        let mut released: BTreeMap<String, f64> = BTreeMap::new();
        let mut started: BTreeMap<String, f64> = BTreeMap::new();
        let first = agents.values().next().unwrap();
        scene.until(first, "all pods run", || {
            // Read the pods first: a cache that is attached later might not have been attached when they
            // started.
            let (seen, now) = (pods(&scene), begin.elapsed().as_secs_f64());
            let placed: BTreeSet<String> = seen.iter().filter_map(node_of).collect();
            for (node, agent) in &agents {
                if !agent.attached().is_empty() {
                    attached.entry(node).or_insert(begin.elapsed().as_secs_f64());
                }
            }
            for node in &placed {
                assert!(attached.contains_key(node.as_str()), "a pod is on {node}, which has no image cache");
            }
            for pod in seen.iter().filter(|pod| node_of(pod).is_some()) {
                released.entry(pod.name_any()).or_insert(now);
            }
            for pod in seen.iter().filter(|pod| runs(pod)) {
                started.entry(pod.name_any()).or_insert(now);
            }
            (started.len() == PODS).then_some(())
        });
        let earliest = attached.values().copied().fold(f64::MAX, f64::min);
        let after = |times: &BTreeMap<String, f64>| {
            let mut after: Vec<f64> = times.values().map(|at| at - earliest).collect();
            after.sort_by(f64::total_cmp);
            format!("{:.2} s, {:.2} s, {:.2} s", after[0], after[PODS / 2], after[PODS - 1])
        };
        eprintln!(
            "{PODS} pods: attached after {attached:.2?} s; after that (first, median, last): on the node {}; started {}",
            after(&released),
            after(&started)
        );
        // One patch selects a node, one removes the gate. Only the first request of each watch is a list.
        let seen = scene.world.fake().seen();
        let count = |verb: &str, resource: &str| {
            let all = seen.iter().filter(|one| one.user == LARDER && one.namespace != scene.world.own());
            all.filter(|one| one.verb == verb && one.resource == resource).count()
        };
        eprintln!(
            "requests about pods: {} patches, {} lists, {} watches",
            count("patch", "pods"),
            count("list", "pods"),
            count("watch", "pods")
        );
        assert_eq!(count("list", "pods"), 1);
        // A patch of a pod that was changed meanwhile is sent again.
        assert!(count("patch", "pods") <= 3 * PODS, "{}", count("patch", "pods"));
        rights(&scene);
    });
}

/// Checks that each right of the component is used. `rights.rs` checks that no other right is needed.
fn rights(scene: &Scene) {
    let seen = scene.world.fake().seen();
    for object in shipped("node/required/rbac.yaml") {
        for rule in object["rules"].as_array().into_iter().flatten() {
            for resource in rule["resources"].as_array().unwrap() {
                for verb in rule["verbs"].as_array().unwrap() {
                    let is_used = seen
                        .iter()
                        .any(|one| one.user == LARDER && *resource == *one.resource && *verb == *one.verb);
                    assert!(is_used, "unused right: {verb} {resource}");
                }
            }
        }
    }
}

#[case]
fn the_best_image_cache_is_found_and_a_pod_without_one_says_why() {
    isolated(&[], || {
        let Some(scene) = scene() else { return };
        let (team, image) = (scene.world.team.clone(), scene.world.images().remove(0));
        let agent = scene.agent("node-a", "readiness = true");
        require(&scene, "best", "required", &image);
        require(&scene, "never", "none", "larder:1");
        scene.attached(&agent, 1);
        // No fake node has the image of the registry, but it is enough that the pod is scheduled.
        let placed = || pods(&scene).iter().find(|pod| pod.name_any() == "best").and_then(node_of);
        assert_eq!(scene.until(&agent, "the pod is scheduled", placed), "node-a");
        scene.told(&agent, &team, "best", "ImageCacheAttached");
        let note = scene.told(&agent, &team, "never", "ImageCacheWaiting");
        assert!(note.contains(&format!("there is no image cache {team}/none")), "{note}");
        // It starts when the image cache is created.
        scene.cache("none", |_| {});
        let placed = || pods(&scene).iter().find(|pod| pod.name_any() == "never").and_then(node_of);
        assert_eq!(scene.until(&agent, "the pod is scheduled", placed), "node-a");
        assert_eq!(agent.attached().len(), 2);
    });
}
