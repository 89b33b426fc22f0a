//! Uploads of archives: reserved room and cleanup.

use super::*;
use larder_model::job::Source;

const FIFTY: &str = "[caches]\ncapacity = \"50GiB\"\n";

fn kept(host: &Host) -> Vec<String> {
    let entries = fs::read_dir(host.dir.path().join("imports")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

async fn sent(host: &Host, name: &str, bytes: &[u8]) -> Result<Received, Error> {
    let mut receiving =
        host.service.receive(&team(), spec(name), Some(bytes.len() as u64), false).await.unwrap();
    for part in bytes.chunks(7) {
        receiving.take(part).await?;
    }
    receiving.end().await
}

async fn imported(host: &Host, name: &str) -> Record {
    host.service.import(sent(host, name, b"an archive").await.unwrap(), None).await.unwrap()
}

#[tokio::test]
async fn an_archive_is_kept_until_its_volume_is_sealed() {
    let host = Host::new(ROOM).await;
    host.next(Act::Hang);
    let record = imported(&host, "web").await;
    assert_eq!((record.status, record.import.unwrap().bytes), (Status::Creating, 10));
    host.until(record.id, |_| host.started() == 1).await;
    let path = host.dir.path().join("imports").join(record.id.to_string());
    assert_eq!(fs::read(&path).unwrap(), b"an archive");
    let source = host.runner.orders.lock().unwrap()[0].job.source.clone();
    assert_eq!(source, Some(Source::Received(path.clone())));
    host.service.0.janitor.clean_up().await.unwrap();
    assert!(path.exists(), "the archive is still needed");

    // The build continues after a restart.
    let host = host.restart().await;
    let record = host.until(record.id, |record| record.status == Status::Available).await;
    host.service.0.janitor.clean_up().await.unwrap();
    assert_eq!(kept(&host), [""; 0]);
    assert!(matches!(host.service.refresh(&team(), record.id).await, Err(Error::Imported(_))));
    assert_eq!(record.reserved_gib(), 20);
}

#[tokio::test]
async fn failed_and_aborted_uploads_leave_nothing() {
    let host = Host::new(ROOM).await;
    host.next(Act::Fail(Class::Corrupt));
    let failed = imported(&host, "failed").await;
    host.until(failed.id, |record| record.status == Status::Failed).await;
    for (name, delete) in [("cancelled", false), ("deleted", true)] {
        host.next(Act::Hang);
        let started = host.started();
        let record = imported(&host, name).await;
        host.until(record.id, |_| host.started() > started).await;
        match delete {
            true => drop(host.service.delete(&team(), record.id).await.unwrap()),
            false => drop(host.service.cancel(&team(), record.id).await.unwrap()),
        }
    }
    // An archive without a record, as after a crash between the two, and a file with another name.
    fs::write(host.dir.path().join("imports").join(CacheId::random().to_string()), "x").unwrap();
    fs::write(host.dir.path().join("imports/notes"), "x").unwrap();
    host.service.0.janitor.clean_up().await.unwrap();
    assert_eq!(kept(&host), ["notes"]);
    host.left(&[]).await;
}

#[tokio::test]
async fn room_is_promised_during_an_upload_and_released() {
    let host = Host::new(FIFTY).await;
    let full = |error: Error| matches!(error, Error::Store(StoreError::Full { .. }));
    // 20 GiB for the volume, and the same for an archive of unknown size.
    let receiving = host.service.receive(&team(), spec("one"), None, false).await.unwrap();
    assert!(full(host.service.create(&team(), spec("two"), None).await.unwrap_err()));
    assert!(full(host.service.receive(&team(), spec("two"), Some(1), false).await.unwrap_err()));
    drop(receiving);
    host.next(Act::Hang);
    let record = imported(&host, "one").await;
    host.until(record.id, |_| host.started() == 1).await;
    // 20 GiB for the volume, and 1 GiB for the archive.
    assert_eq!(record.reserved_gib(), 21);
    assert!(full(host.service.receive(&team(), spec("two"), Some(10 << 30), false).await.unwrap_err()));
    let two = host.service.create(&team(), spec("two"), None).await.unwrap();
    host.until(two.id, |record| record.status == Status::Available).await;
    assert_eq!(host.service.0.admission.promised_gib(), 0);
}

#[tokio::test]
async fn archives_that_are_too_large_or_compressed_are_refused() {
    let host = Host::new(ROOM).await;
    let begun = host.service.receive(&team(), spec("web"), Some((20 << 30) + 1), false).await;
    assert!(matches!(begun, Err(Error::ArchiveTooLarge { gib: 20 })));
    let mut receiving = host.service.receive(&team(), spec("web"), None, false).await.unwrap();
    receiving.max_bytes = 3 << 20;
    receiving.take(&vec![b'x'; 3 << 20]).await.unwrap();
    assert!(matches!(receiving.take(b"x").await, Err(Error::ArchiveTooLarge { .. })));
    for magic in [&b"\x1f\x8b\x08"[..], b"\x28\xb5\x2f\xfd..."] {
        assert!(matches!(sent(&host, "web", magic).await, Err(Error::ArchiveCompressed)));
    }
    assert!(sent(&host, "web", b"\x28\xb5\x2f.").await.is_ok());
    drop(receiving);
    assert_eq!((kept(&host), host.service.0.admission.promised_gib()), (Vec::new(), 0));
}

#[tokio::test]
async fn the_same_key_is_answered_once() {
    let host = Host::new(ROOM).await;
    let key = |request| Some(IdempotencyKey { key: "k".into(), request: [request; 32] });
    let first = host.service.import(sent(&host, "web", b"a").await.unwrap(), key(1)).await.unwrap();
    host.until(first.id, |record| record.status == Status::Available).await;
    let again = || async {
        let mut receiving = host.service.receive(&team(), spec("web"), None, true).await.unwrap();
        receiving.take(b"a").await.unwrap();
        receiving.end().await.unwrap()
    };
    assert_eq!(host.service.import(again().await, key(1)).await.unwrap(), first);
    let other = host.service.import(again().await, key(2)).await.unwrap_err();
    assert!(matches!(other, Error::Store(StoreError::KeyReused)), "{other}");
    let taken = host.service.receive(&team(), spec("web"), None, false).await.unwrap_err();
    assert!(matches!(taken, Error::Store(StoreError::NameTaken(_))), "{taken}");
    host.service.0.janitor.clean_up().await.unwrap();
    assert_eq!(kept(&host), [""; 0]);
}
