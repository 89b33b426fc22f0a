//! The store of records: compare-and-swap on single records. The interface is small enough for both a
//! database on this host and the store of a cluster. The same test suite runs on each.

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
use larder_sys::clock::guard::SavedClock;

/// Maximum number of idempotency keys per tenant. A new key replaces the oldest, so a tenant that keeps
/// creating and deleting caches cannot fill the disk with answers.
pub const MAX_KEYS_PER_TENANT: usize = 1000;

/// A record and the version at which it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Changes with every write of this record. Compare versions only for equality.
    pub version: u64,
    /// The record as read.
    pub record: Record,
}

/// The decision whether a new record can be written. The caller makes it, because no store has access to the
/// build queue or to the requests. A repeated create gets its first answer in any case.
#[derive(Clone, Copy, Debug)]
pub enum AdmissionDecision {
    /// The record is written if it fits these limits.
    Open(Limits),
    /// No build can be queued: [`StoreError::QueueFull`].
    QueueFull,
    /// The request was sent before and must not have a second effect: [`StoreError::Replayed`].
    Replayed,
}

impl AdmissionDecision {
    /// Returns the limits that a new record must fit.
    ///
    /// # Errors
    /// Returns the refusal if no new record can be written.
    pub fn limits(self) -> Result<Limits, StoreError> {
        match self {
            AdmissionDecision::Open(limits) => Ok(limits),
            AdmissionDecision::QueueFull => Err(StoreError::QueueFull),
            AdmissionDecision::Replayed => Err(StoreError::Replayed),
        }
    }
}

/// Limits that a new record must fit. The store checks them in the transaction that writes the record.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of records of the tenant.
    pub max_per_tenant: usize,
    /// GiB that the records of the tenant can reserve together ([`Record::reserved_gib`]).
    pub tenant_space: TenantSpace,
    /// GiB that all records of this host can reserve together ([`Record::reserved_gib`]).
    pub capacity_gib: u64,
    /// GiB of the capacity that are promised to uploads and not yet reserved by a record.
    pub promised_gib: u64,
}

impl Limits {
    /// Checks whether a tenant with `have` records, which reserve `reserved_gib`, can have one more.
    ///
    /// # Errors
    /// Returns [`StoreError::Quota`] or [`StoreError::TenantFull`] if it cannot.
    pub fn check_tenant(&self, need_gib: u64, have: usize, reserved_gib: u64) -> Result<(), StoreError> {
        if have >= self.max_per_tenant {
            return Err(StoreError::Quota { have, max: self.max_per_tenant });
        }
        self.tenant_space.check(need_gib, reserved_gib)
    }

    /// Checks whether the host has room for `need_gib` in addition to the `reserved_gib` of all records.
    ///
    /// # Errors
    /// Returns [`StoreError::Full`] if it has not.
    pub fn check_host(&self, need_gib: u64, reserved_gib: u64) -> Result<(), StoreError> {
        let (free_gib, capacity_gib) = (self.free_gib(reserved_gib), self.capacity_gib);
        if need_gib > free_gib { Err(StoreError::Full { need_gib, free_gib, capacity_gib }) } else { Ok(()) }
    }

    /// Returns the GiB of the host that are neither promised nor in the `reserved_gib` of all records.
    pub fn free_gib(&self, reserved_gib: u64) -> u64 {
        self.capacity_gib.saturating_sub(reserved_gib.saturating_add(self.promised_gib))
    }
}

/// The space that one tenant can use.
#[derive(Clone, Copy, Debug)]
pub struct TenantSpace {
    /// Maximum GiB of the tenant; `None` means no limit.
    pub max_gib: Option<u64>,
    /// GiB that are promised to the tenant's uploads and not yet reserved by a record.
    pub promised_gib: u64,
}

impl TenantSpace {
    /// Space without a limit.
    pub const UNLIMITED: TenantSpace = TenantSpace { max_gib: None, promised_gib: 0 };

