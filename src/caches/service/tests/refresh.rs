//! Refreshes of image caches.

use super::*;

#[tokio::test]
async fn a_refresh_replaces_the_content() {
    let host = Host::new(ROOM).await;
    let before = host.available("web").await;
    host.next(Act::Hang);
    let record = host.service.refresh(&team(), before.id).await.unwrap();
    assert_eq!((record.status, record.is_refreshing(), record.reserved_gib()), (Status::Available, true, 40));
    let twice = host.service.refresh(&team(), before.id).await.unwrap_err();
    assert!(matches!(twice, Error::NotRefreshable { busy: true, .. }), "{twice:?}");
    host.until(before.id, |_| host.started() == 2).await;
    let record = host.service.cancel(&team(), before.id).await.unwrap();
    assert_eq!(record.message.as_deref(), Some("the refresh failed: cancelled by request"));
    assert_eq!((record.status, &record.content), (Status::Available, &before.content));
    host.until(before.id, |_| host.is_idle()).await;
    host.left(&[format!("{}.1", before.id)]).await;

    host.service.refresh(&team(), before.id).await.unwrap();
    let after = host.until(before.id, |record| !record.is_refreshing()).await;
    assert_eq!((after.content.unwrap().generation, after.message), (3, None));
    host.left(&[format!("{}.3", before.id)]).await;
}

#[tokio::test]
async fn a_refresh_waits_for_the_previous_builder() {
    let host = Host::new("[caches]\ncapacity = \"1000GiB\"\nmax_concurrent_builds = 4\n").await;
    let record = host.available("web").await;
    host.next(Act::Linger);
    host.service.refresh(&team(), record.id).await.unwrap();
    host.until(record.id, |_| host.started() == 2).await;
    host.service.cancel(&team(), record.id).await.unwrap();
    host.service.refresh(&team(), record.id).await.unwrap();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(host.started(), 2, "the previous builder has not ended");
    }
    host.runner.leave.notify_one();
    let after = host.until(record.id, |record| !record.is_refreshing()).await;
    assert_eq!((host.started(), after.content.unwrap().generation), (3, 3));
    host.until(record.id, |_| host.is_idle()).await;
}

#[tokio::test]
async fn a_refresh_needs_room_for_two() {
    let host = Host::new("[caches]\ncapacity = \"59GiB\"\n").await;
    let record = host.available("web").await;
    host.service.create(&team(), Spec { size_gib: 20, ..spec("other") }, None).await.unwrap();
    let full = host.service.refresh(&team(), record.id).await.unwrap_err();
    assert!(
        matches!(full, Error::NoRoomToRefresh { need_gib: 20, free_gib: 19, capacity_gib: 59 }),
        "{full:?}"
    );
    let full = host.service.create(&team(), spec("third"), None).await.unwrap_err();
    assert!(matches!(full, Error::Store(StoreError::Full { .. })), "{full:?}");
}
