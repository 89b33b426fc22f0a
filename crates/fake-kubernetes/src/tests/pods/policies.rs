//! Admission policies for pods.

use super::*;

#[tokio::test]
async fn a_policy_refuses_pods_but_not_jobs() {
    let world = World::new();
    let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}});
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(world.cluster.admin());
    namespaces.patch(NAMESPACE, &PatchParams::default(), &Patch::Merge(&labels)).await.unwrap();
    let pod = |capability: &str| -> Pod {
        typed(json!({"metadata": {"name": "a"}, "spec": {"containers": [{
            "name": "builder", "image": "larder:1",
            "securityContext": {"capabilities": {"drop": ["ALL"], "add": ["CHOWN", capability]}},
        }]}}))
    };
    let pods = world.api::<Pod>();
    let refused = refused(pods.create(&PostParams::default(), &pod("SYS_ADMIN")).await);
    assert_eq!(refused.code, 403);
    assert!(
        refused.message.contains("violates PodSecurity \"baseline:latest\": non-default capabilities"),
        "{refused}"
    );
    pods.create(&PostParams::default(), &pod("MKNOD")).await.unwrap();
    let mut job: Job = typed(json!({"metadata": {"name": "build"}, "spec": {
        "template": {"spec": {"restartPolicy": "Never"}},
    }}));
    job.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers =
        pod("SYS_ADMIN").spec.unwrap().containers;
    world.api::<Job>().create(&PostParams::default(), &job).await.unwrap();
    until("FailedCreate", async || world.has_event("FailedCreate").then_some(())).await;
    assert!(world.pods().await.is_empty());
}

#[tokio::test]
async fn a_pod_with_a_gate_waits_and_only_narrows() {
    let world = World::new();
    let api = world.api::<Pod>();
    let fast = json!({"key": "disk", "operator": "In", "values": ["fast"]});
    let near = |expressions: Value| {
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": expressions}],
        }}})
    };
    let pod = json!({
        "metadata": {"name": "gated"},
        "spec": {
            "schedulingGates": [{"name": "example.com/wait"}], "affinity": near(json!([fast])),
            "containers": [{"name": "app", "image": "larder:1", "args": ["-c", "sleep 60"]}],
        },
    });
    let bound = {
        let mut pod = pod.clone();
        pod["spec"]["nodeName"] = json!("node-a");
        pod
    };
    let create = |pod: &Value| {
        let pod: Pod = serde_json::from_value(pod.clone()).unwrap();
        let api = api.clone();
        async move { api.create(&PostParams::default(), &pod).await }
    };
    assert_eq!(refused(create(&bound).await).code, 422);
    create(&pod).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let gated = api.get("gated").await.unwrap();
    let condition = &gated.status.unwrap().conditions.unwrap()[0];
    assert_eq!(condition.reason.as_deref(), Some("SchedulingGated"));
    assert_eq!(gated.spec.unwrap().node_name, None);
    let patch = |patch: Value| {
        let api = api.clone();
        async move { api.patch("gated", &PatchParams::default(), &Patch::Merge(&json!({"spec": patch}))).await }
    };
    for wrong in [
        json!({"schedulingGates": [{"name": "example.com/wait"}, {"name": "example.com/more"}]}),
        json!({"affinity": near(json!([]))}),
        json!({"affinity": near(json!([{"key": "a", "operator": "Exists"}, fast]))}),
        json!({"affinity": {"podAffinity": {}}, "priority": 7}),
    ] {
        assert_eq!(refused(patch(wrong.clone()).await).code, 422, "{wrong}");
    }
    let labelled = json!({"key": "ready", "operator": "Exists"});
    patch(json!({"schedulingGates": [], "affinity": near(json!([fast, labelled]))})).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let pod = api.get("gated").await.unwrap();
    assert_eq!(pod.spec.unwrap().node_name, None, "the node has no such label");
    // Without a gate, the affinity cannot change.
    assert_eq!(refused(patch(json!({"affinity": near(json!([fast]))})).await).code, 422);
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(world.cluster.admin());
    let label = Patch::Merge(json!({"metadata": {"labels": {"ready": "1"}}}));
    nodes.patch("node-a", &PatchParams::default(), &label).await.unwrap();
    until("it runs", || async {
        (api.get("gated").await.unwrap().status?.phase? == "Running").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_mutating_policy_changes_new_pods() {
    let world = World::new();
    let admission = include_str!("../../../../../config/kubernetes/node/required/admission.yaml");
    for object in admission.split("\n---\n") {
        world.cluster.install(&serde_saphyr::from_str::<Value>(object).unwrap());
    }
    let api = world.api::<Pod>();
    let gates = |name: &'static str, annotations: Value, more: Value| {
        let mut pod = json!({
            "metadata": {"name": name, "annotations": annotations, "labels": {"own": "1"}},
            "spec": {"containers": [{"name": "app", "image": "larder:1"}]},
        });
        json_patch::merge(&mut pod, &more);
        let api = api.clone();
        async move {
            let pod =
                api.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
            let held = pod.labels().get("larder.dev/image-cache-required").cloned();
            assert_eq!(pod.labels()["own"], "1");
            let gates = pod.spec.unwrap().scheduling_gates.unwrap_or_default();
            let gates: Vec<String> = gates.into_iter().map(|gate| gate.name).collect();
            (gates.join(","), held)
        }
    };
    let (gate, label) = ("larder.dev/image-cache", Some("true".to_owned()));
    assert_eq!(gates("a", json!({gate: "required"}), json!({})).await, (gate.to_owned(), label.clone()));
    let named = json!({gate: "web", "larder.dev/image-cache-required": "true"});
    let other = json!({"spec": {"schedulingGates": [{"name": "other"}]}});
    assert_eq!(gates("b", named.clone(), other).await, (format!("other,{gate}"), label));
    let none = (String::new(), None);
    assert_eq!(gates("c", json!({gate: "auto"}), json!({})).await, none);
    assert_eq!(gates("d", json!({"other": "required"}), json!({})).await, none);
    assert_eq!(gates("e", json!(null), json!({})).await, none);
    assert_eq!(gates("f", named, json!({"spec": {"nodeName": "node-a"}})).await, none);
}
