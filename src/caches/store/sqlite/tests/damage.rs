//! Databases with changed bytes: reads return an error or the correct data, and never panic.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use super::{SqliteStore, directory, open};
use crate::caches::record::Record;
use crate::caches::store::{AdmissionDecision, Created, Store, StoreError, Stored, suite};
use larder_model::class::Class;
use larder_sys::clock::guard::SavedClock;

/// The complete contents of a store.
#[derive(Clone, Debug, PartialEq)]
struct Contents {
    records: Vec<Stored>,
    answers: Vec<Record>,
    noted: Option<SavedClock>,
}

const KEYS: [&str; 3] = ["first", "second", "third"];

/// Writes a few times and returns the contents after each write.
async fn fill(store: &SqliteStore) -> Vec<Contents> {
    let mut history = vec![read_contents(store).await.unwrap()];
    for (second, key) in (0..).zip(KEYS) {
        let record = suite::record("a", key, second);
        let Created::New(stored) = store.create(record, suite::OPEN, suite::key(key, 1)).await.unwrap()
        else {
            panic!("not new")
        };
        history.push(read_contents(store).await.unwrap());
        store.replace(stored).await.unwrap();
        history.push(read_contents(store).await.unwrap());
        let other = suite::create(store, suite::record("b", key, second)).await;
        history.push(read_contents(store).await.unwrap());
        if second == 0 {
            store.remove(other.record.id, other.version).await.unwrap();
            history.push(read_contents(store).await.unwrap());
        }
        store.note(suite::noted(suite::at(second))).await.unwrap();
        history.push(read_contents(store).await.unwrap());
    }
    history
}

async fn read_contents(store: &SqliteStore) -> Result<Contents, StoreError> {
    let records = store.list(None).await?;
    for stored in &records {
        assert_eq!(store.get(stored.record.id).await?.as_ref(), Some(stored));
        assert!(store.list(Some(stored.record.tenant.clone())).await?.contains(stored));
    }
    let mut answers = Vec::new();
    for key in KEYS {
        match store
            .create(suite::record("a", "asked", 0), AdmissionDecision::Replayed, suite::key(key, 1))
            .await
        {
            Ok(Created::Before(record)) => answers.push(*record),
            Err(StoreError::Replayed) => {}
            Ok(Created::New(stored)) => panic!("{stored:?}"),
            Err(e) => return Err(e),
        }
    }
    Ok(Contents { records, answers, noted: store.noted().await? })
}

/// Reads the contents of the files at `path`. `None` if they are refused with the expected error.
async fn reopened(path: &Path) -> Option<Contents> {
    let contents = match SqliteStore::open(path, true) {
        Ok(store) => read_contents(&store).await,
        Err(e) => Err(e),
    };
    match contents {
        Ok(contents) => Some(contents),
        Err(e) => {
            assert!(matches!(e.class(), Class::Corrupt | Class::Conflict), "{e:?}");
            None
        }
    }
}

/// Masks that flip one bit, all bits, or the bit that changes the type or length of a value.
const MASKS: [u8; 3] = [0x01, 0xff, 0x40];

#[tokio::test]
async fn a_byte_of_the_database() {
    let (_dir, path) = directory();
    let store = open(&path).unwrap();
    let truth = fill(&store).await.pop().unwrap();
    drop(store);
    let bytes = fs::read(&path).unwrap();
    let (mut refused, mut right) = (0, 0);
    let header = (0..100).flat_map(|at| MASKS.map(|mask| (at, mask)));
    let rest = (100..bytes.len()).step_by(17).zip(MASKS.into_iter().cycle());
    for (at, mask) in header.chain(rest) {
        let mut changed = bytes.clone();
        changed[at] ^= mask;
        fs::write(&path, changed).unwrap();
        match reopened(&path).await {
            Some(contents) => {
                assert_eq!(contents, truth, "byte {at} by {mask:#x}");
                right += 1;
            }
            None => refused += 1,
        }
        clear(&path);
    }
    // A change in free space is harmless; a change in rows or page headers is not.
    assert!(refused > 100 && right > 0, "{refused} refused, {right} right");
    fs::write(&path, bytes).unwrap();
    assert_eq!(reopened(&path).await, Some(truth));
}

#[tokio::test]
async fn a_database_cut_short() {
    let (_dir, path) = directory();
    let store = open(&path).unwrap();
    fill(&store).await;
    drop(store);
    let bytes = fs::read(&path).unwrap();
    let pages = (0..bytes.len()).step_by(4096);
    for length in pages.chain((1..bytes.len()).step_by(997)) {
        fs::write(&path, &bytes[..length]).unwrap();
        assert_eq!(reopened(&path).await, None, "{length} of {}", bytes.len());
        clear(&path);
    }
}

/// A crash can leave a truncated log, which SQLite ends at the first frame with a wrong checksum. So any
/// earlier state is correct.
#[tokio::test]
async fn a_byte_of_the_log() {
    let (_dir, path) = directory();
    let store = open(&path).unwrap();
    let history = fill(&store).await;
    let database = fs::read(&path).unwrap();
    let log = fs::read(path.with_extension("db-wal")).unwrap();
    let (_other, path) = directory();
    fs::create_dir(path.parent().unwrap()).unwrap();
    let reopened = async |log: &[u8]| {
        clear(&path);
        fs::write(&path, &database).unwrap();
        fs::write(path.with_extension("db-wal"), log).unwrap();
        reopened(&path).await
    };
    assert_eq!(reopened(&log).await.as_ref(), history.last());
    assert_eq!(reopened(b"").await.as_ref(), history.first());
    let mut moments = HashSet::new();
    let mut check = |contents: Option<Contents>, what: &str| {
        let Some(contents) = contents else { return };
        let moment = history.iter().position(|then| *then == contents);
        moments.insert(moment.unwrap_or_else(|| panic!("{what}: {contents:?}")));
    };
    for (at, mask) in (0..log.len()).step_by(211).zip(MASKS.into_iter().cycle()) {
        let mut changed = log.clone();
        changed[at] ^= mask;
        check(reopened(&changed).await, &format!("byte {at} by {mask:#x}"));
        check(reopened(&log[..at]).await, &format!("cut at {at}"));
    }
    assert!(moments.len() > 5, "{moments:?}");
}

fn clear(path: &Path) {
    for suffix in ["db-wal", "db-shm"] {
        let _ = fs::remove_file(path.with_extension(suffix));
    }
}
