//! Image caches that keep themselves: refreshes by a schedule, the time of the last use, image caches for images that pods miss,
//! and deletion of those that nobody used for long. The daemon that leads does it.
//!
//! ```text
//! watch ──► see() ──► what is known of each image cache ──► refresh     status.refresh, Service::refresh
//!                                                       ├─► last_used   status.lastUsed
//!                     claims (uses) ────────────────────┤
//!                     pods of annotated namespaces ─────┴─► create, evict ImageCache objects
//! ```
//!
//! Nothing polls one image cache: every step looks at what the watches have brought, and makes requests for what is due.

mod create;
mod evict;
mod last_used;
mod miss;
mod pods;
mod refresh;
pub(super) mod schedule;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use kube::ResourceExt as _;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use super::client::ApiServer;
use super::convert::{self, Read};
use super::crd::ImageCache;
use super::events::{Report, Reporter};
use super::fault::{Fault, ask};
use super::history;
use super::uses::Uses;
use crate::caches::record::Record;
use crate::caches::service::Service;
use crate::config::upkeep::Upkeep as Settings;
use larder_model::image_cache::CacheId;
use larder_sys::clock::Clock;

/// How long after a failure a step is tried again.
const AGAIN: Duration = Duration::from_secs(30);

/// An image cache as it was seen last.
#[derive(Clone, Debug)]
struct Seen {
    /// Without what takes much memory.
    object: ImageCache,
    record: Record,
    /// Not looked at before this time, because a step failed.
    not_before: Option<Instant>,
}

/// What upkeep needs from the daemon.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) client: ApiServer,
    pub(super) service: Service,
    pub(super) uses: Arc<Uses>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) reporter: Reporter,
    /// UID of the cluster.
    pub(super) cluster: String,
    /// Pause between two looks at what is due.
    pub(super) every: Duration,
}

/// Image caches that keep themselves.
#[derive(Debug)]
pub(super) struct Upkeep {
    client: ApiServer,
    service: Service,
    uses: Arc<Uses>,
    clock: Arc<dyn Clock>,
    reporter: Reporter,
    cluster: String,
    every: Duration,
    settings: RwLock<Settings>,
    seen: Mutex<BTreeMap<CacheId, Seen>>,
    /// Whether all image caches were seen once.
    complete: AtomicBool,
}

impl Upkeep {
    pub(super) fn new(parts: Parts, settings: &Settings) -> Self {
        let Parts { client, service, uses, clock, reporter, cluster, every } = parts;
        Upkeep {
            client,
            service,
            uses,
            clock,
            reporter,
            cluster,
            every,
            settings: RwLock::new(settings.clone()),
            seen: Mutex::default(),
            complete: AtomicBool::new(false),
        }
    }

    /// Uses a configuration that was read again.
    pub(super) fn reload(&self, settings: &Settings) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = settings.clone();
    }

    fn settings(&self) -> Settings {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<CacheId, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an image cache as the watch brought it.
    pub(super) fn see(&self, id: CacheId, object: &ImageCache) {
        self.uses.know(id, object);
        let version = convert::version(&object.metadata);
        // The answer to a write may come before the watch brings what was written before it.
        let is_known = |seen: &Seen| convert::version(&seen.object.metadata) > version;
        if self.seen().get(&id).is_some_and(is_known) {
            return;
        }
        let Read::Record(record) = convert::read(object, &self.cluster) else {
            self.seen().remove(&id);
            return;
        };
        let mut record = *record;
        record.events.clear();
        record.progress.clear();
        if let Some(content) = &mut record.content {
            content.layers.clear();
        }
        let mut object = object.clone();
        object.metadata.managed_fields = None;
        if let Some(status) = &mut object.status {
            status.events.clear();
            status.images.clear();
            status.conditions.clear();
            status.content = None;
        }
        let mut seen = self.seen();
        let not_before = seen.get(&id).and_then(|before| before.not_before);
        seen.insert(id, Seen { object, record, not_before });
    }

    /// Notes that the watch has brought all image caches.
    pub(super) fn seen_all(&self) {
        self.complete.store(true, Ordering::Release);
    }

    /// Forgets an image cache that is gone.
    pub(super) fn forget(&self, id: CacheId) {
        self.seen().remove(&id);
        self.uses.forget(id);
    }

    /// Runs all parts of upkeep until it is dropped.
    pub(super) async fn run(&self) {
        tokio::join!(self.uses.watch(), self.keep_fresh(), self.keep_uses(), self.keep_missed());
    }

    /// Looks at an image cache again later, after a failure.
    fn put_off(&self, id: CacheId) {
        if let Some(seen) = self.seen().get_mut(&id) {
            seen.not_before = Some(Instant::now() + AGAIN);
        }
    }

    /// Merges fields into the status of an image cache.
    async fn write(&self, id: CacheId, object: &ImageCache, status: Value) -> Result<(), Fault> {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let api: Api<ImageCache> = Api::namespaced(self.client.clone(), &namespace);
        // Not one of the same name that was made since.
        let patch = json!({"metadata": {"uid": object.uid()}, "status": status});
        let doing = format!("writing the status of the image cache {namespace}/{name}");
        match ask!(&doing, api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch))) {
            Ok(written) => {
                self.see(id, &written);
                Ok(())
            }
            // The watch brings what it is now.
            Err(fault) if fault.is_conflict() || fault.is_not_found() => {
                self.put_off(id);
                Ok(())
            }
            Err(fault) => Err(fault),
        }
    }

    fn report(&self, object: &ImageCache, warning: bool, reason: &str, note: String) {
        let report = Report { suffix: None, warning, action: "Upkeep", reason: reason.to_owned(), note };
        self.reporter.report(&history::reference(object), report);
    }
}
