//! Concurrent requests, and clients that disconnect before the answer.

use futures_util::future::join_all;

use super::*;

/// Starts a request and drops it before its answer.
async fn hang_up<T>(request: impl Future<Output = T>) {
    tokio::pin!(request);
    assert!(futures_util::poll!(request.as_mut()).is_pending(), "it was answered at once");
}

#[tokio::test]
async fn a_request_of_a_disconnected_client_is_completed() {
    let host = Host::new(ROOM).await;
    hang_up(host.service.create(&team(), spec("web"), None)).await;
    let id = loop {
        if let Some(record) = host.service.list(&team(), None).await.unwrap().first() {
            break record.id;
        }
        // A list without changes is answered without yielding.
        tokio::task::yield_now().await;
    };
    host.until(id, |record| record.status == Status::Available).await;
    hang_up(host.service.refresh(&team(), id)).await;
    let refreshed = |record: &Record| record.content.as_ref().is_some_and(|content| content.generation == 2);
    host.until(id, refreshed).await;

    host.next(Act::Hang);
    host.service.refresh(&team(), id).await.unwrap();
    host.until(id, |_| host.started() == 3).await;
    hang_up(host.service.cancel(&team(), id)).await;
    host.until(id, |record| !record.is_refreshing() && host.is_idle()).await;

    host.next(Act::Hang);
    host.service.refresh(&team(), id).await.unwrap();
    host.until(id, |_| host.started() == 4).await;
    hang_up(host.service.delete(&team(), id)).await;
    host.gone(id).await;
    assert!(host.volumes().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cancel_does_not_affect_a_later_order() {
    let host = Host::new(ROOM).await;
    let id = host.available("web").await.id;
    for _ in 0..30 {
        let both = |_| async {
            let _ = host.service.refresh(&team(), id).await;
            let _ = host.service.cancel(&team(), id).await;
        };
        join_all((0..4).map(both)).await;
        // Whichever request came last, no work is left.
        host.service.refresh(&team(), id).await.ok();
        host.until(id, |record| !record.is_refreshing()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_cleanups_do_not_conflict() {
    let host = Host::new("[caches]\ncapacity = \"1000GiB\"\n").await;
    let mut ids = Vec::new();
    for number in 0..12 {
        ids.push(host.available(&format!("web-{number}")).await.id);
    }
    let looks = (0..8).map(|_| async {
        for _ in 0..10 {
            host.service.0.janitor.clean_up().await.unwrap();
        }
    });
    let deletions = ids.iter().map(|id| async { host.service.delete(&team(), *id).await.map(drop) });
    let (_, deleted) = tokio::join!(join_all(looks), join_all(deletions));
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    for id in ids {
        host.gone(id).await;
    }
    assert!(host.volumes().is_empty());
}

#[tokio::test]
async fn retention_that_ends_during_a_refresh() {
    let host = Host::new(ROOM).await;
    let record = host.service.create(&team(), Spec { retention_days: 1, ..spec("web") }, None).await.unwrap();
    let id = record.id;
    host.until(id, |record| record.status == Status::Available).await;
    host.next(Act::Hang);
    host.service.refresh(&team(), id).await.unwrap();
    host.until(id, |_| host.started() == 2).await;
    host.clock.pass(DAY);
    host.service.0.janitor.clean_up().await.unwrap();
    let expired = host.until(id, |record| record.status == Status::Unavailable).await;
    assert_eq!((&expired.work, expired.reserved_gib()), (&None, 20));
    host.until(id, |_| host.is_idle()).await;
    // The unfinished volume is deleted; the served one is kept for its grace period.
    host.left(&[format!("{id}.1")]).await;
    host.clock.pass(Duration::from_secs(3600));
    host.service.0.janitor.clean_up().await.unwrap();
    host.gone(id).await;
    assert!(host.volumes().is_empty());
}

#[tokio::test]
async fn a_failure_after_a_cancel_is_not_reported() {
    let host = Host::new(&format!("{ROOM}build_retry_pause_seconds = 0\n")).await;
    host.next(Act::FailOnStop);
    let record = host.service.create(&team(), spec("web"), None).await.unwrap();
    host.until(record.id, |_| host.started() == 1).await;
    host.service.cancel(&team(), record.id).await.unwrap();
    host.until(record.id, |_| host.is_idle()).await;
    let record = host.service.get(&team(), record.id).await.unwrap();
    assert_eq!(record.message.as_deref(), Some("cancelled by request"));
    assert_eq!(record.events.back().unwrap().message, "cancelled by request");
}

#[tokio::test]
async fn a_panic_costs_one_attempt() {
    let host = Host::new(ROOM).await;
    host.next(Act::Panic);
    let record = host.service.create(&team(), spec("web"), None).await.unwrap();
    host.until(record.id, |_| host.started() == 1 && host.is_idle()).await;
    // The only builder is free again, and the record can be deleted.
    host.available("other").await;
    host.service.delete(&team(), record.id).await.unwrap();
    host.gone(record.id).await;
}

#[tokio::test]
async fn a_start_before_the_time_of_the_last_run_holds_expiry() {
    const MINUTE: Duration = Duration::from_secs(60);
    let host = Host::new(ROOM).await;
    let record = host.service.create(&team(), Spec { retention_days: 1, ..spec("web") }, None).await.unwrap();
    host.until(record.id, |record| record.status == Status::Available).await;
    host.clock.pass(DAY - 2 * MINUTE);
    host.service.0.janitor.clean_up().await.unwrap();
    host.clock.set_back(MINUTE);
    let host = host.restart().await;
    for (passed, status) in [(10, Status::Available), (49, Status::Available), (1, Status::Unavailable)] {
        host.clock.pass(passed * MINUTE);
        host.service.0.janitor.clean_up().await.unwrap();
        assert_eq!(host.service.get(&team(), record.id).await.unwrap().status, status, "{passed}");
    }
}
