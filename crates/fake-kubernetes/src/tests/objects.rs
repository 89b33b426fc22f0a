//! Tests of single objects: create, read, replace, patch, delete, and refused requests.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::{Fixture, refused, typed};

fn post() -> PostParams {
    PostParams::default()
}

fn config_map(name: &str, value: &str) -> ConfigMap {
    typed(json!({"metadata": {"name": name, "labels": {"app": name}}, "data": {"key": value}}))
}

#[tokio::test]
async fn versions_guard_replaces() {
    let fixture = Fixture::new().await;
    let api = fixture.api::<ConfigMap>();
    let first = api.create(&post(), &config_map("a", "1")).await.unwrap();
    assert!(first.uid().is_some() && first.resource_version().is_some());
    assert!(first.metadata.creation_timestamp.is_some());
    let exists = refused(api.create(&post(), &config_map("a", "1")).await);
    assert_eq!((exists.code, exists.reason.as_str()), (409, "AlreadyExists"));
    assert_eq!(exists.message, "configmaps \"a\" already exists");

    let mut second = first.clone();
    second.data = Some([("key".to_owned(), "2".to_owned())].into());
    let second = api.replace("a", &post(), &second).await.unwrap();
    assert_ne!(second.resource_version(), first.resource_version());
    let stale = refused(api.replace("a", &post(), &first).await);
    assert_eq!((stale.code, stale.reason.as_str()), (409, "Conflict"));
    assert!(
        stale
            .message
            .starts_with("Operation cannot be fulfilled on configmaps \"a\": the object has been modified")
    );

    // The same replace again changes nothing, not even the version.
    let same = api.replace("a", &post(), &second).await.unwrap();
    assert_eq!(same.resource_version(), second.resource_version());

    let gone = refused(api.get("b").await);
    assert_eq!((gone.code, gone.message.as_str()), (404, "configmaps \"b\" not found"));
    assert!(api.get_opt("b").await.unwrap().is_none());
    fixture.end().await;
}

#[tokio::test]
async fn deletion_checks_preconditions() {
    let fixture = Fixture::new().await;
    let api = fixture.api::<ConfigMap>();
    let made = api.create(&post(), &config_map("a", "1")).await.unwrap();
    let wrong = Preconditions { uid: Some("no-such-uid".to_owned()), resource_version: None };
    let refused = refused(api.delete("a", &DeleteParams::default().preconditions(wrong)).await);
    assert_eq!((refused.code, refused.reason.as_str()), (409, "Conflict"));
    assert!(
        refused.message.contains("the UID in the precondition (no-such-uid) does not match"),
        "{refused}"
    );
    let right = Preconditions { uid: made.uid(), resource_version: None };
    let status = api.delete("a", &DeleteParams::default().preconditions(right)).await.unwrap();
    assert!(status.right().unwrap().is_success());
    assert!(api.get_opt("a").await.unwrap().is_none());
    fixture.end().await;
}

#[tokio::test]
async fn generated_names_begin_with_a_name() {
    let fixture = Fixture::new().await;
    let api = fixture.api::<ConfigMap>();
    let generate = async |prefix: &str| {
        let mut map = config_map("", "1");
        map.metadata = ObjectMeta { generate_name: Some(prefix.to_owned()), ..ObjectMeta::default() };
        api.create(&post(), &map).await
    };
    let made = generate("a-").await.unwrap();
    assert!(made.name_any().starts_with("a-") && made.name_any().len() == 7, "{}", made.name_any());
    let refused = refused(generate("a.").await);
    assert_eq!((refused.code, refused.reason.as_str()), (422, "Invalid"));
    assert!(refused.message.contains("metadata.generateName: Invalid value: \"a.\""), "{refused}");
    fixture.end().await;
}

#[tokio::test]
async fn a_patch_of_another_object_is_invalid() {
    let fixture = Fixture::new().await;
    let api = fixture.api::<ConfigMap>();
    api.create(&post(), &config_map("a", "1")).await.unwrap();
    let patch = json!({"metadata": {"uid": "another"}});
    let refused = refused(api.patch("a", &PatchParams::default(), &Patch::Merge(&patch)).await);
    assert_eq!((refused.code, refused.reason.as_str()), (422, "Invalid"));
    let fields: Vec<_> = refused.details.iter().flat_map(|details| &details.causes).collect();
    assert_eq!(fields[0].field, "metadata.uid");
    fixture.end().await;
}

