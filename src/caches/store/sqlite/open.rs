//! Opens and creates the database. A file is not changed before it is verified.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::fault::{self, Fault};
use super::{migrations, rows};
use crate::caches::store::StoreError;

/// Maximum wait for another process that reads the database, for example a backup.
const BUSY: Duration = Duration::from_secs(2);
/// Maximum number of faults reported for one database.
const MAX_FAULTS: usize = 5;

/// Opens the database at `path`; see [`SqliteStore::open`](super::SqliteStore::open).
pub(super) fn open(path: &Path, has_volumes: bool) -> Result<Connection, StoreError> {
    let io = |e: io::Error| StoreError::Failed { doing: "opening", full: is_full(&e), reason: e.to_string() };
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.is_file() => return Err(fault::damaged(path, "it is not a regular file")),
        // A complete database never has this length under this name.
        Ok(meta) if meta.len() == 0 => return Err(fault::damaged(path, "the file is empty")),
        Ok(meta) if meta.permissions().mode() & 0o077 != 0 => {
            fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(io)?;
        }
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if let Some(what) = loss_reason(path, has_volumes).map_err(io)? {
                return Err(fault::damaged(path, what));
            }
            create(path).map_err(io)?.map_err(|e| Fault::from(e).into_error(path, "creating"))?;
        }
        Err(e) => return Err(io(e)),
    }
    let opened = connect(path).map_err(Fault::from).and_then(|mut db| verify(&mut db, path).map(|()| db));
    opened.map_err(|fault| match fault {
        // Larder's own statements are correct, so an unknown SQL error means that the file is damaged.
        Fault::Sql(e) if e.sqlite_error_code() == Some(ErrorCode::Unknown) => {
            fault::damaged(path, e.to_string())
        }
        fault => fault.into_error(path, "opening"),
    })
}

/// Returns the reason why a missing database is not a first start.
fn loss_reason(path: &Path, has_volumes: bool) -> io::Result<Option<&'static str>> {
    // SQLite would delete the log with its content.
    if fs::exists(beside(path, "-wal"))? {
        return Ok(Some("the file is missing, but its -wal exists"));
    }
    Ok(has_volumes.then_some("the file is missing, but volumes of tenants exist"))
}

/// Creates the database under a temporary name, so that an incomplete one is not mistaken for an empty one.
fn create(path: &Path) -> io::Result<rusqlite::Result<()>> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    let new = beside(path, ".new");
    for left_over in [new.clone(), beside(&new, "-wal"), beside(&new, "-shm"), beside(&new, "-journal")] {
        match fs::remove_file(left_over) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    // SQLite gives the -wal and -shm files the mode of the database.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    if let Err(e) = fill(&new) {
        return Ok(Err(e));
    }
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(parent)?.sync_all()?;
    Ok(Ok(()))
}

fn fill(path: &Path) -> rusqlite::Result<()> {
    let mut db = connect(path)?;
    db.execute_batch(&format!("PRAGMA application_id = {}", migrations::APPLICATION_ID))?;
    migrations::run(&mut db, migrations::STEPS)?;
    // Closing the last handle moves everything into the one file.
    db.close().map_err(|(_, e)| e)
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY)?;
    // Definitions in a damaged or foreign file must not run (sqlite.org/security.html).
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
    // Keep the index of the log in memory instead of a mapped file (-shm). On a full file system, access to
    // the mapping can raise SIGBUS, as on ext4 with 1 KiB blocks. This must be set before the first read,
    // and locks out every other process.
    db.execute_batch(
        "PRAGMA locking_mode = EXCLUSIVE; PRAGMA cell_size_check = ON; PRAGMA foreign_keys = ON; PRAGMA synchronous = FULL;",
    )?;
    Ok(db)
}

/// Verifies that the database is Larder's, of a known version, and intact. Then migrates it to the current
/// version.
fn verify(db: &mut Connection, path: &Path) -> Result<(), Fault> {
    let shown = path.display().to_string();
    let id: i32 = db.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    if id != migrations::APPLICATION_ID {
        let what = format!("it is a database of another program (application_id {id:#x})");
        let remedy = "give larder a state directory of its own, or move that file away".to_owned();
        return Err(StoreError::Foreign { path: shown, what, remedy }.into());
    }
    let (version, known) = (migrations::version(db)?, migrations::STEPS.len());
    if version > known {
        let what = format!("they are of version {version}; supported are versions up to {known}");
        let remedy = "run the newer larder, or restore the backup from before the upgrade".to_owned();
        return Err(StoreError::Foreign { path: shown, what, remedy }.into());
    }
    if version == 0 {
        return Err(Fault::Damaged("it has no version".into()));
    }
    integrity(db)?;
    let mut fresh = Connection::open_in_memory()?;
    migrations::run(&mut fresh, &migrations::STEPS[..version])?;
    if migrations::schema(db)? != migrations::schema(&fresh)? {
        return Err(Fault::Damaged("its tables are not those of its version".into()));
    }
    migrations::run(db, migrations::STEPS)?;
    rows::verify_all(db)?;
    let mode: String = db.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        let reason = format!("the file system allows no write-ahead log (journal_mode is {mode})");
        return Err(StoreError::Failed { doing: "opening", reason, full: false }.into());
    }
    Ok(())
}

fn integrity(db: &Connection) -> Result<(), Fault> {
    let mut statement = db.prepare(&format!("PRAGMA integrity_check({MAX_FAULTS})"))?;
    let reported: Vec<String> =
        statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    match reported.as_slice() {
        [ok] if ok == "ok" => Ok(()),
        faults => Err(Fault::Damaged(format!("integrity check: {}", faults.join("; ")))),
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn is_full(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
