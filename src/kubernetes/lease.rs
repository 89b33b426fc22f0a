//! A Lease of `coordination.k8s.io` with one holder at a time, by compare-and-swap on its resourceVersion.
//!
//! The clocks of machines are not compared. A lease is expired when it was seen unchanged for its whole
//! duration (as in client-go, tools/leaderelection). A holder stops well before others can consider the lease
//! expired.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease as Object, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::sync::Mutex;

use super::fault::{Fault, opt, request};
use super::names::MANAGER;

/// A lease from the point of view of one process.
#[derive(Debug)]
pub struct Lease {
    api: Api<Object>,
    name: String,
    /// Identity of this process.
    identity: String,
    duration: Duration,
    seen: Mutex<Option<ObservedVersion>>,
}

/// The result of an attempt to acquire a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseAttempt {
    /// This process holds the lease.
    Acquired,
    /// Another process holds the lease.
    Held,
    /// The lease changed during the attempt. The caller must try again to learn its holder.
    Raced,
}

/// A version of a lease that another process holds, and the time at which it was first seen.
#[derive(Debug)]
struct ObservedVersion {
    version: Option<String>,
    since: Instant,
}

impl Lease {
    /// Returns the lease `name`, which stays valid for `duration` after each renewal.
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str, duration: Duration) -> Self {
        Lease {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity: identity.to_owned(),
            duration,
            seen: Mutex::default(),
        }
    }

    /// Returns how long the lease stays valid after a renewal.
    pub fn duration(&self) -> Duration {
        self.duration
    }

    /// Acquires or renews the lease, unless another process holds it.
    ///
    /// # Errors
    /// A request failed.
    pub async fn try_acquire(&self) -> Result<LeaseAttempt, Fault> {
        let doing = format!("reading the lease {}", self.name);
        let Some(present) = opt(request!(&doing, self.api.get(&self.name)))? else {
            return self.create().await;
        };
        let spec = present.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().filter(|holder| !holder.is_empty());
        let is_own = holder == Some(&self.identity);
        if holder.is_some() && !is_own && !self.is_expired(&present, &spec).await {
            return Ok(LeaseAttempt::Held);
        }
        let now = now();
        let taken = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(self.seconds()),
            renew_time: Some(now.clone()),
            acquire_time: if is_own { spec.acquire_time } else { Some(now) },
            lease_transitions: Some(spec.lease_transitions.unwrap_or(0) + i32::from(!is_own)),
            ..LeaseSpec::default()
        };
        self.replace(Object { spec: Some(taken), ..present }).await
    }

    /// Releases the lease if this process holds it.
    ///
    /// # Errors
    /// A request failed.
    pub async fn release(&self) -> Result<(), Fault> {
        let doing = format!("reading the lease {}", self.name);
        let Some(mut present) = opt(request!(&doing, self.api.get(&self.name)))? else { return Ok(()) };
        let spec = present.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() == Some(&self.identity) {
            // Same as client-go (tools/leaderelection, release): no holder and a short duration, so that no
            // process waits.
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
            self.replace(present).await?;
        }
        Ok(())
    }

    /// Reports whether the lease has not changed for its whole duration.
    async fn is_expired(&self, present: &Object, spec: &LeaseSpec) -> bool {
        let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0);
        let mut seen = self.seen.lock().await;
        match &*seen {
            Some(before) if before.version == present.metadata.resource_version => {
                before.since.elapsed() >= Duration::from_secs(seconds)
            }
            _ => {
                *seen = Some(ObservedVersion {
                    version: present.metadata.resource_version.clone(),
                    since: Instant::now(),
                });
                false
            }
        }
    }

    async fn create(&self) -> Result<LeaseAttempt, Fault> {
        let now = now();
        let object = Object {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: Some(self.seconds()),
                acquire_time: Some(now.clone()),
                renew_time: Some(now),
                lease_transitions: Some(0),
                ..LeaseSpec::default()
            }),
        };
        let doing = format!("creating the lease {}", self.name);
        match request!(&doing, self.api.create(&parameters(), &object)) {
            Ok(_) => Ok(LeaseAttempt::Acquired),
            Err(fault) if fault.already_exists() => Ok(LeaseAttempt::Raced),
            Err(fault) => Err(fault),
        }
    }

    async fn replace(&self, object: Object) -> Result<LeaseAttempt, Fault> {
        let doing = format!("writing the lease {}", self.name);
        match request!(&doing, self.api.replace(&self.name, &parameters(), &object)) {
            Ok(_) => Ok(LeaseAttempt::Acquired),
            Err(fault) if fault.is_conflict() || fault.is_not_found() => Ok(LeaseAttempt::Raced),
            Err(fault) => Err(fault),
        }
    }

    fn seconds(&self) -> i32 {
        i32::try_from(self.duration.as_secs()).unwrap_or(i32::MAX).max(1)
    }
}

fn parameters() -> PostParams {
    PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() }
}

fn now() -> MicroTime {
    MicroTime(Timestamp::now())
}
