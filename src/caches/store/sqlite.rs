//! The store of one host: an SQLite database next to the volumes.
//!
//! ```text
//! larder.db          records, answers by idempotency key, the clocks saved last
//! larder.db-wal      committed data not yet in larder.db (sqlite.org/wal.html); part of every backup
//! larder.db.new      a database being created; renamed when it is complete
//! larder.db-reserve  1 MiB of padding: room for deletions when the disk is full
//! ```
//!
//! One connection writes and reads, and locks out other processes. Callers wait for their turn
//! (`caches::turns`) without blocking a thread. A repeated list without changes does not use the connection
//! (`snapshots`). A write is acknowledged after its commit has been flushed (`synchronous=FULL`), so it
//! survives a power loss if the disk honors flushes.
//!
//! Three checks detect damage. SQLite's integrity check at start finds an invalid database. A checksum over
//! each row finds a valid database with changed content. The columns that SQL uses (tenant, name, status,
//! reservation) must agree with the record. A row that fails a check is an error and is never skipped.

mod checksum;
mod fault;
mod migrations;
mod open;
mod reserve;
mod rows;
mod snapshots;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use rusqlite::{Connection, Transaction, TransactionBehavior};

use self::fault::Fault;
use self::reserve::Reserve;
use self::snapshots::Snapshots;
use super::{AdmissionDecision, Created, IdempotencyKey, MAX_KEYS_PER_TENANT, Store, StoreError, Stored};
use crate::caches::record::Record;
use crate::caches::turns::{Kind, Turns};
use larder_model::image_cache::{CacheId, Status, TenantName};
use larder_sys::clock::guard::SavedClock;

/// The records in an SQLite database. The file stays open until the last handle is dropped.
#[derive(Clone)]
pub struct SqliteStore {
    path: PathBuf,
    reserve: Reserve,
    turns: Turns,
    snapshots: Snapshots,
    /// Locked by the caller that has the turn.
    connection: Arc<Mutex<Connection>>,
}

impl SqliteStore {
    /// Opens the database at `path`, or creates it if it is missing. Blocks, because it reads every record.
    ///
    /// `has_volumes` is `true` if volumes of tenants exist next to it. Then the database must exist too: a
    /// new one would not contain their records, and volumes without a record are deleted.
    ///
    /// # Errors
    /// Fails if the database is damaged, missing while volumes exist, of another program or version, or in
    /// use.
    pub fn open(path: &Path, has_volumes: bool) -> Result<Self, StoreError> {
        let connection = open::open(path, has_volumes)?;
        let reserve = Reserve::of(path);
        reserve.keep();
        Ok(SqliteStore {
            path: path.to_owned(),
            reserve,
            turns: Turns::default(),
            snapshots: Snapshots::default(),
            connection: Arc::new(Mutex::new(connection)),
        })
    }

    /// Runs `work` on the connection, for a tenant or the daemon itself, on a blocking thread. It runs to
    /// completion even if the caller drops the future.
    async fn run<T: Send + 'static>(
        &self,
        kind: Kind,
        tenant: Option<TenantName>,
        work: impl FnOnce(&mut Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let turn = self.turns.take(kind, tenant).await;
        let connection = Arc::clone(&self.connection);
        let done = crate::blocking::spawn(move || {
            // A panic rolls its transaction back.
            let mut connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            let done = work(&mut connection);
            drop(connection);
            drop(turn);
            done
        });
        let doing = if kind == Kind::Write { "writing" } else { "reading" };
        match done.await {
            Ok(done) => done.map_err(|fault| fault.into_error(&self.path, doing)),
            Err(e) => Err(StoreError::Failed { doing, reason: e.to_string(), full: false }),
        }
    }

    /// Runs `work` in a transaction that has the write lock from its start, so that its reads remain valid.
    async fn write<T: Send + 'static>(
        &self,
        tenant: Option<TenantName>,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run(Kind::Write, tenant, move |connection| transact(connection, work)).await
    }

    /// Runs `work` in a write transaction that frees space. On a full disk it uses the reserve.
    async fn write_with_reserve<T: Send + 'static>(
        &self,
        tenant: Option<TenantName>,
        work: impl Fn(&Transaction<'_>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let reserve = self.reserve.clone();
        self.run(Kind::Write, tenant, move |connection| match transact(connection, &work) {
            Err(fault) if fault.is_full() && reserve.give() => transact(connection, &work),
            done => done,
        })
        .await
    }
}