#[tokio::test]
async fn selectors_and_pages() {
    let fixture = Fixture::new().await;
    let api = fixture.api::<ConfigMap>();
    for name in ["a", "b", "c", "d", "e"] {
        api.create(&post(), &config_map(name, "1")).await.unwrap();
    }
    let names = |list: kube::core::ObjectList<ConfigMap>| {
        list.items
            .iter()
            .map(|item| item.name_any())
            .filter(|name| name != "kube-root-ca.crt")
            .collect::<Vec<_>>()
    };
    let labels = ListParams::default().labels("app in (a,c),app!=c");
    assert_eq!(names(api.list(&labels).await.unwrap()), ["a"]);
    let fields = ListParams::default().fields("metadata.name=d");
    assert_eq!(names(api.list(&fields).await.unwrap()), ["d"]);
    let wrong = refused(api.list(&ListParams::default().fields("data.key=1")).await);
    assert_eq!(wrong.code, 400);

    let selected = ListParams::default().labels("app").limit(2);
    let first = api.list(&selected).await.unwrap();
    let token = first.metadata.continue_.clone().unwrap();
    assert_eq!(names(first), ["a", "b"]);
    // All pages show the same state.
    api.delete("c", &DeleteParams::default()).await.unwrap();
    let second = api.list(&selected.clone().continue_token(&token)).await.unwrap();
    let token = second.metadata.continue_.clone().unwrap();
    assert_eq!(names(second), ["c", "d"]);
    let third = api.list(&selected.clone().continue_token(&token)).await.unwrap();
    assert_eq!(third.metadata.continue_.clone().unwrap_or_default(), "");
    assert_eq!(names(third), ["e"]);
    if let Some(fake) = &fixture.fake {
        fake.compact();
        let gone = refused(api.list(&selected.continue_token(&token)).await);
        assert_eq!((gone.code, gone.reason.as_str()), (410, "Expired"));
    }
    fixture.end().await;
}

#[tokio::test]
async fn unknown_fields_are_refused_if_strict_and_dropped_otherwise() {
    let fixture = Fixture::new().await;
    let api: Api<DynamicObject> = Api::namespaced_with(
        fixture.client.clone(),
        &fixture.namespace,
        &ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "PersistentVolumeClaim")),
    );
    let claim = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
            "spec": {
                "acessModes": ["ReadWriteOnce"], "accessModes": ["ReadWriteOnce"], "storageClassName": "none",
                "resources": {"requests": {"storage": "1Gi"}},
            },
        })
    };
    let dropped = api.create(&post(), &typed(claim("a"))).await.unwrap();
    assert!(dropped.data["spec"].get("acessModes").is_none());
    let strict =
        PatchParams { field_validation: Some(kube::api::ValidationDirective::Strict), ..Default::default() };
    let patch = json!({"spec": {"acessModes": ["ReadWriteOnce"]}});
    let strict = refused(api.patch("a", &strict, &Patch::Merge(&patch)).await);
    assert_eq!((strict.code, strict.reason.as_str()), (422, "Invalid"));
    assert!(strict.message.contains("unknown field \"spec.acessModes\""), "{strict}");
    // An apply always refuses them, regardless of the validation level.
    let applied = refused(api.patch("b", &PatchParams::apply("test"), &Patch::Apply(&claim("b"))).await);
    assert_eq!(applied.code, 500);
    assert!(applied.message.contains(".spec.acessModes: field not declared in schema"), "{applied}");
    fixture.end().await;
}

#[tokio::test]
async fn secrets_are_validated() {
    let fixture = Fixture::new().await;
    let api = fixture.api::<Secret>();
    let secret = |name: &str, kind: &str, data: serde_json::Value| -> Secret {
        typed(json!({"metadata": {"name": name}, "type": kind, "stringData": data}))
    };
    const JSON: &str = "kubernetes.io/dockerconfigjson";
    let missing = refused(api.create(&post(), &secret("a", JSON, json!({}))).await);
    assert_eq!(missing.code, 422);
    assert!(missing.message.contains("data[.dockerconfigjson]: Required value"), "{missing}");
    let broken = refused(api.create(&post(), &secret("a", JSON, json!({".dockerconfigjson": "{not"}))).await);
    assert_eq!(broken.code, 422);
    assert!(broken.message.contains("invalid character"), "{broken}");
    let odd = secret("a", JSON, json!({".dockerconfigjson": "{\"auths\":[1]}"}));
    let odd = api.create(&post(), &odd).await.unwrap();
    assert_eq!(odd.data.unwrap()[".dockerconfigjson"].0, b"{\"auths\":[1]}");

    let mut fixed = secret("b", "Opaque", json!({"key": "1"}));
    fixed.immutable = Some(true);
    api.create(&post(), &fixed).await.unwrap();
    let patch = json!({"stringData": {"key": "2"}});
    let refused = refused(api.patch("b", &PatchParams::default(), &Patch::Merge(&patch)).await);
    assert_eq!(refused.code, 422);
    assert!(refused.message.contains("field is immutable when `immutable` is set"), "{refused}");
    fixture.end().await;
}

