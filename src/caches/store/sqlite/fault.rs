//! What goes wrong in the database, and what an operator is told of it.

use std::path::Path;

use rusqlite::ErrorCode;
use rusqlite::ffi;

use crate::caches::store::StoreError;

/// Why work on the database stopped.
#[derive(Debug)]
pub(super) enum Fault {
    /// SQLite says so.
    Sql(rusqlite::Error),
    /// Something is not what was written: what, and why.
    Damaged(String),
    /// The rules of the store say so.
    Store(StoreError),
}

impl From<rusqlite::Error> for Fault {
    fn from(e: rusqlite::Error) -> Self {
        Fault::Sql(e)
    }
}

impl From<StoreError> for Fault {
    fn from(e: StoreError) -> Self {
        Fault::Store(e)
    }
}

impl Fault {
    /// Whether room is missing.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Fault::Sql(e) if is_full(e))
    }

    /// As the store tells it.
    pub(super) fn into_error(self, path: &Path, doing: &'static str) -> StoreError {
        match self {
            Fault::Store(e) => e,
            Fault::Damaged(what) => damaged(path, what),
            Fault::Sql(e) if is_damage(&e) => damaged(path, e.to_string()),
            Fault::Sql(e) => StoreError::Failed { doing, full: is_full(&e), reason: reason(&e) },
        }
    }
}

/// What SQLite says, where it can be understood: its text of an I/O error does not say which; that of the extended code does.
fn reason(e: &rusqlite::Error) -> String {
    match e.sqlite_error() {
        Some(error) if error.code == ErrorCode::SystemIoFailure => error.to_string(),
        Some(error) if error.code == ErrorCode::DatabaseBusy => {
            "another process has the database open".into()
        }
        _ => e.to_string(),
    }
}

/// Whether SQLite, or the type of a value that it gives, tells of other content than was written.
fn is_damage(e: &rusqlite::Error) -> bool {
    use rusqlite::Error;
    let value = matches!(
        e,
        Error::FromSqlConversionFailure(..)
            | Error::IntegralValueOutOfRange(..)
            | Error::InvalidColumnType(..)
            | Error::Utf8Error(..)
    );
    let code = e.sqlite_error_code();
    value || matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Whether room is missing. A write that fails with ENOSPC is SQLITE_FULL; what some file systems tell only when the file is
/// flushed, or with another errno, is an I/O error of its own (sqlite.org/rescode.html).
fn is_full(e: &rusqlite::Error) -> bool {
    let Some(error) = e.sqlite_error() else { return false };
    let io = [ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_IOERR_FSYNC];
    error.code == ErrorCode::DiskFull || io.contains(&error.extended_code)
}

/// The database is there, and damaged.
pub(super) fn damaged(path: &Path, what: impl Into<String>) -> StoreError {
    StoreError::Corrupt { path: path.display().to_string(), what: what.into(), remedy: remedy(path) }
}

/// What helps where records are lost. Moving away the database alone does not: volumes without it are an error too, for a
/// new one would have them all swept.
fn remedy(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    format!(
        "stop the daemon and put back a backup of {name} (remove {name}-wal first unless it belongs to the backup); \
         without a backup the image caches of this host are lost: move {name}, {name}-wal and the directory tenants beside \
         it out of the state directory, and order them again"
    )
}
