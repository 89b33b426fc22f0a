//! Opens the database, and creates it if it is missing.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use crate::node::snapshotter::error::{Error, sql};
use larder_model::io_error::{Context as _, IoError};

/// The application ID in the header of the file: "LSN" and a number.
const APPLICATION_ID: i32 = 0x4c53_4e01;
/// The migrations. Each upgrades the database from the version of its index to the next.
const STEPS: &[&str] = &[include_str!("1.sql")];

pub(super) fn open(path: &Path) -> Result<Connection, Error> {
    // SQLite gives the mode of the database to its auxiliary files.
    let make = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match make {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            return Err(IoError::new("creating", path.display(), e).into());
        }
        _ => {}
    }
    let is_new = fs::metadata(path).context("examining", path.display())?.len() == 0;
    let mut db = connect(path).map_err(open_error(path))?;
    if is_new {
        // An empty database would make the cleanup remove all existing snapshots.
        let snapshots = path.with_file_name("snapshots");
        let mut names = fs::read_dir(&snapshots).context("listing", snapshots.display())?;
        if names.next().is_some() {
            let reason = format!("it is missing or empty, but {} is not", snapshots.display());
            return Err(damaged(path, reason));
        }
    } else {
        check(&db, path)?;
    }
    migrate(&mut db).map_err(open_error(path))?;
    let mode: String =
        db.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)).map_err(open_error(path))?;
    if mode != "wal" {
        return Err(damaged(
            path,
            format!("the file system does not support a write-ahead log (journal_mode is {mode})"),
        ));
    }
    Ok(db)
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    // SQL in a damaged or foreign file must not run (sqlite.org/security.html).
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
    // The index of the log is in memory instead of a mapped file, as for the records of the daemon
    // (caches::store).
    db.execute_batch(
        "PRAGMA locking_mode = EXCLUSIVE; PRAGMA cell_size_check = ON; PRAGMA foreign_keys = ON; PRAGMA synchronous = FULL;",
    )?;
    Ok(db)
}

fn check(db: &Connection, path: &Path) -> Result<(), Error> {
    let id: i32 = db.query_row("PRAGMA application_id", [], |row| row.get(0)).map_err(open_error(path))?;
    if id != APPLICATION_ID {
        return Err(damaged(path, format!("it belongs to another program (application_id {id:#x})")));
    }
    let version = version(db).map_err(open_error(path))?;
    if version > STEPS.len() {
        let known = STEPS.len();
        return Err(damaged(
            path,
            format!("it has version {version}, but this version of larder supports {known} and older"),
        ));
    }
    let sound: String =
        db.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(open_error(path))?;
    if sound == "ok" { Ok(()) } else { Err(damaged(path, sound)) }
}

fn version(db: &Connection) -> rusqlite::Result<usize> {
    let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    Ok(usize::try_from(version).unwrap_or(usize::MAX))
}

fn migrate(db: &mut Connection) -> rusqlite::Result<()> {
    let start = version(db)?;
    for (number, step) in STEPS.iter().enumerate().skip(start) {
        let transaction = db.transaction_with_behavior(TransactionBehavior::Exclusive)?;
        transaction.execute_batch(step)?;
        let id = APPLICATION_ID;
        let marks = format!("PRAGMA application_id = {id}; PRAGMA user_version = {}", number + 1);
        transaction.execute_batch(&marks)?;
        transaction.commit()?;
    }
    Ok(())
}

fn damaged(path: &Path, reason: String) -> Error {
    Error::Damaged { path: path.display().to_string(), reason }
}

fn open_error(path: &Path) -> impl Fn(rusqlite::Error) -> Error {
    move |e| match e.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => damaged(path, e.to_string()),
        _ => sql("opening the")(e),
    }
}