fn job(name: &str, spec: serde_json::Value) -> Job {
    let mut job = json!({"metadata": {"name": name}, "spec": {
        "suspend": true,
        "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "builder", "image": "larder:1"}]}},
    }});
    json_patch::merge(&mut job["spec"], &spec);
    typed(job)
}

#[tokio::test]
async fn jobs_are_validated() {
    let fixture = Fixture::new().await;
    let api = fixture.api::<Job>();
    let made = api.create(&post(), &job("a", json!({}))).await.unwrap();
    let (uid, spec) = (made.uid().unwrap(), made.spec.unwrap());
    assert_eq!((spec.backoff_limit, spec.parallelism, spec.completions), (Some(6), Some(1), Some(1)));
    let labels = spec.template.metadata.unwrap().labels.unwrap();
    assert_eq!(labels["batch.kubernetes.io/controller-uid"], uid);
    assert_eq!(labels["batch.kubernetes.io/job-name"], "a");
    assert_eq!(made.metadata.generation, Some(1));

    let long = refused(api.create(&post(), &job(&"x".repeat(64), json!({}))).await);
    assert_eq!(long.code, 422);
    let policy = json!({"podFailurePolicy": {"rules": [
        {"action": "FailJob", "onExitCodes": {"containerName": "builder", "operator": "In", "values": [64, 65]}},
    ]}});
    let mut restarting = policy.clone();
    restarting["template"] = json!({"spec": {"restartPolicy": "OnFailure"}});
    let restarting = refused(api.create(&post(), &job("b", restarting)).await);
    assert_eq!(restarting.code, 422);
    assert!(restarting.message.contains("only \"Never\" is supported"), "{restarting}");
    let made = api.create(&post(), &job("b", policy)).await.unwrap();
    assert_eq!(made.spec.unwrap().pod_replacement_policy.as_deref(), Some("Failed"));

    let image =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "builder", "image": "larder:2"}]}}}});
    let fixed = refused(api.patch("a", &PatchParams::default(), &Patch::Merge(&image)).await);
    assert_eq!(fixed.code, 422);
    assert!(fixed.message.contains("field is immutable"), "{fixed}");
    // The status is a subresource: a write to the main resource does not change it.
    let status = json!({"spec": {"backoffLimit": 2}, "status": {"active": 7}});
    let patched = api.patch("a", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    assert_eq!(patched.status.unwrap_or_default().active, None);
    assert_eq!(patched.metadata.generation, Some(2));
    fixture.end().await;
}

#[tokio::test]
async fn a_source_in_another_namespace_is_dropped_silently() {
    let fixture = Fixture::new().await;
    let api = fixture.api::<PersistentVolumeClaim>();
    let claim: PersistentVolumeClaim = typed(json!({"metadata": {"name": "a"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "storageClassName": "none", "resources": {"requests": {"storage": "1Gi"}},
        "dataSourceRef": {
            "apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "x", "namespace": "other",
        },
    }}));
    let made = api.create(&post(), &claim).await.unwrap();
    assert!(made.finalizers().contains(&"kubernetes.io/pvc-protection".to_owned()));
    let spec = made.spec.unwrap();
    assert_eq!((spec.data_source, spec.data_source_ref), (None, None));
    let change = json!({"spec": {"storageClassName": "other"}});
    let fixed = refused(api.patch("a", &PatchParams::default(), &Patch::Merge(&change)).await);
    assert_eq!(fixed.code, 422);
    assert!(fixed.message.contains("spec is immutable after creation"), "{fixed}");
    fixture.end().await;
}

