//! Where records are kept: compare-and-swap on one record, and nothing else, so that a database on this host and the store
//! of a cluster can both be one. The same test suite runs on each.

pub mod sqlite;
#[cfg(feature = "testing")]
pub mod suite;

use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;

use super::record::Record;
use larder_model::class::Class;
use larder_model::image_cache::{CacheId, CacheName, TenantName};
use larder_sys::clock::guard::Noted;

/// Most idempotency keys that are kept for one tenant; a new one pushes out the oldest, so that a tenant that creates and
/// removes without end cannot fill the disk with answers.
pub const MAX_KEYS_PER_TENANT: usize = 1000;

/// A record and the version it was read at.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Grows with every change of this record. Means nothing but equal or not.
    pub version: u64,
    /// The record.
    pub record: Record,
}

/// What a new record must leave room for; checked in the same step that writes it.
#[derive(Clone, Copy, Debug)]
pub struct Admission {
    /// Most records of the tenant.
    pub max_per_tenant: usize,
    /// GiB that the records of the tenant may reserve together ([`Record::reserved_gib`]).
    pub tenant_space: TenantSpace,
    /// GiB that all records of this host may reserve together ([`Record::reserved_gib`]).
    pub capacity_gib: u64,
}

/// The space of one tenant.
#[derive(Clone, Copy, Debug)]
pub struct TenantSpace {
    /// GiB that the tenant may use; `None` is no limit.
    pub max_gib: Option<u64>,
    /// GiB that are kept for archives that the tenant is sending and that no record has reserved.
    pub promised_gib: u64,
}

impl TenantSpace {
    /// No limit.
    pub const UNLIMITED: TenantSpace = TenantSpace { max_gib: None, promised_gib: 0 };

    /// Checks whether the tenant may use `need_gib` beside the `reserved_gib` of its records.
    ///
    /// # Errors
    /// [`StoreError::TenantFull`].
    pub fn check(self, need_gib: u64, reserved_gib: u64) -> Result<(), StoreError> {
        let used_gib = reserved_gib.saturating_add(self.promised_gib);
        match self.max_gib {
            Some(max_gib) if used_gib.saturating_add(need_gib) > max_gib => {
                Err(StoreError::TenantFull { need_gib, used_gib, max_gib })
            }
            _ => Ok(()),
        }
    }
}

/// What a caller names a create by, so that a repeated one gets the first answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The caller's text.
    pub key: String,
    /// SHA-256 of the request that it came with.
    pub request: [u8; 32],
}

/// What a create gave.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "the large one is the common one, and is moved once")]
pub enum Created {
    /// The record was written.
    New(Stored),
    /// The key was used for the same request before: the record as it was written then, whatever became of it.
    Before(Box<Record>),
}

/// A store of records. Reads see every write that was answered before.
pub trait Store: fmt::Debug + Send + Sync {
    /// Writes a new record, if its name is free, the tenant's quota allows and the host has room. The identity that it comes
    /// with is a proposal: the record that is answered has the one that it has from then on. The key, if there is one,
    /// is kept with the answer in the same step, and asked first. Of several reasons to refuse, the first of these is
    /// reported: name, number of records, space of the tenant, capacity of the host. A refused create leaves no key.
    fn create(
        &self,
        record: Record,
        admission: Admission,
        key: Option<IdempotencyKey>,
    ) -> BoxFuture<'_, Result<Created, StoreError>>;

    /// One record.
    fn get(&self, id: CacheId) -> BoxFuture<'_, Result<Option<Stored>, StoreError>>;

    /// The records of one tenant, or of all, oldest first; those of one moment by ID.
    fn list(&self, tenant: Option<TenantName>) -> BoxFuture<'_, Result<Vec<Stored>, StoreError>>;