    /// Checks whether the tenant can use `need_gib` in addition to the `reserved_gib` of its records.
    ///
    /// # Errors
    /// Returns [`StoreError::TenantFull`] if it cannot.
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

/// A key chosen by the caller, so that a repeated create returns the first answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The text that the caller chose.
    pub key: String,
    /// SHA-256 of the request that the key was sent with.
    pub request: [u8; 32],
}

/// The result of a create.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "the large one is the common one, and is moved once")]
pub enum Created {
    /// The record was written.
    New(Stored),
    /// The key was used for the same request before. This is the record as it was written then, whatever its
    /// state is now.
    Before(Box<Record>),
}

/// A store of records. Reads see every acknowledged write.
pub trait Store: fmt::Debug + Send + Sync {
    /// Writes a new record if its name is free, admission is open, the tenant's quota allows it and the host
    /// has room. The record's identity is a proposal; the returned record has the final one. The key, if any,
    /// is looked up first and is stored with the answer in the same transaction. If there are several reasons
    /// to refuse, the first of these is reported: name, closed admission, number of records, space of the
    /// tenant, capacity of the host. A refused create stores no key.
    fn create(
        &self,
        record: Record,
        admission: AdmissionDecision,
        key: Option<IdempotencyKey>,
    ) -> BoxFuture<'_, Result<Created, StoreError>>;

    /// Reads one record.
    fn get(&self, id: CacheId) -> BoxFuture<'_, Result<Option<Stored>, StoreError>>;

    /// Lists the records of one tenant, or of all, by creation time and then by ID.
    fn list(&self, tenant: Option<TenantName>) -> BoxFuture<'_, Result<Vec<Stored>, StoreError>>;

    /// Returns all records as this process last saw them. They can be older than those of
    /// [`list`](Store::list), and can lack the history of layers. The caller must read a record again before
    /// it acts on it.
    fn survey(&self) -> BoxFuture<'_, Result<Vec<Arc<Stored>>, StoreError>> {
        Box::pin(async move { Ok(self.list(None).await?.into_iter().map(Arc::new).collect()) })
    }

    /// Reads one record of this tenant. `None` if it belongs to another tenant.
    fn get_of(&self, tenant: TenantName, id: CacheId) -> BoxFuture<'_, Result<Option<Stored>, StoreError>> {
        Box::pin(async move { Ok(self.get(id).await?.filter(|stored| stored.record.tenant == tenant)) })
    }

    /// Lists the records of one tenant like [`list`](Store::list), shared with other readers if the store
    /// can.
    fn list_of(&self, tenant: TenantName) -> BoxFuture<'_, Result<Arc<[Stored]>, StoreError>> {
        Box::pin(async move { Ok(self.list(Some(tenant)).await?.into()) })
    }

    /// Writes a record if its version has not changed, and returns it with the new version. Identity, tenant
    /// and name of a record never change. This does not check capacity: a caller that lets a record reserve
    /// more must check first.
    fn replace(&self, stored: Stored) -> BoxFuture<'_, Result<Stored, StoreError>>;

    /// Deletes a record if its version has not changed. This frees its name.
    fn remove(&self, id: CacheId, version: u64) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Deletes idempotency keys whose record was created before `time`.
    fn forget_keys(&self, time: DateTime<Utc>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Returns the clocks saved last, to measure the time between two runs.
    fn noted(&self) -> BoxFuture<'_, Result<Option<SavedClock>, StoreError>>;

    /// Saves the clocks, replacing the saved ones, so that a wrong clock is not trusted permanently.
    fn note(&self, noted: SavedClock) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// The reason why the store refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The tenant has a record of that name.
    #[error("the name {0} is taken: delete that image cache, or choose another name")]
    NameTaken(CacheName),
    /// The tenant has reached its maximum number of records.
    #[error("there are {have} image caches and {max} are allowed: delete one, or ask for a higher quota")]
    Quota {
        /// Number of records of the tenant.
        have: usize,
        /// Maximum number allowed.
        max: usize,
    },
    /// The tenant has reached its space limit.
    #[error(
        "the image cache needs {need_gib} GiB, and this tenant uses {used_gib} GiB of its {max_gib} GiB: delete an image cache, or ask for a higher quota"
    )]
    TenantFull {
        /// GiB that the record needs.
        need_gib: u64,
        /// GiB reserved by the tenant's records and promised to its uploads.
        used_gib: u64,
        /// Maximum GiB allowed.
        max_gib: u64,
    },
    /// The capacity of the host is reserved.
    #[error(
        "the image cache needs {need_gib} GiB, and {free_gib} GiB of {capacity_gib} GiB are free on this host"
    )]
    Full {
        /// GiB that the record needs.
        need_gib: u64,
        /// Unreserved GiB.
        free_gib: u64,
        /// Total GiB of the host.
        capacity_gib: u64,
    },
    /// The build queue has no place for the record's build.
    #[error("the build queue is full: try again later")]
    QueueFull,
    /// The request was sent before, and no record answers it.
    #[error("this request was used before: send a new one")]
    Replayed,
    /// The key was used for another request.
    #[error("the Idempotency-Key was used for another request: choose a new one")]
    KeyReused,
    /// The record was changed in the meantime and must be read again.
    #[error("the record of image cache {0} was changed by a concurrent request")]
    Changed(CacheId),
    /// The record does not exist.
    #[error("there is no image cache {0}")]
    Gone(CacheId),
    /// The cluster has no namespace for records of this tenant.
    #[error("there is no namespace {0} in the cluster: ask the cluster administrator to create it")]
    NoNamespace(TenantName),
    /// The store is unreachable or busy.
    #[error("the records are temporarily unreachable: {0}")]
    Unreachable(String),
    /// The stored data is damaged.
    #[error("the records at {path} are damaged: {what}; {remedy}")]
    Corrupt {
        /// Path of the store.
        path: String,
        /// The damage found.
        what: String,
        /// The recommended action.
        remedy: String,
    },
    /// The data is intact but is not a store that this version can use.
    #[error("the records at {path} cannot be used: {what}; {remedy}")]
    Foreign {
        /// Path of the store.
        path: String,
        /// The data found.
        what: String,
        /// The recommended action.
        remedy: String,
    },
    /// The store failed.
    #[error("{doing} the records: {reason}")]
    Failed {
        /// The operation that failed.
        doing: &'static str,
        /// The cause.
        reason: String,
        /// `true` if the disk is full.
        full: bool,
    },
}

