//! The database of snapshots, with a row for each. A single connection excludes other processes. Changes are
//! flushed before a response.

mod open;

use std::path::Path;

use chrono::{DateTime, Utc};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Params, Row, Transaction, TransactionBehavior, params};

use super::error::{Error, sql};
use super::{Info, Kind, Labels, ON_VOLUME, Usage, YES};
use larder_model::chain::ChainId;

/// A row of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) id: i64,
    pub(super) info: Info,
    /// Chain ID of a layer whose files are on a volume.
    pub(super) chain: Option<ChainId>,
    pub(super) usage: Usage,
}

impl Record {
    /// Returns the public properties of the snapshot.
    pub(super) fn into_info(self) -> Info {
        let Record { mut info, chain, .. } = self;
        if chain.is_some() {
            info.labels.insert(ON_VOLUME.to_owned(), YES.to_owned());
        }
        info
    }
}

/// The connection to the database.
#[derive(Debug)]
pub(super) struct Store(Connection);

const COLUMNS: &str = "s.id, s.name, ifnull(p.name, ''), s.kind, s.created, s.updated, s.labels, s.chain, s.size, s.inodes \
    FROM snapshot s LEFT JOIN snapshot p ON p.id = s.parent";

impl Store {
    /// Opens the database at `path`, and creates it if it is missing.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        open::open(path).map(Store)
    }

    /// Runs `work` in a transaction, and commits it on success.
    pub(super) fn write<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let behavior = TransactionBehavior::Immediate;
        let transaction = self.0.transaction_with_behavior(behavior).map_err(sql("writing"))?;
        let done = work(&transaction)?;
        transaction.commit().map_err(sql("writing"))?;
        Ok(done)
    }

    /// Returns the connection for reading.
    pub(super) fn read(&self) -> &Connection {
        &self.0
    }
}

/// Returns the snapshot `name`, or an error if it does not exist.
pub(super) fn get(db: &Connection, name: &str) -> Result<Record, Error> {
    find(db, name)?.ok_or_else(|| Error::NotFound(name.to_owned()))
}

/// Returns the snapshot `name`. `None` if it does not exist.
pub(super) fn find(db: &Connection, name: &str) -> Result<Option<Record>, Error> {
    let query = format!("SELECT {COLUMNS} WHERE s.name = ?1");
    let mut statement = db.prepare(&query).map_err(sql("reading"))?;
    statement.query_row([name], row).optional().map_err(sql("reading"))
}

/// Returns all snapshots, parents before children.
pub(super) fn all(db: &Connection) -> Result<Vec<Record>, Error> {
    query_all(db, &format!("SELECT {COLUMNS} ORDER BY s.id"), [])
}

/// Returns the snapshots whose files are on volumes.
pub(super) fn on_volumes(db: &Connection) -> Result<Vec<Record>, Error> {
    query_all(db, &format!("SELECT {COLUMNS} WHERE s.chain IS NOT NULL ORDER BY s.id"), [])
}

/// Returns the snapshots of the layer `chain` of a volume.
pub(super) fn layers(db: &Connection, chain: &ChainId) -> Result<Vec<Record>, Error> {
    query_all(db, &format!("SELECT {COLUMNS} WHERE s.chain = ?1 ORDER BY s.id"), [chain.to_string()])
}

/// Returns the ancestors of a snapshot, its parent first.
pub(super) fn ancestors(db: &Connection, name: &str) -> Result<Vec<Record>, Error> {
    let query = format!(
        "WITH RECURSIVE up (id, depth) AS (
             SELECT parent, 1 FROM snapshot WHERE name = ?1 AND parent IS NOT NULL
             UNION ALL
             SELECT snapshot.parent, up.depth + 1 FROM snapshot JOIN up USING (id) WHERE snapshot.parent IS NOT NULL
         ) SELECT {COLUMNS} JOIN up ON up.id = s.id ORDER BY up.depth"
    );
    query_all(db, &query, [name])
}

fn query_all(db: &Connection, query: &str, values: impl Params) -> Result<Vec<Record>, Error> {
    let read = || -> rusqlite::Result<Vec<Record>> { db.prepare(query)?.query_map(values, row)?.collect() };
    read().map_err(sql("reading"))
}

