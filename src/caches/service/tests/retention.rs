//! The end of image caches, and restarts.

use super::*;

#[tokio::test]
async fn retention_ends_in_two_steps_and_only_with_a_trusted_clock() {
    let host = Host::new(ROOM).await;
    let record = host.service.create(&team(), Spec { retention_days: 2, ..spec("web") }, None).await.unwrap();
    let id = record.id;
    host.until(id, |record| record.status == Status::Available).await;
    host.clock.set_forward(3 * DAY);
    host.service.0.janitor.clean_up().await.unwrap();
    assert_eq!(host.service.get(&team(), id).await.unwrap().status, Status::Available, "the clock jumped");
    host.clock.set_back(3 * DAY);
    host.service.0.janitor.clean_up().await.unwrap();
    host.clock.pass(2 * DAY - Duration::from_secs(1));
    host.service.0.janitor.clean_up().await.unwrap();
    assert_eq!(host.service.get(&team(), id).await.unwrap().status, Status::Available);
    host.clock.pass(Duration::from_secs(1));
    host.service.0.janitor.clean_up().await.unwrap();
    let expired = host.service.get(&team(), id).await.unwrap();
    assert_eq!(expired.status, Status::Unavailable);
    assert_eq!(expired.message.as_deref(), Some("expired after 2 days"));
    assert_eq!(host.volumes().len(), 1, "the volume is still usable during the grace period");
    host.clock.pass(Duration::from_secs(3600));
    host.service.0.janitor.clean_up().await.unwrap();
    host.gone(id).await;
    assert!(host.volumes().is_empty());
}

#[tokio::test]
async fn generations_are_kept_while_in_use() {
    let host = Host::new(ROOM).await;
    let id = host.available("web").await.id;
    let state = fs::canonicalize(host.dir.path()).unwrap();
    let first = state.join(format!("tenants/team/volumes/{id}.1"));
    let attachments = Attachments::new(state.join("attached"));
    let (at, there) = (Path::new("/icv"), Path::new("/mnt/icv"));
    attachments.note(&Attachment::new(&first, at, host.clock.now())).unwrap();
    host.service.refresh(&team(), id).await.unwrap();
    host.until(id, |record| record.content.as_ref().is_some_and(|content| content.generation == 2)).await;
    host.service.0.janitor.clean_up().await.unwrap();

    let snapshots = host.service.snapshots(&team(), id, false).await.unwrap();
    let snapshots: Vec<_> =
        snapshots.iter().map(|s| (s.generation, s.served, s.in_use, s.path.is_some())).collect();
    assert_eq!(snapshots, [(1, false, true, false), (2, true, false, false)]);
    let error = host.service.snapshots(&"other".parse().unwrap(), id, false).await.unwrap_err();
    assert!(matches!(error, Error::NotFound(_)));

    // A deletion waits until no generation is in use.
    attachments.note(&Attachment::new(&first, there, host.clock.now())).unwrap();
    attachments.forget(at).unwrap();
    host.service.delete(&team(), id).await.unwrap();
    host.service.0.janitor.clean_up().await.unwrap();
    assert_eq!(host.service.get(&team(), id).await.unwrap().status, Status::Deleting);
    host.left(&[format!("{id}.1")]).await;
    attachments.forget(there).unwrap();
    host.service.0.janitor.clean_up().await.unwrap();
    host.gone(id).await;
    assert!(host.volumes().is_empty());
}

