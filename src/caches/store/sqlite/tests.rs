//! The suite on SQLite, and tests for damaged or foreign files.

mod damage;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rusqlite::Connection;
use tempfile::TempDir;

use super::SqliteStore;
use crate::caches::store::{Created, Store, StoreError, Stored, suite};
use larder_model::class::Class;

/// Returns the path of a database in a state directory that does not exist yet.
fn directory() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state").join("larder.db");
    (dir, path)
}

fn open(path: &Path) -> Result<SqliteStore, StoreError> {
    SqliteStore::open(path, false)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn refused(path: &Path, has_volumes: bool) -> String {
    let e = SqliteStore::open(path, has_volumes).unwrap_err();
    assert!(matches!(e.class(), Class::Corrupt | Class::Conflict), "{e}");
    assert!(e.to_string().contains(path.to_str().unwrap()), "{e}");
    e.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn suite_of_every_store() {
    let dirs = Mutex::new(Vec::new());
    let fresh = || -> Arc<dyn Store> {
        let (dir, path) = directory();
        dirs.lock().unwrap().push(dir);
        Arc::new(open(&path).unwrap())
    };
    suite::all(&fresh).await;
}

#[tokio::test]
async fn records_outlive_the_process_that_wrote_them() {
    let (_dir, path) = directory();
    let store = open(&path).unwrap();
    let kept = suite::create(&store, suite::record("a", "web", 0)).await;
    let gone = suite::create(&store, suite::record("a", "gone", 0)).await;
    let keyed = suite::record("b", "web", 0);
    store.create(keyed.clone(), suite::OPEN, suite::key("k", 1)).await.unwrap();
    let kept = store.replace(kept).await.unwrap();
    store.remove(gone.record.id, gone.version).await.unwrap();
    store.note(suite::noted(suite::at(7))).await.unwrap();
    drop(store);

    let store = SqliteStore::open(&path, true).unwrap();
    let team = Some("a".parse().unwrap());
    assert_eq!(store.list(team).await.unwrap(), [kept]);
    assert_eq!(store.noted().await.unwrap(), Some(suite::noted(suite::at(7))));
    let again = store.create(suite::record("b", "web", 1), suite::OPEN, suite::key("k", 1)).await;
    assert_eq!(again.unwrap(), Created::Before(Box::new(keyed)));
}

#[tokio::test]
async fn files_are_private_to_the_owner() {
    let (_dir, path) = directory();
    let store = open(&path).unwrap();
    suite::create(&store, suite::record("a", "web", 0)).await;
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    let mut names = Vec::new();
    for entry in fs::read_dir(path.parent().unwrap()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(mode(&entry.path()), 0o600, "{entry:?}");
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(names, ["larder.db", "larder.db-reserve", "larder.db-wal"]);
    drop(store);
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    drop(open(&path).unwrap());
    assert_eq!(mode(&path), 0o600);
}

#[tokio::test]
async fn the_connection_has_the_expected_settings() {
    let (_dir, path) = directory();
    let store = open(&path).unwrap();
    let db = store.connection.lock().unwrap();
    let value = |name: &str| {
        db.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, rusqlite::types::Value>(0)).unwrap()
    };
    assert_eq!(value("journal_mode"), rusqlite::types::Value::Text("wal".into()));
    for (name, want) in [
        ("synchronous", 2),
        ("foreign_keys", 1),
        ("trusted_schema", 0),
        ("cell_size_check", 1),
        ("busy_timeout", 2_000),
    ] {
        assert_eq!(value(name), rusqlite::types::Value::Integer(want), "{name}");
    }
}

#[tokio::test]
async fn other_processes_cannot_open_it() {
    let (_dir, path) = directory();
    let store = open(&path).unwrap();
    let stored = suite::create(&store, suite::record("a", "web", 0)).await;
    let e = open(&path).unwrap_err();
    assert!(matches!(&e, StoreError::Failed { doing: "opening", full: false, .. }), "{e:?}");
    assert!(e.to_string().contains("another process"), "{e}");
    let reader = Connection::open(&path).unwrap();
    reader.query_row("SELECT count(*) FROM cache", [], |row| row.get::<_, i64>(0)).unwrap_err();
    drop(reader);
    assert_eq!(store.list(None).await.unwrap(), std::slice::from_ref(&stored));
    drop(store);
    // After closing, all data is in the one file, which any SQLite can read.
    assert!(!path.with_extension("db-wal").exists());
    let backup = path.with_extension("backup");
    fs::copy(&path, &backup).unwrap();
    assert_eq!(open(&backup).unwrap().list(None).await.unwrap(), [stored]);
}

#[test]
fn a_lost_database_is_not_a_first_start() {
    let (_dir, path) = directory();
    assert!(refused(&path, true).contains("volumes of tenants exist"));
    assert!(!path.exists() && !path.parent().unwrap().exists());
    drop(open(&path).unwrap());
    drop(SqliteStore::open(&path, true).unwrap());

    fs::rename(&path, path.with_extension("away")).unwrap();
    assert!(refused(&path, true).contains("backup"));
    let wal = path.with_extension("db-wal");
    fs::write(&wal, b"what was committed").unwrap();
    assert!(refused(&path, false).contains("-wal exists"));
    assert_eq!(fs::read(&wal).unwrap(), b"what was committed");
    assert!(!path.exists());

    for has_volumes in [false, true] {
        fs::write(&path, b"").unwrap();
        assert!(refused(&path, has_volumes).contains("empty"));
        assert_eq!(fs::read(&path).unwrap(), b"");
    }
}

#[test]
fn an_incomplete_database_is_created_again() {
    let (_dir, path) = directory();
    fs::create_dir(path.parent().unwrap()).unwrap();
    for left_over in ["db.new", "db.new-wal", "db.new-shm", "db.new-journal"] {
        fs::write(path.with_extension(left_over), b"half").unwrap();
    }
    drop(open(&path).unwrap());
    let mut names: Vec<_> =
        fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["larder.db", "larder.db-reserve"]);
}

#[test]
fn foreign_files_are_left_alone() {
    let (dir, path) = directory();
    fs::create_dir(path.parent().unwrap()).unwrap();
    let unchanged = |what: &str| {
        let before = fs::read(&path).unwrap();
        let error = refused(&path, true);
        assert!(error.contains(what), "{error}");
        assert_eq!(fs::read(&path).unwrap(), before);
        fs::remove_file(&path).unwrap();
    };
    fs::write(&path, vec![b'x'; 10_000]).unwrap();
    unchanged("not a database");

    Connection::open(&path).unwrap().execute_batch("CREATE TABLE cache (id TEXT)").unwrap();
    unchanged("another program");

    let change = |sql: &str| {
        drop(open(&path).unwrap());
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        // The last connection deletes the journal, and it is closed by now.
        assert!(!path.with_extension("db-wal").exists());
    };
    change("PRAGMA user_version = 2");
    unchanged("run the newer larder");
    change("PRAGMA user_version = -1");
    unchanged("run the newer larder");
    change("PRAGMA user_version = 0");
    unchanged("no version");
    change("CREATE TRIGGER t AFTER INSERT ON cache BEGIN DELETE FROM cache; END");
    unchanged("not those of its version");
    change("DROP INDEX answer_by_time");
    unchanged("not those of its version");

    drop(open(&dir.path().join("real.db")).unwrap());
    std::os::unix::fs::symlink(dir.path().join("real.db"), &path).unwrap();
    unchanged("not a regular file");
    fs::create_dir(&path).unwrap();
    assert!(refused(&path, false).contains("not a regular file"));
}

#[tokio::test]
async fn the_error_names_a_changed_row() {
    let (_dir, path) = directory();
    let store = open(&path).unwrap();
    let stored = suite::create(&store, suite::record("a", "web", 0)).await;
    store.create(suite::record("b", "web", 0), suite::OPEN, suite::key("secret-key", 1)).await.unwrap();
    store.note(suite::noted(suite::at(0))).await.unwrap();
    let whole = store.list(None).await.unwrap();
    let id = stored.record.id.to_string();
    let of_cache = [
        "status = 'Available'",
        "reserved_gib = 0",
        "tenant = 'c'",
        "name = 'other'",
        "version = version + 1",
        "record = replace(record, 'nginx', 'httpd')",
        "record = CAST(x'ff' AS TEXT)",
        "checksum = zeroblob(32)",
    ];
    let of_cache = of_cache.map(|change| format!("UPDATE cache SET {change} WHERE id = '{id}'"));
    let of_answer = ["request = zeroblob(32)", "used_at = 1", "record = '{}'", "tenant = 'c'"];
    let of_answer = of_answer.map(|change| format!("UPDATE answer SET {change}"));
    let of_clock = ["UPDATE clock SET noted = '1999-01-01T00:00:00Z'".to_owned()];
    for sql in of_cache.iter().chain(&of_answer).chain(&of_clock) {
        // While the store is open ...
        store.connection.lock().unwrap().execute_batch(&format!("SAVEPOINT s; {sql}")).unwrap();
        let error = read_all(&store, stored.record.id).await.unwrap_err();
        store.connection.lock().unwrap().execute_batch("ROLLBACK TO s; RELEASE s").unwrap();
        assert_eq!(error.class(), Class::Corrupt, "{sql}: {error}");
        // ... and at the next start.
        let copy = path.with_extension("copy");
        let _ = fs::remove_file(&copy);
        store.connection.lock().unwrap().execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
        assert_eq!(open(&copy).unwrap().list(None).await.unwrap(), whole);
        Connection::open(&copy).unwrap().execute_batch(sql).unwrap();
        let message = refused(&copy, false);
        assert!(!message.contains("secret-key"), "{message}");
        let of_this = sql.starts_with("UPDATE cache") && !sql.contains("CAST");
        assert!(!of_this || message.contains(&id), "{sql}: {message}");
    }
    assert_eq!(store.list(None).await.unwrap(), whole);
}

async fn read_all(
    store: &SqliteStore,
    id: larder_model::image_cache::CacheId,
) -> Result<Option<Stored>, StoreError> {
    store.list(None).await?;
    store.noted().await?;
    let verified = super::rows::verify_all(&store.connection.lock().unwrap());
    verified.map_err(|fault| fault.into_error(&store.path, "reading"))?;
    store.get(id).await
}
