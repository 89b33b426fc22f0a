//! Automatic upkeep of image caches: scheduled refreshes, the time of the last use, image caches for images
//! that pods miss, and eviction of unused ones. Only the leader does it.
//!
//! ```text
//! watch ──► see() ──► last state of each image cache ─┬─► refresh     status.refresh, Service::refresh
//!                                                     ├─► last_used   status.lastUsed
//!                     claims (uses) ──────────────────┤
//!                     pods of annotated namespaces ───┴─► create, evict ImageCache objects
//! ```
//!
//! Nothing polls a single image cache. Every step reads what the watches delivered and sends requests only
//! for what is due.

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
use super::fault::{Fault, request};
use super::history;
use super::uses::Uses;
use crate::caches::record::Record;
use crate::caches::service::Service;
use crate::config::upkeep::Upkeep as Settings;
use larder_model::image_cache::CacheId;
use larder_sys::clock::Clock;

/// Delay before a failed step is retried.
const RETRY_DELAY: Duration = Duration::from_secs(30);

/// An image cache as last seen.
#[derive(Clone, Debug)]
struct CacheState {
    /// The object without its large fields.
    object: ImageCache,
    record: Record,
    /// The image cache is skipped until this time, because a step failed.
    not_before: Option<Instant>,
}

/// The dependencies that the daemon provides.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) client: ApiServer,
    pub(super) service: Service,
    pub(super) uses: Arc<Uses>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) reporter: Reporter,
    /// UID of the cluster of this daemon.
    pub(super) cluster: String,
    /// Interval between two checks for due upkeep.
    pub(super) every: Duration,
}

/// Refreshes, creates and evicts image caches automatically.
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
    seen: Mutex<BTreeMap<CacheId, CacheState>>,
    /// `true` once all image caches were seen.
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

    /// Applies a reloaded configuration.
    pub(super) fn reload(&self, settings: &Settings) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = settings.clone();
    }

    fn settings(&self) -> Settings {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<CacheId, CacheState>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores an image cache that the watch delivered.
    pub(super) fn see(&self, id: CacheId, object: &ImageCache) {
        self.uses.note_copies(id, object);
        let version = convert::version(&object.metadata);
        // The response to a write can arrive before the watch delivers an earlier version.
        let is_known = |seen: &CacheState| convert::version(&seen.object.metadata) > version;
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
        seen.insert(id, CacheState { object, record, not_before });
    }

    /// Notes that the watch has delivered all image caches.
    pub(super) fn seen_all(&self) {
        self.complete.store(true, Ordering::Release);
    }

    /// Removes an image cache that is gone.
    pub(super) fn forget(&self, id: CacheId) {
        self.seen().remove(&id);
        self.uses.forget(id);
    }

    /// Runs all parts of upkeep until the future is dropped.
    pub(super) async fn run(&self) {
        tokio::join!(self.uses.watch(), self.run_refreshes(), self.run_last_used(), self.run_misses());
    }

    /// Skips an image cache for a while after a failure.
    fn postpone(&self, id: CacheId) {
        if let Some(seen) = self.seen().get_mut(&id) {
            seen.not_before = Some(Instant::now() + RETRY_DELAY);
        }
    }

    /// Merges fields into the status of an image cache.
    async fn write(&self, id: CacheId, object: &ImageCache, status: Value) -> Result<(), Fault> {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let api: Api<ImageCache> = Api::namespaced(self.client.clone(), &namespace);
        // The UID excludes a newer object of the same name.
        let patch = json!({"metadata": {"uid": object.uid()}, "status": status});
        let doing = format!("writing the status of the image cache {namespace}/{name}");
        match request!(&doing, api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch))) {
            Ok(written) => {
                self.see(id, &written);
                Ok(())
            }
            // The watch delivers the current version.
            Err(fault) if fault.is_conflict() || fault.is_not_found() => {
                self.postpone(id);
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