/// Inserts a row whose parent is the row `parent`.
pub(super) fn insert(db: &Connection, record: &Record, parent: Option<i64>) -> Result<(), Error> {
    let info = &record.info;
    let query = "INSERT INTO snapshot (id, name, kind, parent, chain, created, updated, labels) \
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    let values = params![
        record.id,
        info.name,
        number(info.kind),
        parent,
        record.chain.as_ref().map(ToString::to_string),
        nanoseconds(info.created),
        nanoseconds(info.updated),
        text(&info.labels),
    ];
    match db.execute(query, values) {
        Err(e) if is_taken(&e) => Err(Error::Exists(format!("snapshot {:?}", info.name))),
        done => done.map(drop).map_err(sql("writing")),
    }
}

/// Updates name, kind, times, labels and usage of an existing row.
pub(super) fn replace(db: &Connection, record: &Record) -> Result<(), Error> {
    let (info, usage) = (&record.info, record.usage);
    let query = "UPDATE snapshot SET name = ?2, kind = ?3, created = ?4, updated = ?5, labels = ?6, size = ?7, inodes = ?8 \
        WHERE id = ?1";
    let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let values = params![
        record.id,
        info.name,
        number(info.kind),
        nanoseconds(info.created),
        nanoseconds(info.updated),
        text(&info.labels),
        count(usage.size),
        count(usage.inodes),
    ];
    match db.execute(query, values) {
        Err(e) if is_taken(&e) => Err(Error::Exists(format!("snapshot {:?}", info.name))),
        done => done.map(drop).map_err(sql("writing")),
    }
}

/// Reports whether the snapshot has children.
pub(super) fn has_children(db: &Connection, id: i64) -> Result<bool, Error> {
    let query = "SELECT EXISTS (SELECT 1 FROM snapshot WHERE parent = ?1)";
    db.query_row(query, [id], |row| row.get(0)).map_err(sql("reading"))
}

/// Deletes a row without children.
pub(super) fn remove(db: &Connection, id: i64) -> Result<(), Error> {
    db.execute("DELETE FROM snapshot WHERE id = ?1", [id]).map(drop).map_err(sql("writing"))
}

fn is_taken(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|error| error.extended_code);
    code == Some(rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE)
}

fn row(row: &Row<'_>) -> rusqlite::Result<Record> {
    let odd = |column, why: String| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, why.into());
    let kind = match row.get(3)? {
        1 => Kind::View,
        2 => Kind::Active,
        3 => Kind::Committed,
        other => return Err(rusqlite::Error::IntegralValueOutOfRange(3, other)),
    };
    let labels: String = row.get(6)?;
    let chain: Option<String> = row.get(7)?;
    let chain = chain.map(|chain| serde_json::from_value(chain.into())).transpose();
    let count = |column| row.get::<_, i64>(column).map(|count| u64::try_from(count).unwrap_or(0));
    Ok(Record {
        id: row.get(0)?,
        info: Info {
            name: row.get(1)?,
            parent: row.get(2)?,
            kind,
            created: DateTime::from_timestamp_nanos(row.get(4)?),
            updated: DateTime::from_timestamp_nanos(row.get(5)?),
            labels: serde_json::from_str(&labels).map_err(|e| odd(6, e.to_string()))?,
        },
        chain: chain.map_err(|e| odd(7, e.to_string()))?,
        usage: Usage { size: count(8)?, inodes: count(9)? },
    })
}

/// Returns the number of the kind in containerd's API.
fn number(kind: Kind) -> i64 {
    match kind {
        Kind::View => 1,
        Kind::Active => 2,
        Kind::Committed => 3,
    }
}

/// Converts a time. Times outside the range of the format do not occur.
fn nanoseconds(time: DateTime<Utc>) -> i64 {
    time.timestamp_nanos_opt().unwrap_or_default()
}

fn text(labels: &Labels) -> String {
    // A map of strings can always be written as JSON.
    serde_json::to_string(labels).unwrap_or_default()
}
