//! Tests of server-side apply.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::{Fixture, refused, typed, until};

fn config_map(data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data})
}

#[tokio::test]
async fn an_owner_removes_fields_that_it_no_longer_applies() {
    let fixture = Fixture::new().await;
    let api = fixture.api::<ConfigMap>();
    let apply = async |manager: &str, force: bool, data: Value| {
        let params = PatchParams { force, ..PatchParams::apply(manager) };
        api.patch("a", &params, &Patch::Apply(&config_map(&data))).await
    };
    let first = apply("one", false, json!({"x": "1", "y": "1"})).await.unwrap();
    let again = apply("one", false, json!({"x": "1", "y": "1"})).await.unwrap();
    assert_eq!(first.resource_version(), again.resource_version());
    // The same value is shared; another value is a conflict.
    apply("two", false, json!({"x": "1", "z": "1"})).await.unwrap();
    let conflict = refused(apply("two", false, json!({"y": "2"})).await);
    assert_eq!((conflict.code, conflict.reason.as_str()), (409, "Conflict"));
    assert_eq!(conflict.message, "Apply failed with 1 conflict: conflict with \"one\": .data.y");
    // Manager two still owns x; y has no owner.
    let left = apply("one", false, json!({})).await.unwrap();
    assert_eq!(left.data.unwrap().keys().collect::<Vec<_>>(), ["x", "z"]);
    let forced = apply("one", true, json!({"z": "2"})).await.unwrap();
    assert_eq!(forced.data.unwrap()["z"], "2");
    let left = apply("two", false, json!({"x": "1"})).await.unwrap();
    assert_eq!(left.data.unwrap().keys().collect::<Vec<_>>(), ["x", "z"]);
    fixture.end().await;
}

#[tokio::test]
async fn an_update_takes_ownership() {
    let fixture = Fixture::new().await;
    let api = fixture.api::<ConfigMap>();
    let params = PatchParams::apply("one");
    let made = api.patch("a", &params, &Patch::Apply(&config_map(&json!({"x": "1"})))).await.unwrap();
    assert_eq!(made.managed_fields()[0].manager.as_deref(), Some("one"));
    assert_eq!(made.managed_fields()[0].operation.as_deref(), Some("Apply"));
    let other = PatchParams { field_manager: Some("other".to_owned()), ..Default::default() };
    api.patch("a", &other, &Patch::Merge(&json!({"data": {"x": "2"}}))).await.unwrap();
    let conflict = refused(api.patch("a", &params, &Patch::Apply(&config_map(&json!({"x": "1"})))).await);
    assert_eq!(conflict.code, 409);
    let expected = "Apply failed with 1 conflict: conflict with \"other\" using v1: .data.x";
    assert_eq!(conflict.message, expected);
    let forced =
        api.patch("a", &params.force(), &Patch::Apply(&config_map(&json!({"x": "1"})))).await.unwrap();
    assert_eq!(forced.data.unwrap()["x"], "1");
    assert_eq!(forced.metadata.managed_fields.unwrap().len(), 1);
    fixture.end().await;
}

#[tokio::test]
async fn lists_are_merged_by_their_keys() {
    let fixture = Fixture::new().await;
    let api = fixture.api::<Job>();
    let job = |env: Value| {
        json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a", "labels": {"x": "1"}}, "spec": {
            "suspend": true,
            "template": {"spec": {"restartPolicy": "Never", "containers": [
                {"name": "builder", "image": "larder:1", "env": env},
            ]}},
        }})
    };
    let params = PatchParams::apply("larder").force();
    let apply = async || {
        let job = job(json!([{"name": "A", "value": "1"}]));
        api.patch("a", &params, &Patch::Apply(&job)).await.unwrap()
    };
    apply().await;
    let made = until("its controller has seen it", async || {
        let job = api.get("a").await.unwrap();
        job.status.as_ref()?.conditions.is_some().then_some(job)
    })
    .await;
    let same = apply().await;
    assert_eq!(made.resource_version(), same.resource_version());
    assert_eq!(same.metadata.generation, Some(1));
    // An apply of only this field removes all other fields of the manager, which a template does not allow.
    let only = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}, "spec": {"suspend": false}});
    assert_eq!(refused(api.patch("a", &params, &Patch::Apply(&only)).await).code, 422);
    // Another manager owns only this field.
    let switch = PatchParams::apply("switch").force();
    let running = api.patch("a", &switch, &Patch::Apply(&only)).await.unwrap();
    assert_eq!(running.spec.unwrap().suspend, Some(false));
    assert_eq!(running.metadata.generation, Some(2));
    fixture.end().await;
}

#[tokio::test]
async fn an_apply_needs_a_manager_and_the_right_uid() {
    let fixture = Fixture::new().await;
    let api = fixture.api::<Secret>();
    let secret = |uid: Option<&str>| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a", "uid": uid}, "stringData": {"k": "v"}});
    let unnamed = refused(api.patch("a", &PatchParams::default(), &Patch::Apply(&secret(None))).await);
    assert_eq!(unnamed.code, 422);
    let params = PatchParams::apply("larder");
    let absent = refused(api.patch("a", &params, &Patch::Apply(&secret(Some("x")))).await);
    assert_eq!((absent.code, absent.reason.as_str()), (409, "Conflict"));
    let made = api.patch("a", &params, &Patch::Apply(&secret(None))).await.unwrap();
    assert_eq!(made.type_.as_deref(), Some("Opaque"));
    assert_eq!(made.data.unwrap()["k"].0, b"v");
    let other = refused(api.patch("a", &params, &Patch::Apply(&secret(Some("x")))).await);
    assert_eq!((other.code, other.reason.as_str()), (422, "Invalid"));
    assert!(other.message.contains("metadata.uid: Invalid value: \"x\": field is immutable"), "{other}");
    fixture.end().await;
}

#[tokio::test]
async fn finalizers_keep_deleted_objects() {
    let fixture = Fixture::new().await;
    let api = fixture.api::<ConfigMap>();
    let held: ConfigMap = typed(json!({"metadata": {"name": "a", "finalizers": ["larder.dev/hold"]}}));
    api.create(&PostParams::default(), &held).await.unwrap();
    let marked = api.delete("a", &Default::default()).await.unwrap().left().unwrap();
    assert!(marked.metadata.deletion_timestamp.is_some());
    let more = json!([{"op": "add", "path": "/metadata/finalizers/-", "value": "larder.dev/other"}]);
    let more: json_patch::Patch = serde_json::from_value(more).unwrap();
    let refused = refused(api.patch("a", &PatchParams::default(), &Patch::<()>::Json(more)).await);
    assert_eq!(refused.code, 422);
    assert!(
        refused.message.contains("no new finalizers can be added if the object is being deleted"),
        "{refused}"
    );
    let free: json_patch::Patch = serde_json::from_value(json!([
        {"op": "test", "path": "/metadata/finalizers/0", "value": "larder.dev/hold"},
        {"op": "remove", "path": "/metadata/finalizers/0"},
    ]))
    .unwrap();
    api.patch("a", &PatchParams::default(), &Patch::<()>::Json(free)).await.unwrap();
    assert!(api.get_opt("a").await.unwrap().is_none());
    fixture.end().await;
}