#[tokio::test]
async fn leases_are_locked_by_their_version() {
    let fixture = Fixture::new().await;
    let api = fixture.api::<Lease>();
    let lease = |holder: &str| -> Lease {
        typed(
            json!({"metadata": {"name": "larder"}, "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15}}),
        )
    };
    let first = api.create(&post(), &lease("a")).await.unwrap();
    let blind = refused(api.replace("larder", &post(), &lease("b")).await);
    assert_eq!(blind.code, 422);
    assert!(blind.message.contains("must be specified for an update"), "{blind}");
    let mut taken = first.clone();
    taken.spec.as_mut().unwrap().holder_identity = Some("b".to_owned());
    api.replace("larder", &post(), &taken).await.unwrap();
    assert_eq!(refused(api.replace("larder", &post(), &first).await).code, 409);
    fixture.end().await;
}

#[tokio::test]
async fn nothing_is_created_without_a_namespace() {
    let fixture = Fixture::new().await;
    let api: Api<ConfigMap> = Api::namespaced(fixture.client.clone(), "no-such-namespace");
    let refused = refused(api.create(&post(), &config_map("a", "1")).await);
    assert_eq!((refused.code, refused.message.as_str()), (404, "namespaces \"no-such-namespace\" not found"));
    fixture.end().await;
}

#[tokio::test]
async fn events_are_short() {
    let fixture = Fixture::new().await;
    let api = fixture.api::<Event>();
    let event = |note: &str| -> Event {
        typed(json!({
            "metadata": {"name": "a"}, "eventTime": "2026-01-01T00:00:00.000000Z", "reason": "Failed", "note": note,
            "action": "Build", "type": "Warning", "reportingController": "larder.dev/test", "reportingInstance": "test",
            "regarding": {"apiVersion": "v1", "kind": "Secret", "name": "a", "namespace": fixture.namespace},
        }))
    };
    let long = refused(api.create(&post(), &event(&"x".repeat(1025))).await);
    assert_eq!(long.code, 422);
    assert!(long.message.contains("can have at most 1024 characters"), "{long}");
    api.create(&post(), &event(&"x".repeat(1024))).await.unwrap();
    fixture.end().await;
}

#[tokio::test]
async fn policies_have_valid_networks() {
    let fixture = Fixture::new().await;
    let api = fixture.api::<NetworkPolicy>();
    let policy = |cidr: &str, except: &str| -> NetworkPolicy {
        typed(json!({"metadata": {"name": "a"}, "spec": {"podSelector": {}, "egress": [
            {"to": [{"ipBlock": {"cidr": cidr, "except": [except]}}]},
        ]}}))
    };
    for (cidr, except, expected) in [
        ("::/0", "::ffff:0:0/96", "must not have an IPv4-mapped IPv6 address"),
        ("::/0", "::ffff:0:0/96", "must be a strict subset of `cidr`"),
        ("::/0", "127.0.0.0/8", "must be a strict subset of `cidr`"),
        ("10.0.0.0/8", "10.0.0.0/8", "must be a strict subset of `cidr`"),
        ("0.0.0.0/0", "10.0.0.1/8", "must not have bits set beyond the prefix length"),
        ("0.0.0.0/0", "10.0.0.0", "must be a valid CIDR value"),
    ] {
        let refused = refused(api.create(&post(), &policy(cidr, except)).await);
        assert_eq!(refused.code, 422);
        assert!(
            refused
                .message
                .contains(&format!("spec.egress[0].to[0].ipBlock.except[0]: Invalid value: \"{except}\""))
        );
        assert!(refused.message.contains(expected), "{refused}");
    }
    api.create(&post(), &policy("::/0", "64:ff9b::/96")).await.unwrap();
    fixture.end().await;
}

#[tokio::test]
async fn a_pod_needs_its_account() {
    let fixture = Fixture::new().await;
    let pod: Pod = typed(json!({"metadata": {"name": "a"}, "spec": {
        "serviceAccountName": "builder", "containers": [{"name": "builder", "image": "larder:1"}],
    }}));
    let refused = refused(fixture.api::<Pod>().create(&post(), &pod).await);
    assert_eq!(refused.code, 403);
    assert!(refused.message.contains("serviceaccount \"builder\" not found"), "{refused}");
    fixture.end().await;
}

#[tokio::test]
async fn object_sizes_are_limited() {
    let fixture = Fixture::new().await;
    let api = fixture.api::<ConfigMap>();
    let large = refused(api.create(&post(), &config_map("a", &"x".repeat((1 << 20) + 1))).await);
    assert_eq!(large.code, 422);
    api.create(&post(), &config_map("a", &"x".repeat(1 << 20))).await.unwrap();
    fixture.end().await;
}
