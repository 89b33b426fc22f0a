//! Tests of watches through the watcher of `kube::runtime`.

use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio::time::timeout;

use super::super::{Effect, Fault};
use super::{Fixture, typed};

fn config_map(name: &str, label: &str) -> ConfigMap {
    typed(json!({"metadata": {"name": name, "labels": {"app": label}}}))
}

async fn next<T>(stream: &mut (impl futures_util::Stream<Item = T> + Unpin)) -> T {
    timeout(Duration::from_secs(10), stream.next()).await.expect("an event in time").expect("an open stream")
}

/// Returns the next event as text and ignores temporary errors.
async fn next_event<S>(stream: &mut S) -> String
where
    S: futures_util::Stream<Item = watcher::Result<Event<ConfigMap>>> + Unpin,
{
    loop {
        if let Ok(event) = next(stream).await {
            return event.to_string();
        }
    }
}

async fn watched(config: watcher::Config) {
    let fixture = Fixture::new().await;
    let api = fixture.api::<ConfigMap>();
    api.create(&PostParams::default(), &config_map("a", "x")).await.unwrap();
    api.create(&PostParams::default(), &config_map("other", "y")).await.unwrap();
    let mut events = pin!(watcher(api.clone(), config.labels("app=x")));
    assert_eq!(next_event(&mut events).await, "Init");
    assert_eq!(next_event(&mut events).await, "InitApply(a)");
    assert_eq!(next_event(&mut events).await, "InitDone");
    api.create(&PostParams::default(), &config_map("b", "x")).await.unwrap();
    assert_eq!(next_event(&mut events).await, "Apply(b)");
    // An object that starts to match is new; one that stops matching is deleted.
    let label = |label: &str| Patch::Merge(json!({"metadata": {"labels": {"app": label}}}));
    api.patch("other", &PatchParams::default(), &label("x")).await.unwrap();
    assert_eq!(next_event(&mut events).await, "Apply(other)");
    api.patch("other", &PatchParams::default(), &label("y")).await.unwrap();
    assert_eq!(next_event(&mut events).await, "Delete(other)");
    api.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(next_event(&mut events).await, "Delete(a)");
    fixture.end().await;
}

#[tokio::test]
async fn a_watcher_lists_and_watches() {
    watched(watcher::Config::default()).await;
}

#[tokio::test]
async fn a_watcher_streams_its_list() {
    watched(watcher::Config::default().streaming_lists()).await;
}

#[tokio::test]
async fn a_cut_watch_continues_and_an_expired_one_lists_again() {
    let fixture = Fixture::new().await;
    let Some(fake) = &fixture.fake else { return fixture.end().await };
    let api = fixture.api::<ConfigMap>();
    let mut events = pin!(watcher(api.clone(), watcher::Config::default()));
    assert_eq!(next_event(&mut events).await, "Init");
    assert_eq!(next_event(&mut events).await, "InitDone");
    api.create(&PostParams::default(), &config_map("a", "x")).await.unwrap();
    assert_eq!(next_event(&mut events).await, "Apply(a)");
    fake.cut_watches();
    api.create(&PostParams::default(), &config_map("b", "x")).await.unwrap();
    assert_eq!(next_event(&mut events).await, "Apply(b)");
    fake.expire_watches();
    assert_eq!(next_event(&mut events).await, "Init");
    assert_eq!(next_event(&mut events).await, "InitApply(a)");
    assert_eq!(next_event(&mut events).await, "InitApply(b)");
    assert_eq!(next_event(&mut events).await, "InitDone");
    // The connection ends in the middle of a line.
    fake.fault(Fault::once("watch", "configmaps", Effect::CutAfter(1)));
    fake.cut_watches();
    api.create(&PostParams::default(), &config_map("c", "x")).await.unwrap();
    assert_eq!(next_event(&mut events).await, "Apply(c)");
    fixture.end().await;
}

#[tokio::test]
async fn an_old_version_is_gone_after_a_compaction() {
    let fixture = Fixture::new().await;
    let Some(fake) = &fixture.fake else { return fixture.end().await };
    let api = fixture.api::<ConfigMap>();
    let made = api.create(&PostParams::default(), &config_map("a", "x")).await.unwrap();
    api.delete("a", &DeleteParams::default()).await.unwrap();
    let version = made.resource_version().unwrap();
    let mut before = pin!(api.watch(&WatchParams::default(), &version).await.unwrap());
    assert!(matches!(next(&mut before).await, Ok(WatchEvent::Deleted(_))));
    fake.compact();
    let mut after = pin!(api.watch(&WatchParams::default(), &version).await.unwrap());
    match next(&mut after).await {
        Ok(WatchEvent::Error(status)) => assert_eq!((status.code, status.reason.as_str()), (410, "Expired")),
        other => panic!("not expired: {other:?}"),
    }
    fixture.end().await;
}

#[tokio::test]
async fn bookmarks_report_the_version_of_a_watch() {
    let fixture = Fixture::new().await;
    if fixture.fake.is_none() {
        // A real server sends one bookmark per minute.
        return fixture.end().await;
    }
    let api = fixture.api::<ConfigMap>();
    let first = api.create(&PostParams::default(), &config_map("a", "x")).await.unwrap();
    let elsewhere: Api<ConfigMap> = Api::namespaced(fixture.client.clone(), "default");
    let selected = WatchParams::default().labels("app=none");
    let mut watch = pin!(api.watch(&selected, &first.resource_version().unwrap()).await.unwrap());
    let last = elsewhere.create(&PostParams::default(), &config_map("b", "x")).await.unwrap();
    loop {
        match next(&mut watch).await {
            Ok(WatchEvent::Bookmark(mark))
                if mark.metadata.resource_version == last.resource_version().unwrap() =>
            {
                break;
            }
            Ok(WatchEvent::Bookmark(_)) => {}
            other => panic!("not a bookmark: {other:?}"),
        }
    }
    fixture.end().await;
}

#[tokio::test]
async fn a_silent_watch_sends_nothing_and_stays_open() {
    let fixture = Fixture::new().await;
    let Some(fake) = &fixture.fake else { return fixture.end().await };
    let api = fixture.api::<ConfigMap>();
    fake.fault(Fault::once("watch", "configmaps", Effect::Silent));
    let mut events = pin!(watcher(api.clone(), watcher::Config::default()));
    assert_eq!(next_event(&mut events).await, "Init");
    assert_eq!(next_event(&mut events).await, "InitDone");
    api.create(&PostParams::default(), &config_map("a", "x")).await.unwrap();
    timeout(Duration::from_secs(1), events.next()).await.unwrap_err();
    // No event is lost after a new connection.
    fake.cut_watches();
    assert_eq!(next_event(&mut events).await, "Apply(a)");
    fixture.end().await;
}
