//! Admission: conditions over several objects are checked and written by one request at a time.
//!
//! Invariant: [`Admission::run`] never runs two checks at the same time, in this process or in another one.
//! A ResourceQuota of the cluster is enforced independently of it.

use std::time::Duration;

use kube::Client;

use super::super::fault::Fault;
use super::super::lease::{Lease, LeaseAttempt};
use super::objects::Objects;
use crate::caches::record::Record;
use crate::caches::store::{Limits, StoreError};
use crate::caches::volumes::UNLIMITED;
use crate::kubernetes::crd::ImageCache;

/// Duration of the admission lease: another daemon can acquire it this long after its holder stopped.
const LEASE_DURATION: Duration = Duration::from_secs(10);
/// Interval between attempts to acquire the admission lease.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The lock of admission.
#[derive(Debug)]
pub(super) struct Admission {
    /// Serialises requests between processes.
    lease: Lease,
    /// Serialises requests in this process.
    mutex: tokio::sync::Mutex<()>,
}

impl Admission {
    /// `namespace` is Larder's own namespace. `identity` identifies this process.
    pub(super) fn new(client: Client, namespace: &str, identity: &str) -> Self {
        let lease = Lease::new(client, namespace, "larder-admission", identity, LEASE_DURATION);
        Admission { lease, mutex: tokio::sync::Mutex::default() }
    }

    /// Runs `request` while no other request is admitted.
    pub(super) async fn run<T>(
        &self,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let _locked = self.mutex.lock().await;
        self.acquire().await?;
        let done = request.await;
        // Release the lease now, so that the next daemon does not wait for its expiry.
        if let Err(fault) = self.lease.release().await {
            tracing::debug!("{fault}");
        }
        done
    }

    async fn acquire(&self) -> Result<(), Fault> {
        while self.lease.try_acquire().await? != LeaseAttempt::Acquired {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }
}

/// Checks whether a record fits the limits. `own` are the objects of its tenant, of which `have` count as its
/// image caches. `counted` is `true` if the object of the record is one of them.
pub(super) async fn check(
    objects: &Objects,
    limits: &Limits,
    record: &Record,
    (own, have): (&[ImageCache], usize),
    counted: bool,
) -> Result<(), StoreError> {
    let need_gib = record.reserved_gib();
    let others = |reserved_gib: u64| reserved_gib.saturating_sub(if counted { need_gib } else { 0 });
    limits.check_tenant(need_gib, have, others(reserved_by(objects, own)?))?;
    // Without a limit, the objects of other tenants are not listed.
    if limits.capacity_gib < UNLIMITED {
        let all = objects.list(None).await?;
        limits.check_host(need_gib, others(reserved_by(objects, &all)?))?;
    }
    Ok(())
}

/// Returns the GiB that objects reserve, including those that are not adopted yet.
fn reserved_by(objects: &Objects, list: &[ImageCache]) -> Result<u64, StoreError> {
    let mut reserved = 0;
    for object in list {
        reserved += match objects.read(object)? {
            Some(stored) => stored.record.reserved_gib(),
            None if object.status.is_none() => u64::from(object.spec.image_cache_size),
            None => 0,
        };
    }
    Ok(reserved)
}
