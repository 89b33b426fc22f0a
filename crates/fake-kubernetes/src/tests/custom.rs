//! Tests of custom resources: validation, pruning and defaults.

use std::time::Duration;

use k8s_openapi::api::core::v1::ResourceQuota;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::crd::CustomResourceExt as _;
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, CustomResource, KubeSchema, ResourceExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::Timing;
use super::{Fixture, refused, typed, until, until_within};

#[derive(Clone, Debug, CustomResource, KubeSchema, Serialize, Deserialize)]
#[kube(
    group = "fake.larder.dev",
    version = "v1",
    kind = "Pantry",
    plural = "pantries",
    namespaced,
    status = "State"
)]
#[x_kube(validation = Rule::new("self.shelves == oldSelf.shelves").message("shelves never change"))]
struct PantrySpec {
    #[schemars(length(min = 1, max = 3), inner(length(min = 1, max = 8)))]
    shelves: Vec<String>,
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 9))]
    doors: u32,
    owner: Option<String>,
}

fn two() -> u32 {
    2
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
struct State {
    full: bool,
}

/// Defines the kind in a separate API group for each fixture, so that tests do not collide on a real server.
async fn defined(fixture: &Fixture) -> Api<DynamicObject> {
    let group = group(fixture);
    let mut definition = Pantry::crd();
    definition.metadata.name = Some(format!("pantries.{group}"));
    definition.spec.group = group.clone();
    let definitions: Api<CustomResourceDefinition> = Api::all(fixture.client.clone());
    definitions.create(&PostParams::default(), &definition).await.unwrap();
    let name = definition.name_any();
    await_condition(definitions, &name, conditions::is_crd_established()).await.unwrap();
    let api = pantries(fixture);
    until("the kind is served", async || api.list(&ListParams::default()).await.ok()).await;
    api
}

fn group(fixture: &Fixture) -> String {
    format!("{}.fake.larder.dev", fixture.namespace)
}

fn pantries(fixture: &Fixture) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk(&group(fixture), "v1", "Pantry");
    let resource = ApiResource::from_gvk_with_plural(&kind, "pantries");
    Api::namespaced_with(fixture.client.clone(), &fixture.namespace, &resource)
}

async fn end(fixture: Fixture) {
    let definitions: Api<CustomResourceDefinition> = Api::all(fixture.client.clone());
    let name = format!("pantries.{}", group(&fixture));
    definitions.delete(&name, &DeleteParams::default()).await.unwrap();
    fixture.end().await;
}

fn object(fixture: &Fixture, change: &Value) -> Value {
    let mut object = json!({
        "apiVersion": format!("{}/v1", group(fixture)), "kind": "Pantry", "metadata": {"name": "a"},
    });
    json_patch::merge(&mut object, change);
    object
}

fn pantry(fixture: &Fixture, spec: Value) -> DynamicObject {
    typed(object(fixture, &json!({ "spec": spec })))
}

#[tokio::test]
async fn a_schema_is_enforced() {
    let fixture = Fixture::new().await;
    let undefined = refused(pantries(&fixture).list(&ListParams::default()).await);
    assert_eq!((undefined.code, undefined.message.as_str()), (404, "404 page not found"));
    let api = defined(&fixture).await;
    let post = PostParams::default();
    for (spec, field) in [
        (json!({}), "spec.shelves: Required value"),
        (json!({"shelves": []}), "spec.shelves in body should have at least 1 items"),
        (json!({"shelves": ["a", "b", "c", "d"]}), "spec.shelves: Too many: 4: must have at most 3 items"),
        (json!({"shelves": ["far too long"]}), "spec.shelves[0]: Too long: may not be more than 8"),
        (json!({"shelves": [1]}), "spec.shelves[0] in body must be of type string"),
        (json!({"shelves": ["a"], "doors": 0}), "spec.doors in body should be greater than or equal to 1"),
        (json!({"shelves": ["a"], "doors": "x"}), "spec.doors in body must be of type integer"),
    ] {
        let status = refused(api.create(&post, &pantry(&fixture, spec)).await);
        assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"));
        assert!(status.message.contains(field), "{field}: {}", status.message);
    }
    let made = api.create(&post, &pantry(&fixture, json!({"shelves": ["a"], "windows": 3}))).await.unwrap();
    assert_eq!(made.data["spec"], json!({"shelves": ["a"], "doors": 2}));
    assert_eq!(made.metadata.generation, Some(1));

    let change = |spec: Value| Patch::Merge(json!({ "spec": spec }));
    let params = PatchParams::default();
    let fixed = refused(api.patch("a", &params, &change(json!({"shelves": ["b"]}))).await);
    assert_eq!(fixed.code, 422);
    assert!(fixed.message.contains("shelves never change"), "{fixed}");
    let opened = api.patch("a", &params, &change(json!({"doors": 3}))).await.unwrap();
    assert_eq!(opened.metadata.generation, Some(2));
    // Only its subresource changes the status, and such changes are no new generation.
    let status = Patch::Merge(json!({"status": {"full": true}, "spec": {"doors": 4}}));
    let main = api.patch("a", &params, &status).await.unwrap();
    assert_eq!((&main.data["status"], main.metadata.generation), (&Value::Null, Some(3)));
    let status = Patch::Merge(json!({"status": {"full": true}, "spec": {"doors": 5}}));
    let sub = api.patch_status("a", &params, &status).await.unwrap();
    assert_eq!((&sub.data["status"]["full"], &sub.data["spec"]["doors"]), (&json!(true), &json!(4)));
    assert_eq!(sub.metadata.generation, Some(3));
    let blind = refused(api.replace("a", &post, &pantry(&fixture, json!({"shelves": ["a"]}))).await);
    assert!(blind.message.contains("must be specified for an update"), "{blind}");
    end(fixture).await;
}

