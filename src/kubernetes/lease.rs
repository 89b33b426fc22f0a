//! A Lease of `coordination.k8s.io`: one holder at a time, by compare-and-swap on its resourceVersion.
//!
//! Clocks of machines are not compared. A holder is gone when its lease was seen unchanged for as long as it is good
//! (as client-go has it, tools/leaderelection); and a holder stops well before others may think so.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease as Object, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::sync::Mutex;

use super::fault::{Fault, ask, opt};
use super::names::MANAGER;

/// A lease as one process sees it.
#[derive(Debug)]
pub struct Lease {
    api: Api<Object>,
    name: String,
    /// Who this process is.
    identity: String,
    duration: Duration,
    seen: Mutex<Option<Seen>>,
}

/// What came of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tried {
    /// This process has it.
    Taken,
    /// Somebody else has it.
    Held,
    /// It changed meanwhile: who has it is to be asked again.
    Raced,
}

/// Somebody else's hold, and since when it has not moved.
#[derive(Debug)]
struct Seen {
    version: Option<String>,
    since: Instant,
}

impl Lease {
    /// The lease `name`, good for `duration` from each renewal on.
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str, duration: Duration) -> Self {
        Lease {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity: identity.to_owned(),
            duration,
            seen: Mutex::default(),
        }
    }

    /// For how long it is good.
    pub fn duration(&self) -> Duration {
        self.duration
    }

    /// Takes it, or takes it once more, if nobody else has it.
    pub async fn try_take(&self) -> Result<Tried, Fault> {
        let doing = format!("reading the lease {}", self.name);
        let Some(present) = opt(ask!(&doing, self.api.get(&self.name)))? else {
            return self.make().await;
        };
        let spec = present.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().filter(|holder| !holder.is_empty());
        let mine = holder == Some(&self.identity);
        if holder.is_some() && !mine && !self.is_over(&present, &spec).await {
            return Ok(Tried::Held);
        }
        let now = now();
        let taken = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(self.seconds()),
            renew_time: Some(now.clone()),
            acquire_time: if mine { spec.acquire_time } else { Some(now) },
            lease_transitions: Some(spec.lease_transitions.unwrap_or(0) + i32::from(!mine)),
            ..LeaseSpec::default()
        };
        self.replace(Object { spec: Some(taken), ..present }).await
    }

    /// Lets it go, if this process has it.
    pub async fn release(&self) -> Result<(), Fault> {
        let doing = format!("reading the lease {}", self.name);
        let Some(mut present) = opt(ask!(&doing, self.api.get(&self.name)))? else { return Ok(()) };
        let spec = present.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() == Some(&self.identity) {
            // client-go's way to say that nobody need wait (tools/leaderelection, release): no holder, and soon over.
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
            self.replace(present).await?;
        }
        Ok(())
    }

    /// Whether the holder has not moved for as long as its lease is good.
    async fn is_over(&self, present: &Object, spec: &LeaseSpec) -> bool {
        let good_for = u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0);
        let mut seen = self.seen.lock().await;
        match &*seen {
            Some(before) if before.version == present.metadata.resource_version => {
                before.since.elapsed() >= Duration::from_secs(good_for)
            }
            _ => {
                *seen =
                    Some(Seen { version: present.metadata.resource_version.clone(), since: Instant::now() });
                false
            }
        }
    }

    async fn make(&self) -> Result<Tried, Fault> {
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
        let doing = format!("making the lease {}", self.name);
        match ask!(&doing, self.api.create(&parameters(), &object)) {
            Ok(_) => Ok(Tried::Taken),
            Err(fault) if fault.is_already_there() => Ok(Tried::Raced),
            Err(fault) => Err(fault),
        }
    }

    async fn replace(&self, object: Object) -> Result<Tried, Fault> {
        let doing = format!("writing the lease {}", self.name);
        match ask!(&doing, self.api.replace(&self.name, &parameters(), &object)) {
            Ok(_) => Ok(Tried::Taken),
            Err(fault) if fault.is_conflict() || fault.is_not_found() => Ok(Tried::Raced),
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