impl StoreError {
    /// Returns the class, which determines the HTTP status and whether to retry.
    pub fn class(&self) -> Class {
        match self {
            StoreError::NameTaken(_) | StoreError::Changed(_) | StoreError::Foreign { .. } => Class::Conflict,
            StoreError::Quota { .. }
            | StoreError::TenantFull { .. }
            | StoreError::NoNamespace(_)
            | StoreError::Replayed => Class::Denied,
            StoreError::QueueFull => Class::Busy,
            StoreError::Full { .. } => Class::NoSpace,
            StoreError::KeyReused => Class::Invalid,
            StoreError::Gone(_) => Class::NotFound,
            StoreError::Corrupt { .. } => Class::Corrupt,
            StoreError::Unreachable(_) | StoreError::Failed { full: true, .. } => Class::Transient,
            StoreError::Failed { .. } => Class::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promised_space_is_not_free() {
        let tenant_space = TenantSpace { max_gib: Some(50), promised_gib: 10 };
        let limits = Limits { max_per_tenant: 2, tenant_space, capacity_gib: 100, promised_gib: 30 };
        limits.check_tenant(20, 1, 20).unwrap();
        let many = limits.check_tenant(1000, 2, 0).unwrap_err();
        assert!(matches!(many, StoreError::Quota { have: 2, max: 2 }), "{many}");
        let full = limits.check_tenant(21, 1, 20).unwrap_err();
        assert!(matches!(full, StoreError::TenantFull { need_gib: 21, used_gib: 30, max_gib: 50 }), "{full}");
        limits.check_host(20, 50).unwrap();
        let full = limits.check_host(21, 50).unwrap_err();
        assert!(matches!(full, StoreError::Full { need_gib: 21, free_gib: 20, capacity_gib: 100 }), "{full}");
        assert_eq!(limits.free_gib(1000), 0);
    }
}
