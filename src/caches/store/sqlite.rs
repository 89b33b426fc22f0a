//! The store of one host: an SQLite database beside the volumes.
//!
//! ```text
//! larder.db          records, answers by idempotency key, the clocks as they were noted last
//! larder.db-wal      what was committed and not yet moved into it (sqlite.org/wal.html); belongs to every backup
//! larder.db.new      a database that is being made; only a whole one gets the name
//! larder.db-reserve  nothing, of 1 MiB: room for deletions when the disk is full
//! ```
//!
//! One connection writes and reads, and keeps other processes out; callers wait for it in order, without a thread of their own. An answer is given after
//! the commit has been flushed (`synchronous=FULL`), so what was answered survives the loss of power as far as the disk
//! keeps what it was told to flush.
//!
//! Three guards stand against damage. SQLite's integrity check at start finds what is not a sound database. A checksum in
//! each row, over all of it, finds a sound database with other content than was written. The columns that SQL decides by
//! (tenant, name, status, reservation) must agree with the record. A row that fails is an error, never left out.

mod checksum;
mod fault;
mod migrations;
mod open;
mod reserve;
mod rows;
#[cfg(all(test, feature = "testing"))]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::Mutex;

use self::fault::Fault;
use self::reserve::Reserve;
use super::{Admission, Created, IdempotencyKey, MAX_KEYS_PER_TENANT, Store, StoreError, Stored};
use crate::caches::record::Record;
use crate::model::image_cache::{CacheId, Status, TenantName};
use crate::sys::clock::guard::Noted;

/// Records in an SQLite database. The file is held open until the last handle is gone.
#[derive(Clone)]
pub struct SqliteStore {
    path: PathBuf,
    reserve: Reserve,
    connection: Arc<Mutex<Connection>>,
}

impl SqliteStore {
    /// Opens the database at `path`, and makes it where there is none. Blocks: it reads every record.
    ///
    /// `has_volumes` says whether volumes of tenants lie beside it. Then a database must be there: a new one would know none
    /// of them, and what no record knows is swept.
    pub fn open(path: &Path, has_volumes: bool) -> Result<Self, StoreError> {
        let connection = open::open(path, has_volumes)?;
        let reserve = Reserve::of(path);
        reserve.keep();
        Ok(SqliteStore { path: path.to_owned(), reserve, connection: Arc::new(Mutex::new(connection)) })
    }

    /// Runs `work` on the connection, on a thread that may block. It runs to its end even if nobody waits any more.
    async fn run<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&mut Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let mut connection = Arc::clone(&self.connection).lock_owned().await;
        let done = tokio::task::spawn_blocking(move || work(&mut connection)).await;
        match done {
            Ok(done) => done.map_err(|fault| fault.into_error(&self.path, doing)),
            Err(e) => Err(StoreError::Failed { doing, reason: e.to_string(), full: false }),
        }
    }

    /// Runs `work` in a transaction that holds the right to write from its start, so that what it reads stays true.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run("writing", move |connection| transact(connection, work)).await
    }

    /// The same for what lets go of something: on a full disk it has the room that is kept for it.
    async fn write_off<T: Send + 'static>(
        &self,
        work: impl Fn(&Transaction<'_>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let reserve = self.reserve.clone();
        self.run("writing", move |connection| match transact(connection, &work) {
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
        admission: Admission,
        key: Option<IdempotencyKey>,
    ) -> BoxFuture<'_, Result<Created, StoreError>> {
        Box::pin(self.write(move |db| {
            if let Some(key) = &key
                && let Some((request, answer)) = rows::answer(db, &record.tenant, &key.key)?
            {
                return match request == key.request {
                    true => Ok(Created::Before(Box::new(answer))),
                    false => Err(StoreError::KeyReused.into()),
                };
            }
            admit(db, &record, admission)?;
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
        Box::pin(self.run("reading", move |db| rows::get(db, id)))
    }

    fn list(&self, tenant: Option<TenantName>) -> BoxFuture<'_, Result<Vec<Stored>, StoreError>> {
        Box::pin(self.run("reading", move |db| {
            let mut list = rows::list(db, tenant.as_ref())?;
            list.sort_by_key(|stored| (stored.record.created_at, stored.record.id));
            Ok(list)
        }))
    }

    fn replace(&self, stored: Stored) -> BoxFuture<'_, Result<Stored, StoreError>> {
        if stored.record.status == Status::Deleting {
            return Box::pin(self.write_off(move |db| replace(db, stored.clone())));
        }
        Box::pin(self.write(move |db| replace(db, stored)))
    }

    fn remove(&self, id: CacheId, version: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.write_off(move |db| {
            at_version(db, id, version)?;
            rows::delete(db, id)
        }))
    }

    fn forget_keys(&self, time: DateTime<Utc>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.write(move |db| rows::forget_before(db, time)))
    }

    fn noted(&self) -> BoxFuture<'_, Result<Option<Noted>, StoreError>> {
        Box::pin(self.run("reading", |db| rows::noted(db)))
    }

    fn note(&self, noted: Noted) -> BoxFuture<'_, Result<(), StoreError>> {
        let reserve = self.reserve.clone();
        Box::pin(self.write(move |db| {
            // Now and then, so that what was given away is there again once there is room.
            reserve.keep();
            rows::note(db, &noted)
        }))
    }
}

fn admit(db: &Connection, record: &Record, admission: Admission) -> Result<(), Fault> {
    if rows::name_taken(db, &record.tenant, &record.spec.name)? {
        return Err(StoreError::NameTaken(record.spec.name.clone()).into());
    }
    let have = rows::count(db, &record.tenant)?;
    if have >= admission.max_per_tenant {
        return Err(StoreError::Quota { have, max: admission.max_per_tenant }.into());
    }
    let capacity_gib = admission.capacity_gib;
    let free_gib = capacity_gib.saturating_sub(rows::reserved_gib(db)?);
    let need_gib = record.reserved_gib();
    if need_gib > free_gib {
        return Err(StoreError::Full { need_gib, free_gib, capacity_gib }.into());
    }
    Ok(())
}

fn replace(db: &Connection, stored: Stored) -> Result<Stored, Fault> {
    let present = at_version(db, stored.record.id, stored.version)?;
    if present.tenant != stored.record.tenant || present.spec.name != stored.record.spec.name {
        let reason = "tenant and name of a record never change".to_owned();
        return Err(StoreError::Failed { doing: "writing", reason, full: false }.into());
    }
    let stored = Stored { version: stored.version + 1, record: stored.record };
    rows::update(db, &stored)?;
    Ok(stored)
}

fn at_version(db: &Connection, id: CacheId, version: u64) -> Result<Record, Fault> {
    let present = rows::get(db, id)?.ok_or(StoreError::Gone(id))?;
    if present.version == version { Ok(present.record) } else { Err(StoreError::Changed(id).into()) }
}
