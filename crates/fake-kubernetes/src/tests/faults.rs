//! Tests of deliberate faults.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;

use super::super::{Cluster, Effect, Fault};
use super::{refused, typed};

#[tokio::test]
async fn faults_affect_matching_requests() {
    let cluster = Cluster::new();
    let api: Api<ConfigMap> = Api::namespaced(cluster.admin(), "default");
    let map: ConfigMap = typed(json!({"metadata": {"name": "a"}}));
    let post = PostParams::default();
    for (harm, code) in [(Effect::Conflict, 409), (Effect::Gone, 410), (Effect::Broken, 500)] {
        cluster.fault(Fault::once("create", "configmaps", harm));
        assert_eq!(refused(api.create(&post, &map).await).code, code);
    }
    cluster.fault(Fault::once("get", "configmaps", Effect::Broken).after(1));
    // The client itself retries after 429, as Retry-After requires.
    cluster.fault(Fault::once("create", "configmaps", Effect::Busy(1)));
    let begun = Instant::now();
    api.create(&post, &map).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    api.get("a").await.unwrap();
    assert_eq!(refused(api.get("a").await).code, 500);
    api.get("a").await.unwrap();

    cluster.fault(Fault::once("create", "configmaps", Effect::NoAnswer));
    let other: ConfigMap = typed(json!({"metadata": {"name": "b"}}));
    assert!(api.create(&post, &other).await.is_err());
    assert!(cluster.peek("", "configmaps", "default", "b").is_some());
    cluster.fault(Fault::once("create", "configmaps", Effect::Refused));
    let third: ConfigMap = typed(json!({"metadata": {"name": "c"}}));
    assert!(api.create(&post, &third).await.is_err());
    assert!(cluster.peek("", "configmaps", "default", "c").is_none());
    let gets = cluster.seen().iter().filter(|seen| seen.verb == "get" && seen.name == "a").count();
    assert_eq!(gets, 3);
}