    /// All records, as this process saw them last. They can be older than what [`list`](Store::list) returns, and can lack the
    /// histories of layers. The caller must read a record again before it acts on it.
    fn survey(&self) -> BoxFuture<'_, Result<Vec<Arc<Stored>>, StoreError>> {
        Box::pin(async move { Ok(self.list(None).await?.into_iter().map(Arc::new).collect()) })
    }

    /// One record of this tenant; `None` for one of another.
    fn get_of(&self, tenant: TenantName, id: CacheId) -> BoxFuture<'_, Result<Option<Stored>, StoreError>> {
        Box::pin(async move { Ok(self.get(id).await?.filter(|stored| stored.record.tenant == tenant)) })
    }

    /// The records of one tenant as [`list`](Store::list) returns them, shared with other readers where the store can.
    fn list_of(&self, tenant: TenantName) -> BoxFuture<'_, Result<Arc<[Stored]>, StoreError>> {
        Box::pin(async move { Ok(self.list(Some(tenant)).await?.into()) })
    }

    /// Writes a record if its version is still the one that was read; gives the new version. Identity, tenant and name of a
    /// record never change. What the host has room for is not asked again: who lets a record reserve more asks first.
    fn replace(&self, stored: Stored) -> BoxFuture<'_, Result<Stored, StoreError>>;

    /// Removes a record if its version is still the one that was read. Its name is free from then on.
    fn remove(&self, id: CacheId, version: u64) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Forgets idempotency keys whose record was created before `time`.
    fn forget_keys(&self, time: DateTime<Utc>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// The clocks as they were noted last, for what becomes of them between two runs.
    fn noted(&self) -> BoxFuture<'_, Result<Option<Noted>, StoreError>>;

    /// Notes the clocks, in place of what was noted before: a clock that was wrong once is not believed for ever.
    fn note(&self, noted: Noted) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// A store cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The tenant has a record of that name.
    #[error("the name {0} is taken: delete that image cache, or choose another name")]
    NameTaken(CacheName),
    /// The tenant has as many records as it may.
    #[error("there are {have} image caches and {max} are allowed: delete one, or ask for a higher quota")]
    Quota {
        /// Records of the tenant.
        have: usize,
        /// Most that are allowed.
        max: usize,
    },
    /// The tenant has as much space as it may.
    #[error(
        "it needs {need_gib} GiB, and this tenant uses {used_gib} GiB of the {max_gib} GiB that it may use: delete an image cache, or ask for a higher quota"
    )]
    TenantFull {
        /// What the record asks for.
        need_gib: u64,
        /// What the records of the tenant reserve, and what is kept for its archives.
        used_gib: u64,
        /// Maximum that is allowed.
        max_gib: u64,
    },
    /// The disk of the host is spoken for.
    #[error("it needs {need_gib} GiB and {free_gib} GiB of {capacity_gib} GiB are free on this host")]
    Full {
        /// What the record asks for.
        need_gib: u64,
        /// What is not reserved.
        free_gib: u64,
        /// What there is in all.
        capacity_gib: u64,
    },
    /// The key was used for another request.
    #[error("the Idempotency-Key was used for another request: choose a new one")]
    KeyReused,
    /// Somebody changed the record meanwhile; read it again.
    #[error("the record of image cache {0} has changed meanwhile")]
    Changed(CacheId),
    /// There is no such record.
    #[error("there is no image cache {0}")]
    Gone(CacheId),
    /// The store has no place for records of this tenant.
    #[error("there is no namespace {0} in the cluster: whoever runs the cluster makes it")]
    NoNamespace(TenantName),
    /// The store cannot be reached, or is busy, for now.
    #[error("the records cannot be reached for now: {0}")]
    Unreachable(String),
    /// What is stored is not what was written.
    #[error("the records at {path} are damaged: {what}; {remedy}")]
    Corrupt {
        /// Where they lie.
        path: String,
        /// What was found.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// What lies there is whole and not for us.
    #[error("the records at {path} cannot be used: {what}; {remedy}")]
    Foreign {
        /// Where they lie.
        path: String,
        /// What was found.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// The store does not work.
    #[error("{doing} the records: {reason}")]
    Failed {
        /// What was being done.
        doing: &'static str,
        /// What went wrong.
        reason: String,
        /// Whether the disk is full.
        full: bool,
    },
}

impl StoreError {
    /// The class that decides status and retry.
    pub fn class(&self) -> Class {
        match self {
            StoreError::NameTaken(_) | StoreError::Changed(_) | StoreError::Foreign { .. } => Class::Conflict,
            StoreError::Quota { .. } | StoreError::TenantFull { .. } | StoreError::NoNamespace(_) => {
                Class::Denied
            }
            StoreError::Full { .. } => Class::NoSpace,
            StoreError::KeyReused => Class::Invalid,
            StoreError::Gone(_) => Class::NotFound,
            StoreError::Corrupt { .. } => Class::Corrupt,
            StoreError::Unreachable(_) | StoreError::Failed { full: true, .. } => Class::Transient,
            StoreError::Failed { .. } => Class::Internal,
        }
    }
}