fn transact<T>(
    connection: &mut Connection,
    work: impl FnOnce(&Transaction<'_>) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let result = work(&transaction)?;
    transaction.commit()?;
    Ok(result)
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Store for SqliteStore {
    fn create(
        &self,
        record: Record,
        admission: AdmissionDecision,
        key: Option<IdempotencyKey>,
    ) -> BoxFuture<'_, Result<Created, StoreError>> {
        let snapshots = self.snapshots.clone();
        Box::pin(self.write(Some(record.tenant.clone()), move |db| {
            if let Some(key) = &key
                && let Some((request, answer)) = rows::answer(db, &record.tenant, &key.key)?
            {
                return match request == key.request {
                    true => Ok(Created::Before(Box::new(answer))),
                    false => Err(StoreError::KeyReused.into()),
                };
            }
            admit(db, &record, admission)?;
            snapshots.forget(&record.tenant);
            let stored = Stored { version: 1, record };
            rows::insert(db, &stored)?;
            if let Some(key) = &key {
                rows::insert_answer(db, key, &stored.record)?;
                rows::forget_surplus(db, &stored.record.tenant, MAX_KEYS_PER_TENANT)?;
            }
            Ok(Created::New(stored))
        }))
    }

    fn get(&self, id: CacheId) -> BoxFuture<'_, Result<Option<Stored>, StoreError>> {
        Box::pin(self.run(Kind::Get, None, move |db| rows::get(db, id)))
    }

    fn get_of(&self, tenant: TenantName, id: CacheId) -> BoxFuture<'_, Result<Option<Stored>, StoreError>> {
        Box::pin(async move {
            if let Some(records) = self.snapshots.find(&tenant) {
                return Ok(records.iter().find(|stored| stored.record.id == id).cloned());
            }
            let stored = self.run(Kind::Get, Some(tenant.clone()), move |db| rows::get(db, id)).await?;
            Ok(stored.filter(|stored| stored.record.tenant == tenant))
        })
    }

    fn list(&self, tenant: Option<TenantName>) -> BoxFuture<'_, Result<Vec<Stored>, StoreError>> {
        Box::pin(self.run(Kind::List, tenant.clone(), move |db| sorted(db, tenant.as_ref())))
    }

    fn list_of(&self, tenant: TenantName) -> BoxFuture<'_, Result<Arc<[Stored]>, StoreError>> {
        Box::pin(async move {
            if let Some(records) = self.snapshots.find(&tenant) {
                return Ok(records);
            }
            let snapshots = self.snapshots.clone();
            self.run(Kind::List, Some(tenant.clone()), move |db| {
                // Another waiter might have read the same list.
                if let Some(records) = snapshots.find(&tenant) {
                    return Ok(records);
                }
                let records = Arc::from(sorted(db, Some(&tenant))?);
                snapshots.keep(tenant, &records);
                Ok(records)
            })
            .await
        })
    }

    fn replace(&self, stored: Stored) -> BoxFuture<'_, Result<Stored, StoreError>> {
        let tenant = stored.record.tenant.clone();
        let snapshots = self.snapshots.clone();
        if stored.record.status == Status::Deleting {
            return Box::pin(
                self.write_with_reserve(Some(tenant), move |db| replace(db, &snapshots, stored.clone())),
            );
        }
        Box::pin(self.write(Some(tenant), move |db| replace(db, &snapshots, stored)))
    }

    fn remove(&self, id: CacheId, version: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        let snapshots = self.snapshots.clone();
        Box::pin(self.write_with_reserve(None, move |db| {
            snapshots.forget(&at_version(db, id, version)?.tenant);
            rows::delete(db, id)
        }))
    }

    fn forget_keys(&self, time: DateTime<Utc>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.write(None, move |db| rows::forget_before(db, time)))
    }

    fn noted(&self) -> BoxFuture<'_, Result<Option<SavedClock>, StoreError>> {
        Box::pin(self.run(Kind::Get, None, |db| rows::noted(db)))
    }

    fn note(&self, noted: SavedClock) -> BoxFuture<'_, Result<(), StoreError>> {
        let reserve = self.reserve.clone();
        Box::pin(self.write(None, move |db| {
            // Recreates the reserve after it was used, once there is room.
            reserve.keep();
            rows::note(db, &noted)
        }))
    }
}

fn admit(db: &Connection, record: &Record, admission: AdmissionDecision) -> Result<(), Fault> {
    if rows::name_taken(db, &record.tenant, &record.spec.name)? {
        return Err(StoreError::NameTaken(record.spec.name.clone()).into());
    }
    let limits = admission.limits()?;
    let need_gib = record.reserved_gib();
    let (have, own_gib) = (rows::count(db, &record.tenant)?, rows::reserved_gib(db, Some(&record.tenant))?);
    limits.check_tenant(need_gib, have, own_gib)?;
    limits.check_host(need_gib, rows::reserved_gib(db, None)?)?;
    Ok(())
}

/// Returns the records of a tenant, or of all, in the order of [`Store::list`].
fn sorted(db: &Connection, tenant: Option<&TenantName>) -> Result<Vec<Stored>, Fault> {
    let mut list = rows::list(db, tenant)?;
    list.sort_by_key(|stored| (stored.record.created_at, stored.record.id));
    Ok(list)
}

fn replace(db: &Connection, snapshots: &Snapshots, stored: Stored) -> Result<Stored, Fault> {
    let present = at_version(db, stored.record.id, stored.version)?;
    if present.tenant != stored.record.tenant || present.spec.name != stored.record.spec.name {
        let reason = "tenant and name of a record never change".to_owned();
        return Err(StoreError::Failed { doing: "writing", reason, full: false }.into());
    }
    snapshots.forget(&stored.record.tenant);
    let stored = Stored { version: stored.version + 1, record: stored.record };
    rows::update(db, &stored)?;
    Ok(stored)
}

fn at_version(db: &Connection, id: CacheId, version: u64) -> Result<Record, Fault> {
    let present = rows::get(db, id)?.ok_or(StoreError::Gone(id))?;
    if present.version == version { Ok(present.record) } else { Err(StoreError::Changed(id).into()) }
}