#[tokio::test]
async fn a_restart_resumes_unfinished_work() {
    let host = Host::new(ROOM).await;
    let kept = host.available("kept").await;
    let lost = host.available("lost").await;
    host.next(Act::Hang);
    let begun = host.service.create(&team(), spec("begun"), None).await.unwrap();
    host.until(begun.id, |_| host.started() == 3).await;
    let volumes = host.dir.path().join("tenants/team/volumes");
    fs::remove_file(volumes.join(format!("{}.1/cache.json", lost.id))).unwrap();
    fs::create_dir(volumes.join(format!("{}.1", CacheId::random()))).unwrap();
    fs::create_dir(volumes.join("lost+found")).unwrap();
    fs::create_dir(host.dir.path().join("trash/x")).unwrap();

    let host = host.restart().await;
    let resumed = host.until(begun.id, |record| record.status == Status::Available).await;
    assert_eq!(resumed.content.unwrap().generation, 1, "the same volume is resumed");
    let lost = host.service.get(&team(), lost.id).await.unwrap();
    assert_eq!(lost.status, Status::Unavailable);
    assert!(lost.message.unwrap().contains("is missing"));
    assert_eq!(host.service.get(&team(), kept.id).await.unwrap(), kept);
    let mut left = host.volumes();
    left.retain(|name| name != "lost+found");
    let mut wanted = [format!("{}.1", kept.id), format!("{}.1", begun.id)];
    wanted.sort();
    // A record keeps its volume, damaged or not, until it is deleted.
    left.retain(|name| *name != format!("{}.1", lost.id));
    assert_eq!(left, wanted);
    let trash = host.dir.path().join("trash");
    host.until(kept.id, |_| fs::read_dir(&trash).unwrap().next().is_none()).await;
}

#[tokio::test]
async fn a_missing_volume_makes_a_cache_unavailable_until_it_is_present_again() {
    let host = Host::new(&format!("{ROOM}build_retries = 0\n")).await;
    let record = host.service.create(&team(), Spec { retention_days: 1, ..spec("web") }, None).await.unwrap();
    let id = record.id;
    host.until(id, |record| record.status == Status::Available).await;
    host.next(Act::Fail(Class::NotFound));
    host.service.refresh(&team(), id).await.unwrap();
    let failed = host.until(id, |record| !record.is_refreshing()).await;
    assert_eq!((failed.status, failed.class), (Status::Available, Some(Class::NotFound)));
    let seal = host.dir.path().join(format!("tenants/team/volumes/{id}.1/cache.json"));
    let moved = host.dir.path().join("cache.json");
    fs::rename(&seal, &moved).unwrap();

    let host = host.restart().await;
    let missing = host.service.get(&team(), id).await.unwrap();
    assert_eq!((missing.status, missing.class), (Status::Unavailable, None));
    host.service.0.janitor.check_missing().await.unwrap();
    assert_eq!(host.service.get(&team(), id).await.unwrap(), missing, "the volume is still missing");
    fs::rename(moved, &seal).unwrap();
    host.service.0.janitor.check_missing().await.unwrap();
    let present = host.service.get(&team(), id).await.unwrap();
    assert_eq!((present.status, present.message, present.class), (Status::Available, None, None));
    assert_eq!(present.events.back().unwrap().message, "the volume is present again");

    // An expired cache stays Unavailable although its volume is present.
    host.clock.pass(DAY);
    host.service.0.janitor.clean_up().await.unwrap();
    let expired = host.service.get(&team(), id).await.unwrap();
    assert_eq!(expired.status, Status::Unavailable);
    host.service.0.janitor.check_missing().await.unwrap();
    assert_eq!(host.service.get(&team(), id).await.unwrap(), expired);
}

#[tokio::test]
async fn a_record_that_changed_is_not_made_unavailable() {
    let host = Host::new(ROOM).await;
    let read = host.available("web").await;
    let now = host.clock.now();
    let volume = host.dir.path().join(format!("tenants/team/volumes/{}.1", read.id));
    let lease = Lease::shared(&Dir::open(&volume).unwrap()).unwrap().unwrap();
    fs::remove_file(volume.join("cache.json")).unwrap();
    host.service.delete(&team(), read.id).await.unwrap();
    assert!(!host.service.0.janitor.check_present(&read, now).await.unwrap(), "the volume is missing");
    assert_eq!(host.service.get(&team(), read.id).await.unwrap().status, Status::Deleting);
    drop(lease);
}
