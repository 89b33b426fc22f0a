//! Reads and writes rows. Each row is verified when it is read.

use chrono::{DateTime, Utc};
use rusqlite::{Connection, OptionalExtension as _, Row, params, params_from_iter};

use super::checksum;
use super::fault::Fault;
use crate::caches::record::Record;
use crate::caches::store::{IdempotencyKey, StoreError, Stored};
use larder_model::image_cache::{CacheId, CacheName, TenantName};
use larder_sys::clock::guard::SavedClock;

const CACHE: &str = "SELECT id, tenant, name, status, reserved_gib, version, checksum, record FROM cache";
const ANSWER: &str = "SELECT tenant, key, used_at, request, checksum, record FROM answer";

/// Reads the record with this ID.
pub(super) fn get(db: &Connection, id: CacheId) -> Result<Option<Stored>, Fault> {
    let sql = format!("{CACHE} WHERE id = ?1");
    db.prepare(&sql)?.query([id.to_string()])?.next()?.map(stored).transpose()
}

/// Reads the records of a tenant, or all, in no order.
pub(super) fn list(db: &Connection, tenant: Option<&TenantName>) -> Result<Vec<Stored>, Fault> {
    let (filter, name) = match tenant {
        Some(tenant) => (" WHERE tenant = ?1", Some(tenant.as_str())),
        None => ("", None),
    };
    let mut statement = db.prepare(&format!("{CACHE}{filter}"))?;
    let mut rows = statement.query(params_from_iter(name))?;
    let mut list = Vec::new();
    while let Some(row) = rows.next()? {
        list.push(stored(row)?);
    }
    Ok(list)
}

/// Returns `true` if the tenant has a record of this name.
pub(super) fn name_taken(db: &Connection, tenant: &TenantName, name: &CacheName) -> Result<bool, Fault> {
    let sql = "SELECT EXISTS (SELECT 1 FROM cache WHERE tenant = ?1 AND name = ?2)";
    Ok(db.query_row(sql, [tenant.as_str(), name.as_str()], |row| row.get(0))?)
}

/// Counts the records of the tenant.
pub(super) fn count(db: &Connection, tenant: &TenantName) -> Result<usize, Fault> {
    let sql = "SELECT count(*) FROM cache WHERE tenant = ?1";
    let count: i64 = db.query_row(sql, [tenant.as_str()], |row| row.get(0))?;
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}

/// Returns the GiB that the records of one tenant reserve, or all records.
pub(super) fn reserved_gib(db: &Connection, tenant: Option<&TenantName>) -> Result<u64, Fault> {
    let sql = "SELECT ifnull(sum(reserved_gib), 0) FROM cache WHERE ?1 IS NULL OR tenant = ?1";
    let sum: i64 = db.query_row(sql, [tenant.map(TenantName::as_str)], |row| row.get(0))?;
    Ok(u64::try_from(sum).unwrap_or(u64::MAX))
}

/// Inserts a new record.
pub(super) fn insert(db: &Connection, stored: &Stored) -> Result<(), Fault> {
    let sql = "INSERT INTO cache (id, tenant, name, status, reserved_gib, version, checksum, record) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    write(db, sql, stored)
}

/// Replaces an older version of a record.
pub(super) fn update(db: &Connection, stored: &Stored) -> Result<(), Fault> {
    let sql = "UPDATE cache SET tenant = ?2, name = ?3, status = ?4, reserved_gib = ?5, version = ?6, checksum = ?7, \
               record = ?8 WHERE id = ?1";
    write(db, sql, stored)
}

fn write(db: &Connection, sql: &str, stored: &Stored) -> Result<(), Fault> {
    let record = &stored.record;
    let id = record.id.to_string();
    let json = json(record)?;
    let version = integer(stored.version)?;
    db.execute(
        sql,
        params![
            id,
            record.tenant.as_str(),
            record.spec.name.as_str(),
            record.status.to_string(),
            integer(record.reserved_gib())?,
            version,
            cache_checksum(&id, version, &json),
            json,
        ],
    )?;
    Ok(())
}

/// Deletes the row of a record.
pub(super) fn delete(db: &Connection, id: CacheId) -> Result<(), Fault> {
    db.execute("DELETE FROM cache WHERE id = ?1", [id.to_string()])?;
    Ok(())
}

/// Reads the request that a key was sent with, and the record that was its answer.
pub(super) fn answer(
    db: &Connection,
    tenant: &TenantName,
    key: &str,
) -> Result<Option<([u8; 32], Record)>, Fault> {
    let sql = format!("{ANSWER} WHERE tenant = ?1 AND key = ?2");
    db.prepare(&sql)?.query([tenant.as_str(), key])?.next()?.map(answered).transpose()
}

/// Stores a new record as the answer to a key.
pub(super) fn insert_answer(db: &Connection, key: &IdempotencyKey, record: &Record) -> Result<(), Fault> {
    let tenant = record.tenant.as_str();
    let used_at = record.created_at.timestamp_micros();
    let json = json(record)?;
    let checksum = answer_checksum(tenant, &key.key, used_at, &key.request, &json);
    let sql = "INSERT INTO answer (tenant, key, used_at, request, checksum, record) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    db.execute(sql, params![tenant, key.key, used_at, key.request, checksum, json])?;
    Ok(())
}

