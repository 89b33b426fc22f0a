//! Installs, upgrades and removes the chart on the API server of the tests as Helm does: it applies the
//! rendered objects, and deletes the ones that are no longer rendered, unless they are marked to be kept.

use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Client, ResourceExt as _};
use larder_fake_kubernetes::Cluster;
use serde_json::{Value, json};

use super::{keyed, rendered};

fn api(client: &Client, object: &Value) -> Api<DynamicObject> {
    let (group, version) = object["apiVersion"].as_str().unwrap().split_once('/').unwrap_or_default();
    let version = if version.is_empty() { "v1" } else { version };
    let kind = object["kind"].as_str().unwrap();
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

/// Updates a release from the objects `before` to the objects `now`.
async fn release(client: &Client, before: &[Value], now: &[Value]) {
    // Namespaces and definitions first, as Helm orders kinds.
    let rank = |object: &Value| match object["kind"].as_str() {
        Some("Namespace") => 0,
        Some("CustomResourceDefinition") => 1,
        _ => 2,
    };
    let mut ordered: Vec<&Value> = now.iter().collect();
    ordered.sort_by_key(|object| rank(object));
    for object in ordered {
        let name = object["metadata"]["name"].as_str().unwrap();
        let applied =
            api(client, object).patch(name, &PatchParams::apply("helm"), &Patch::Apply(object)).await;
        applied.unwrap_or_else(|e| panic!("{e}: {object}"));
    }
    let stay = keyed(now);
    let mut gone: Vec<Value> = keyed(before)
        .into_iter()
        .filter(|(key, _)| !stay.contains_key(key))
        .map(|(_, object)| object)
        .collect();
    gone.retain(|object| object["metadata"]["annotations"]["helm.sh/resource-policy"] != "keep");
    gone.sort_by_key(|object| std::cmp::Reverse(rank(object)));
    for object in gone {
        let name = object["metadata"]["name"].as_str().unwrap();
        api(client, &object).delete(name, &DeleteParams::default()).await.unwrap();
    }
}

#[tokio::test]
async fn a_release_is_installed_upgraded_and_removed() {
    let cluster = Cluster::new();
    cluster.install(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "cache"}}));
    let client = cluster.admin();
    let first =
        rendered("cache", &json!({"node": {"enabled": true, "readiness": true, "required": true}})).unwrap();
    release(&client, &[], &first).await;
    for object in &first {
        let name = object["metadata"]["name"].as_str().unwrap();
        assert_eq!(api(&client, object).get(name).await.unwrap().name_any(), name);
    }
    let cache = json!({
        "apiVersion": "larder.dev/v1", "kind": "ImageCache", "metadata": {"name": "web", "namespace": "cache"},
        "spec": {"images": ["registry.example.com/app:1"]},
    });
    cluster.install(&cache);

    let second = json!({"replicas": 3, "image": {"tag": "2"}, "cluster": {"storageClass": "fast"}});
    let second = rendered("cache", &second).unwrap();
    release(&client, &first, &second).await;
    let daemons = cluster.peek("apps", "deployments", "cache", "larder").unwrap();
    let old = keyed(&first)["Deployment cache larder"].clone();
    assert_eq!(daemons["spec"]["replicas"], 3);
    assert_eq!(daemons["spec"]["template"]["spec"]["containers"][0]["image"], "larder:2");
    let checksum = "/spec/template/metadata/annotations/checksum~1config";
    assert!(daemons.pointer(checksum).unwrap() != old.pointer(checksum).unwrap(), "pods restart");
    assert_eq!(cluster.peek_all("apps", "daemonsets", ""), Vec::<Value>::new());
    assert_eq!(cluster.peek_all("admissionregistration.k8s.io", "mutatingadmissionpolicies", "").len(), 0);

    release(&client, &second, &[]).await;
    for (group, plural) in
        [("apps", "deployments"), ("rbac.authorization.k8s.io", "clusterroles"), ("", "services")]
    {
        assert_eq!(cluster.peek_all(group, plural, ""), Vec::<Value>::new(), "{plural}");
    }
    // The records of tenants are kept.
    assert_eq!(cluster.peek_all("larder.dev", "imagecaches", "").len(), 1);
}