#[tokio::test]
async fn applied_status_and_spec_have_separate_owners() {
    let fixture = Fixture::new().await;
    let api = defined(&fixture).await;
    let params = PatchParams::apply("larder");
    api.patch("a", &params, &Patch::Apply(&pantry(&fixture, json!({"shelves": ["a"], "owner": "me"}))))
        .await
        .unwrap();
    let status = object(&fixture, &json!({"status": {"full": true}}));
    let reported = api.patch_status("a", &params, &Patch::Apply(&status)).await.unwrap();
    assert_eq!(reported.data["status"], json!({"full": true}));
    assert_eq!(reported.data["spec"]["owner"], "me");
    let bare =
        api.patch("a", &params, &Patch::Apply(&pantry(&fixture, json!({"shelves": ["a"]})))).await.unwrap();
    assert!(bare.data["spec"].get("owner").is_none());
    assert_eq!(bare.data["status"], json!({"full": true}));
    let fields: Vec<_> = bare.managed_fields().iter().map(|entry| entry.subresource.clone()).collect();
    assert_eq!(fields, [None, Some("status".to_owned())]);
    end(fixture).await;
}

#[tokio::test]
async fn a_deletion_counts_as_a_generation() {
    let fixture = Fixture::new().await;
    let api = defined(&fixture).await;
    let mut held = pantry(&fixture, json!({"shelves": ["a"]}));
    held.metadata.finalizers = Some(vec!["larder.dev/hold".to_owned()]);
    api.create(&PostParams::default(), &held).await.unwrap();
    let marked = api.delete("a", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!(marked.metadata.generation, Some(2));
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    api.patch("a", &PatchParams::default(), &free).await.unwrap();
    assert!(api.get_opt("a").await.unwrap().is_none());
    end(fixture).await;
}

#[tokio::test]
async fn definitions_are_validated() {
    let fixture = Fixture::new().await;
    let api: Api<CustomResourceDefinition> = Api::all(fixture.client.clone());
    let definition = |schema: Value| -> CustomResourceDefinition {
        typed(json!({
            "metadata": {"name": "shelves.fake.larder.dev"},
            "spec": {
                "group": "fake.larder.dev", "scope": "Namespaced", "names": {"kind": "Shelf", "plural": "shelves"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                    "type": "object", "properties": {"spec": schema},
                }}}],
            },
        }))
    };
    let refused_schema = async |schema: Value| {
        let status = refused(api.create(&PostParams::default(), &definition(schema)).await);
        assert_eq!(status.code, 422, "{status}");
        status.message
    };
    let untyped = refused_schema(json!({"properties": {"a": {"type": "string"}}})).await;
    assert!(untyped.contains("must not be empty for specified object fields"), "{untyped}");
    let broken = refused_schema(json!({
        "type": "object", "x-kubernetes-validations": [{"rule": "self.a ==", "message": "x"}],
        "properties": {"a": {"type": "string"}},
    }));
    assert!(broken.await.contains("compilation failed"));
    // A list of up to a million strings of any length is too expensive to check one by one.
    let costly = refused_schema(json!({
        "type": "object",
        "properties": {"a": {"type": "array", "items": {
            "type": "string", "x-kubernetes-validations": [{"rule": "self.matches('^a+$')", "message": "x"}],
        }}},
    }));
    assert!(costly.await.contains("estimated rule cost"));
    fixture.end().await;
}

#[tokio::test]
async fn a_quota_counts_custom_resources() {
    let fixture = Fixture::with(Timing { count: Duration::from_millis(500), ..Timing::default() }).await;
    let api = defined(&fixture).await;
    let counted = format!("count/pantries.{}", group(&fixture));
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {&counted: "1"}}});
    let quotas = fixture.api::<ResourceQuota>();
    quotas.create(&PostParams::default(), &typed(quota)).await.unwrap();
    let status = async || quotas.get("q").await.unwrap().status;
    until("the quota limits", async || status().await?.hard?.contains_key(&counted).then_some(())).await;
    let mut one = pantry(&fixture, json!({"shelves": ["a"]}));
    // A real controller might already have found the kind.
    let early = api.create(&PostParams::default(), &one).await;
    if early.is_err() || fixture.fake.is_some() {
        let early = refused(early);
        assert_eq!((early.code, early.reason.as_str()), (403, "Forbidden"));
        let expected = format!("status unknown for quota: q, resources: {counted}");
        assert!(early.message.ends_with(&expected), "{early}");
        // The controller looks for new kinds every 30 s, and at all quotas every 5 minutes.
        let counts = async || api.create(&PostParams::default(), &one).await.ok();
        until_within(Duration::from_secs(360), "the quota counts", counts).await;
    }
    one.metadata.name = Some("b".to_owned());
    let full = refused(api.create(&PostParams::default(), &one).await);
    assert_eq!((full.code, full.reason.as_str()), (403, "Forbidden"));
    let expected =
        format!("exceeded quota: q, requested: {counted}=1, used: {counted}=1, limited: {counted}=1");
    assert!(full.message.contains(&expected), "{full}");
    end(fixture).await;
}