/// Deletes the oldest keys of a tenant, so that `most` remain.
pub(super) fn forget_surplus(db: &Connection, tenant: &TenantName, most: usize) -> Result<(), Fault> {
    let sql = "DELETE FROM answer WHERE rowid IN \
               (SELECT rowid FROM answer WHERE tenant = ?1 ORDER BY used_at DESC, rowid DESC LIMIT -1 OFFSET ?2)";
    db.execute(sql, params![tenant.as_str(), integer(most as u64)?])?;
    Ok(())
}

/// Deletes the keys of records that were created before `time`.
pub(super) fn forget_before(db: &Connection, time: DateTime<Utc>) -> Result<(), Fault> {
    db.execute("DELETE FROM answer WHERE used_at < ?1", [time.timestamp_micros()])?;
    Ok(())
}

/// Reads the clocks saved last.
pub(super) fn noted(db: &Connection) -> Result<Option<SavedClock>, Fault> {
    let row = db
        .query_row("SELECT noted, checksum FROM clock", [], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?))
        })
        .optional()?;
    let Some((noted, checksum)) = row else { return Ok(None) };
    if checksum != checksum::of("clock", &[noted.as_bytes()]) {
        return Err(Fault::Damaged("the saved clock does not match its checksum".into()));
    }
    let noted = serde_json::from_str(&noted);
    Ok(Some(noted.map_err(|e| Fault::Damaged(format!("the saved clock is malformed: {e}")))?))
}

/// Saves the clocks in their row.
pub(super) fn note(db: &Connection, noted: &SavedClock) -> Result<(), Fault> {
    let noted = serde_json::to_string(noted)
        .map_err(|e| Fault::Damaged(format!("the clock cannot be saved: {e}")))?;
    let checksum = checksum::of("clock", &[noted.as_bytes()]);
    db.execute(
        "INSERT OR REPLACE INTO clock (id, noted, checksum) VALUES (1, ?1, ?2)",
        params![noted, checksum],
    )?;
    Ok(())
}

/// Verifies every row of the database.
pub(super) fn verify_all(db: &Connection) -> Result<(), Fault> {
    let mut statement = db.prepare(CACHE)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        stored(row)?;
    }
    let mut statement = db.prepare(ANSWER)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        answered(row)?;
    }
    noted(db).map(drop)
}

fn stored(row: &Row<'_>) -> Result<Stored, Fault> {
    let id: String = row.get("id")?;
    let version: i64 = row.get("version")?;
    let json: String = row.get("record")?;
    let damaged =
        |why: &str| Fault::Damaged(format!("the record of image cache {} {why}", id.escape_debug()));
    if row.get::<_, Vec<u8>>("checksum")? != cache_checksum(&id, version, &json) {
        return Err(damaged("does not match its checksum"));
    }
    let record: Record = serde_json::from_str(&json).map_err(|e| damaged(&format!("is malformed: {e}")))?;
    let text = |column: &str| row.get::<_, String>(column);
    let agree = record.id.to_string() == id
        && record.tenant.as_str() == text("tenant")?
        && record.spec.name.as_str() == text("name")?
        && record.status.to_string() == text("status")?
        && integer(record.reserved_gib())? == row.get::<_, i64>("reserved_gib")?;
    match (agree, u64::try_from(version)) {
        (true, Ok(version)) => Ok(Stored { version, record }),
        _ => Err(damaged("does not match its columns")),
    }
}

fn answered(row: &Row<'_>) -> Result<([u8; 32], Record), Fault> {
    let tenant: String = row.get("tenant")?;
    let key: String = row.get("key")?;
    let used_at: i64 = row.get("used_at")?;
    let request: Vec<u8> = row.get("request")?;
    let json: String = row.get("record")?;
    // The key is chosen by the caller and might be confidential.
    let damaged =
        |why: String| Fault::Damaged(format!("a stored answer of tenant {} {why}", tenant.escape_debug()));
    if row.get::<_, Vec<u8>>("checksum")? != answer_checksum(&tenant, &key, used_at, &request, &json) {
        return Err(damaged("does not match its checksum".into()));
    }
    let record = serde_json::from_str(&json).map_err(|e| damaged(format!("is malformed: {e}")))?;
    let request = request.try_into().map_err(|_| damaged("has no hash of its request".into()))?;
    Ok((request, record))
}

fn cache_checksum(id: &str, version: i64, json: &str) -> [u8; 32] {
    checksum::of("cache", &[id.as_bytes(), &version.to_be_bytes(), json.as_bytes()])
}

fn answer_checksum(tenant: &str, key: &str, used_at: i64, request: &[u8], json: &str) -> [u8; 32] {
    let fields = [tenant.as_bytes(), key.as_bytes(), &used_at.to_be_bytes(), request, json.as_bytes()];
    checksum::of("answer", &fields)
}

fn json(record: &Record) -> Result<String, Fault> {
    serde_json::to_string(record).map_err(|e| unfit(e.to_string()))
}

fn integer(number: u64) -> Result<i64, Fault> {
    i64::try_from(number).map_err(|_| unfit(format!("{number} is too large")))
}

fn unfit(reason: String) -> Fault {
    StoreError::Failed { doing: "writing", reason, full: false }.into()
}
