//! Errors of the database and their messages for operators.

use std::path::Path;

use rusqlite::{ErrorCode, ffi};

use crate::caches::store::StoreError;

/// The reason why an operation on the database failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// An error of SQLite.
    Sql(rusqlite::Error),
    /// The content is not what was written. The text describes the damage.
    Damaged(String),
    /// A rule of the store refused the operation.
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
    /// Returns `true` if the disk is full.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Fault::Sql(e) if is_full(e))
    }

    /// Converts the fault to an error of the store.
    pub(super) fn into_error(self, path: &Path, doing: &'static str) -> StoreError {
        match self {
            Fault::Store(e) => e,
            Fault::Damaged(what) => damaged(path, what),
            Fault::Sql(e) if is_damage(&e) => damaged(path, e.to_string()),
            Fault::Sql(e) => StoreError::Failed { doing, full: is_full(&e), reason: reason(&e) },
        }
    }
}

/// Returns the message of an SQLite error. For an I/O error the message of the extended code is more
/// specific.
fn reason(e: &rusqlite::Error) -> String {
    match e.sqlite_error() {
        Some(error) if error.code == ErrorCode::SystemIoFailure => error.to_string(),
        Some(error) if error.code == ErrorCode::DatabaseBusy => {
            "another process has the database open".into()
        }
        _ => e.to_string(),
    }
}

/// Returns `true` if an SQLite error, or an unexpected type of a value, shows that the content was changed.
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

/// Returns `true` if the disk is full. A write that fails with ENOSPC is SQLITE_FULL. Some file systems
/// report a full disk only at the flush, or with another errno. SQLite reports these as I/O errors
/// (sqlite.org/rescode.html).
fn is_full(e: &rusqlite::Error) -> bool {
    let Some(error) = e.sqlite_error() else { return false };
    let io = [ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_IOERR_FSYNC];
    error.code == ErrorCode::DiskFull || io.contains(&error.extended_code)
}

/// Creates the error for a damaged database.
pub(super) fn damaged(path: &Path, what: impl Into<String>) -> StoreError {
    StoreError::Corrupt { path: path.display().to_string(), what: what.into(), remedy: remedy(path) }
}

/// Returns the remedy for lost records. Moving only the database away does not help: volumes without a
/// database are an error, because a new database would delete them all.
fn remedy(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    format!(
        "stop the daemon and restore a backup of {name} (remove {name}-wal first unless it belongs to the backup); \
         without a backup the image caches of this host are lost: move {name}, {name}-wal and the directory tenants \
         out of the state directory, and order them again"
    )
}
