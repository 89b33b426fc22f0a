//! The database of records, killed in the middle of a write, and on a full disk.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use std::{env, thread};

use larder::caches::store::sqlite::SqliteStore;
use larder::caches::store::{Created, Store, StoreError, suite};
use larder_model::class::Class;
use larder_model::image_cache::{CacheId, Status};
use tokio::runtime::Runtime;

use crate::harness::filesystem::{FileSystem, Kind};
use crate::harness::{Need, isolated};

/// Passes the path of the database to [`writer`].
const DATABASE: &str = "LARDER_TEST_DATABASE";
const DEADLINE: Duration = Duration::from_secs(60);

/// Changes that the writer saw confirmed: the version of each record, `None` for a removed one.
type Acknowledged = BTreeMap<CacheId, Option<u64>>;

/// The process that is killed: writes in an endless loop and prints each confirmation.
#[case(hidden)]
fn writer() {
    let Some(path) = env::var_os(DATABASE) else { return };
    let path = PathBuf::from(path);
    Runtime::new().unwrap().block_on(async {
        let store = SqliteStore::open(&path, false).unwrap();
        for turn in 0.. {
            let mut record = suite::record("team", "web", turn);
            record.spec.name = format!("web-{}", record.id).parse().unwrap();
            let id = record.id;
            let key = suite::key(&id.to_string(), 1);
            let Created::New(stored) = store.create(record, suite::OPEN, key).await.unwrap() else {
                panic!("the record exists already")
            };
            say(&format!("{id} {}", stored.version));
            let stored = store.replace(stored).await.unwrap();
            say(&format!("{id} {}", stored.version));
            if turn % 3 == 0 {
                store.remove(id, stored.version).await.unwrap();
                say(&format!("{id} gone"));
            }
        }
    });
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // One write call, so that a killed writer leaves no partial line.
    out.write_all(format!("answered {line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// Starts a writer, kills it (SIGKILL) once `when` returns true for the number of confirmations, and collects
/// them.
fn killed(path: &Path, acknowledged: &mut Acknowledged, mut when: impl FnMut(usize) -> bool) {
    let mut child = larder_testing::runner::command("store::writer")
        .unwrap()
        .env(DATABASE, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let (sender, answers) = std::sync::mpsc::channel();
    let reader = thread::spawn(move || {
        for line in output.lines() {
            let line = line.unwrap();
            if let Some(answer) = line.strip_prefix("answered ") {
                let (id, version) = answer.split_once(' ').unwrap();
                sender.send((id.parse::<CacheId>().unwrap(), version.parse().ok())).unwrap();
            }
        }
    });
    let start = Instant::now();
    let mut confirmed = 0;
    while !when(confirmed) {
        assert!(start.elapsed() < DEADLINE, "the writer is stuck after {confirmed} confirmations");
        if let Ok((id, version)) = answers.recv_timeout(Duration::from_micros(100)) {
            acknowledged.insert(id, version);
            confirmed += 1;
        }
    }
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), None, "the writer ended by itself: {status}");
    reader.join().unwrap();
    acknowledged.extend(answers);
}

/// Checks that the records equal the confirmed changes, except for at most one unfinished change.
fn check(path: &Path, acknowledged: &mut Acknowledged) {
    Runtime::new().unwrap().block_on(async {
        let store = SqliteStore::open(path, !acknowledged.is_empty()).unwrap();
        let found: Acknowledged =
            store.list(None).await.unwrap().into_iter().map(|s| (s.record.id, Some(s.version))).collect();
        let mut under_way = Vec::new();
        for (id, version) in &found {
            match acknowledged.get(id) {
                Some(answered) if answered == version => {}
                Some(Some(1)) if *version == Some(2) => under_way.push(*id),
                None if *version == Some(1) => under_way.push(*id),
                other => panic!("{id}: confirmed {other:?}, found {version:?}"),
            }
        }
        for (id, answered) in acknowledged.iter() {
            if answered.is_some() && !found.contains_key(id) {
                assert_eq!(*answered, Some(2), "{id} is lost");
                under_way.push(*id);
            }
            let key = suite::key(&id.to_string(), 1);
            let again = store.create(suite::record("team", "again", 0), suite::OPEN, key).await.unwrap();
            assert!(matches!(again, Created::Before(record) if record.id == *id));
        }
        assert!(under_way.len() <= 1, "{under_way:?}");
        acknowledged.retain(|id, _| found.contains_key(id));
        acknowledged.extend(found);
    });
}

#[case]
fn confirmed_records_survive_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("larder.db");
    let mut acknowledged = Acknowledged::new();
    for round in 0..24 {
        killed(&path, &mut acknowledged, |confirmed| confirmed > round * 2);
        check(&path, &mut acknowledged);
    }
    assert!(acknowledged.len() > 24);
}

#[case]
fn a_kill_while_the_database_is_made() {
    for file in ["larder.db.new", "larder.db.new-journal", "larder.db", "larder.db-wal"] {
        for _ in 0..4 {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("larder.db");
            let mut acknowledged = Acknowledged::new();
            killed(&path, &mut acknowledged, |confirmed| confirmed > 0 || dir.path().join(file).exists());
            check(&path, &mut acknowledged);
        }
    }
}

#[case]
fn a_full_tmpfs() {
    isolated(&[], || full(&FileSystem::new(Kind::Tmpfs, 4 << 20)));
}

#[case]
fn a_full_ext4() {
    isolated(&[Need::Program("mkfs.ext4")], || full(&FileSystem::new(Kind::Ext4 { inodes: 64 }, 8 << 20)));
}

/// Checks that a write on a full disk fails without changes, and that the same store continues when there is
/// space again.
fn full(file_system: &FileSystem) {
    let path = file_system.path().join("state/larder.db");
    let filler = file_system.path().join("filler");
    Runtime::new().unwrap().block_on(async {
        fill(&filler);
        assert_full(&SqliteStore::open(&path, false).unwrap_err());
        fs::remove_file(&filler).unwrap();

        let store = SqliteStore::open(&path, false).unwrap();
        let mut written = vec![suite::create(&store, suite::record("team", "first", 0)).await];
        let reserve = file_system.path().join("state/larder.db-reserve");
        let (mut number, mut spent) = (0, 0);
        for round in 1..=6 {
            fill(&filler);
            // Vary the space, so that another part of a transaction fails.
            let taken = fs::metadata(&filler).unwrap().len();
            File::options().write(true).open(&filler).unwrap().set_len(taken - round * 20_480).unwrap();
            let refused = loop {
                assert!(written.len() < 5000, "the file system never fills up");
                number += 1;
                let record = suite::record("team", &format!("web-{number}"), number);
                match store.create(record, suite::OPEN, suite::key(&number.to_string(), 1)).await {
                    Ok(Created::New(stored)) => written.push(stored),
                    Ok(Created::Before(record)) => panic!("{record:?}"),
                    Err(e) => break e,
                }
            };
            assert_full(&refused);
            assert_eq!(store.list(None).await.unwrap(), written);
            // A deletion frees space, and has reserved space for itself.
            let mut leaving = written.remove(0);
            leaving.record.set_status(Status::Deleting, suite::at(0), "deletion requested");
            let leaving = store.replace(leaving).await.unwrap();
            store.remove(leaving.record.id, leaving.version).await.unwrap();
            spent += usize::from(!reserve.exists());
            assert_eq!(store.list(None).await.unwrap(), written);
            fs::remove_file(&filler).unwrap();
            store.note(suite::noted(suite::at(number))).await.unwrap();
            assert!(reserve.exists(), "the reserve was not created again");
            number += 1;
            let record = suite::record("team", &format!("after-{round}"), number);
            written.push(suite::create(&store, record).await);
            assert_eq!(store.list(None).await.unwrap(), written);
        }
        assert!(spent > 0, "the reserve was never needed");
        // The store closes and opens on a full disk. All confirmed records are there, or the error gives the
        // reason.
        fill(&filler);
        drop(store);
        fill(&filler);
        match SqliteStore::open(&path, true) {
            Ok(store) => assert_eq!(store.list(None).await.unwrap(), written),
            Err(e) => assert_full(&e),
        }
        fs::remove_file(&filler).unwrap();
        let store = SqliteStore::open(&path, true).unwrap();
        assert_eq!(store.list(None).await.unwrap(), written);
    });
}

fn assert_full(e: &StoreError) {
    assert!(matches!(e, StoreError::Failed { full: true, .. }), "{e:?}");
    assert_eq!(e.class(), Class::Transient);
}

/// Fills the file system to the last byte that a file can get.
fn fill(path: &Path) {
    let mut file = File::options().create(true).append(true).open(path).unwrap();
    for size in [1 << 16, 1 << 12, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    // Some file systems report the error only now.
    let _ = file.sync_all();
}
