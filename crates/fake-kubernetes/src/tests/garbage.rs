//! Tests of owners and dependents, and of namespaces and their content.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::{Fixture, namespace_of, typed, until};

async fn family(fixture: &Fixture, blocks: bool) -> Job {
    let job: Job = typed(json!({"metadata": {"name": "owner"}, "spec": {
        "suspend": true,
        "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "builder", "image": "larder:1"}]}},
    }}));
    let job = fixture.api::<Job>().create(&PostParams::default(), &job).await.unwrap();
    let secret: Secret = typed(json!({"metadata": {"name": "owned", "ownerReferences": [{
        "apiVersion": "batch/v1", "kind": "Job", "name": "owner", "uid": job.uid(), "controller": true,
        "blockOwnerDeletion": blocks,
    }]}}));
    fixture.api::<Secret>().create(&PostParams::default(), &secret).await.unwrap();
    job
}

#[tokio::test]
async fn dependents_are_deleted_after_their_owner() {
    let fixture = Fixture::new().await;
    for parameters in [DeleteParams::background(), DeleteParams::foreground()] {
        for blocks in [false, true] {
            family(&fixture, blocks).await;
            fixture.api::<Job>().delete("owner", &parameters).await.unwrap();
            until("owner and owned are gone", async || {
                let owner = fixture.api::<Job>().get_opt("owner").await.unwrap();
                let owned = fixture.api::<Secret>().get_opt("owned").await.unwrap();
                (owner.is_none() && owned.is_none()).then_some(())
            })
            .await;
        }
    }
    fixture.end().await;
}

#[tokio::test]
async fn foreground_deletion_waits_for_blocking_dependents() {
    let fixture = Fixture::new().await;
    family(&fixture, true).await;
    let hold =
        |on: bool| Patch::Merge(json!({"metadata": {"finalizers": on.then_some(["larder.dev/hold"])}}));
    let params = PatchParams::default();
    let secrets = fixture.api::<Secret>();
    secrets.patch("owned", &params, &hold(true)).await.unwrap();
    let jobs = fixture.api::<Job>();
    let marked = jobs.delete("owner", &DeleteParams::foreground()).await.unwrap().left().unwrap();
    assert_eq!(marked.finalizers(), ["foregroundDeletion"]);
    until("the owned is marked", async || secrets.get("owned").await.unwrap().metadata.deletion_timestamp)
        .await;
    assert!(jobs.get_opt("owner").await.unwrap().is_some());
    secrets.patch("owned", &params, &hold(false)).await.unwrap();
    until("the owner is gone", async || jobs.get_opt("owner").await.unwrap().is_none().then_some(())).await;
    fixture.end().await;
}

#[tokio::test]
async fn orphans_stay() {
    let fixture = Fixture::new().await;
    family(&fixture, true).await;
    fixture.api::<Job>().delete("owner", &DeleteParams::orphan()).await.unwrap();
    until("the owner is gone", async || {
        fixture.api::<Job>().get_opt("owner").await.unwrap().is_none().then_some(())
    })
    .await;
    let left = fixture.api::<Secret>().get("owned").await.unwrap();
    assert!(left.owner_references().is_empty() && left.metadata.deletion_timestamp.is_none());
    fixture.end().await;
}

#[tokio::test]
async fn an_owner_in_another_namespace_does_not_count() {
    let fixture = Fixture::new().await;
    let job = family(&fixture, false).await;
    let other = format!("{}-b", fixture.namespace);
    fixture.namespaces().create(&PostParams::default(), &namespace_of(&other)).await.unwrap();
    let api: Api<ConfigMap> = Api::namespaced(fixture.client.clone(), &other);
    let map: ConfigMap = typed(json!({"metadata": {"name": "owned", "ownerReferences": [{
        "apiVersion": "batch/v1", "kind": "Job", "name": "owner", "uid": job.uid(),
    }]}}));
    api.create(&PostParams::default(), &map).await.unwrap();
    until("it is collected", async || api.get_opt("owned").await.unwrap().is_none().then_some(())).await;
    fixture.namespaces().delete(&other, &DeleteParams::default()).await.unwrap();
    until("the namespace is gone", async || {
        fixture.namespaces().get_opt(&other).await.unwrap().is_none().then_some(())
    })
    .await;
    fixture.end().await;
}
