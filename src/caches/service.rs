//! The service behind the API: answers requests from the records and never waits for a build.

mod admission;
mod build;
mod change;
mod create;
mod details;
mod import;
mod janitor;
mod notice;
mod previous;
mod records;
mod recovery;
mod resolve;
mod slots;
mod snapshots;
mod tasks;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use details::{Details, LayerDetails};
pub use import::{Received, Receiving};
pub use previous::MAX_PREVIOUS;

use super::error::Error;
use super::hub::{Hub, Watch};
use super::matching::{self, Found};
use super::progress::Progress;
use super::pull_secrets;
use super::queue::Queue;
use super::record::{Record, RequestOrigin};
use super::runner::Runner;
use super::store::{Store, StoreError, Stored};
use super::turns::{Kind, Turn, Turns};
use super::volumes::{StateError, Volumes};
use crate::config::tenant::ADMIN;
use crate::config::{Config, cluster};
use crate::telemetry::metrics::Metrics;
use larder_model::class::Class;
use larder_model::image_cache::{CacheId, Spec, TenantName};
use larder_model::job::{Job, NetworkAccess};
use larder_model::plan_report::PlanReport;
use larder_model::pull_secret::PullSecretName;
use larder_model::reference::ImageReference;
use larder_sys::clock::Clock;
use larder_sys::clock::guard::TimeGuard;

/// Time after which a client can retry when the queue is full.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// The image caches of this host. Clones share the same state.
#[derive(Clone, Debug)]
pub struct Service(Arc<Inner>);

/// The dependencies of a service.
#[derive(Debug)]
pub struct Parts {
    /// The store of records.
    pub store: Arc<dyn Store>,
    /// The runner that starts builders.
    pub runner: Arc<dyn Runner>,
    /// The storage of volumes.
    pub volumes: Arc<dyn Volumes>,
    /// The source of the current time.
    pub clock: Arc<dyn Clock>,
    /// The metrics to update.
    pub metrics: Metrics,
    /// Interval at which build progress is written into the record for other daemons. `None` if there are no
    /// other daemons.
    pub progress_interval: Option<Duration>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<dyn Store>,
    runner: Arc<dyn Runner>,
    volumes: Arc<dyn Volumes>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    progress_interval: Option<Duration>,
    guard: Mutex<TimeGuard>,
    settings: RwLock<Settings>,
    queue: Mutex<Queue>,
    wake: Arc<Notify>,
    sweep: Notify,
    live: Mutex<HashMap<CacheId, Live>>,
    /// GiB reserved for caches whose archives are being uploaded, with their tenants.
    promised: Mutex<HashMap<CacheId, (TenantName, u64)>>,
    hub: Hub,
    /// Held while room for a volume and a place in the queue are checked and taken, and while a build is
    /// cancelled. A concurrent order must not lose its place.
    admission: Turns,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// `true` if this daemon builds, expires and sweeps.
    leading: AtomicBool,
    /// Cancelled when one of the two loops ends without a stop.
    broken: CancellationToken,
}

/// A build in progress.
#[derive(Debug, Default)]
struct Live {
    cancel: CancellationToken,
    progress: Progress,
    /// The external condition that the build waits for.
    waiting: Option<String>,
    /// `true` if another build was requested before this one ended.
    again: bool,
}

/// Settings from the configuration. A reload replaces them as a whole.
struct Settings {
    caches: crate::config::caches::Caches,
    clusters: Vec<String>,
    /// `true` if only the administrator can order caches.
    alone: bool,
    secrets: HashMap<TenantName, Vec<String>>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").finish_non_exhaustive()
    }
}

impl Settings {
    fn of(config: &Config) -> Self {
        let everything = (ADMIN.parse::<TenantName>(), vec!["*".to_owned()]);
        let tenants = config.tenant.iter().map(|tenant| (tenant.name.parse(), tenant.pull_secrets.clone()));
        let secrets = [everything].into_iter().chain(tenants);
        Settings {
            caches: config.caches.clone(),
            alone: config.tenant.iter().all(|tenant| tenant.name == ADMIN)
                && cluster::kubernetes(&config.cluster).is_none(),
            clusters: config.cluster.iter().map(|cluster| cluster.uid.clone()).collect(),
            secrets: secrets.filter_map(|(name, patterns)| Some((name.ok()?, patterns))).collect(),
        }
    }
}

impl Service {
    /// Reads the records, cleans up after a crash and starts the work. Requires a tokio runtime.
    ///
    /// # Errors
    /// Fails if the records or the state directory cannot be used.
    pub async fn start(parts: Parts, config: &Config) -> Result<Self, StartError> {
        let service = Service::new(parts, config).await?;
        service.lead().await?;
        Ok(service)
    }

    /// Creates a service that answers requests from the records. Another daemon can do the work until this
    /// one [leads](Service::lead).
    ///
    /// # Errors
    /// Fails if the records cannot be read.
    pub async fn new(parts: Parts, config: &Config) -> Result<Self, StartError> {
        let last = parts.store.noted().await?;
        Ok(Service(Arc::new(Inner {
            store: parts.store,
            runner: parts.runner,
            volumes: parts.volumes,
            guard: Mutex::new(TimeGuard::new(&*parts.clock, last)),
            clock: parts.clock,
            metrics: parts.metrics,
            progress_interval: parts.progress_interval,
            settings: RwLock::new(Settings::of(config)),
            queue: Mutex::default(),
            wake: Arc::default(),
            sweep: Notify::new(),
            live: Mutex::default(),
            promised: Mutex::default(),
            hub: Hub::default(),
            admission: Turns::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            leading: AtomicBool::new(false),
            broken: CancellationToken::new(),
        })))
    }

    /// Cleans up after an earlier daemon and works until the service stops. Of several daemons with the same
    /// records, one leads at a time; leader election is elsewhere.
    ///
    /// # Errors
    /// Fails if the records or the state directory cannot be used.
    pub async fn lead(&self) -> Result<(), StartError> {
        let last = self.0.store.noted().await?;
        *self.guard() = TimeGuard::new(&*self.0.clock, last);
        self.recover().await?;
        self.0.leading.store(true, Ordering::Release);
        let builds = self.settings(|settings| settings.caches.max_concurrent_builds);
        self.supervise("the queue of builds", self.clone().schedule(builds));
        self.supervise("expiry and deletion", self.clone().run_janitor());
        Ok(())
    }

    /// Returns `true` if this daemon builds, expires and sweeps.
    pub fn leads(&self) -> bool {
        self.0.leading.load(Ordering::Acquire)
    }

    /// Applies a reloaded configuration: quotas, clusters, pull secrets, times. The number of builders keeps
    /// its value from the start.
    pub fn reload(&self, config: &Config) {
        *self.0.settings.write().unwrap_or_else(PoisonError::into_inner) = Settings::of(config);
        self.0.sweep.notify_one();
    }

    /// Returns `true` if requests are answered: from the start until [`stop`](Service::stop).
    pub fn ready(&self) -> bool {
        !self.0.stop.is_cancelled()
    }

    /// Stops the service. Builders leave volumes that the next start can resume. Returns when all work has
    /// ended.
    pub async fn stop(&self) {
        self.0.stop.cancel();
        for live in self.live().values() {
            live.cancel.cancel();
        }
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Lists the caches of a tenant, oldest first. If a name is given, lists only the cache of that name.
    ///
    /// # Errors
    /// Fails if the records cannot be read.
    pub async fn list(&self, tenant: &TenantName, name: Option<&str>) -> Result<Vec<Record>, Error> {
        let records = self.records_of(tenant).await?;
        let records = records.iter().map(|stored| &stored.record);
        let named = |record: &&Record| name.is_none_or(|name| record.spec.name.as_str() == name);
        Ok(records.filter(named).cloned().collect())
    }

    /// Lists all caches of a tenant, oldest first, shared with other readers.
    ///
    /// # Errors
    /// Fails if the records cannot be read.
    pub async fn records_of(&self, tenant: &TenantName) -> Result<Arc<[Stored]>, Error> {
        Ok(self.0.store.list_of(tenant.clone()).await?)
    }

    /// Returns the record of one cache.
    ///
    /// # Errors
    /// Returns [`Error::NotFound`] if the tenant has no such cache.
    pub async fn get(&self, tenant: &TenantName, id: CacheId) -> Result<Record, Error> {
        Ok(self.stored(tenant, id).await?.record)
    }

    /// Returns a cache with the details that the vendor's API lacks.
    ///
    /// # Errors
    /// Returns [`Error::NotFound`] if the tenant has no such cache.
    pub async fn details(&self, tenant: &TenantName, id: CacheId) -> Result<(Record, Details), Error> {
        let record = self.get(tenant, id).await?;
        let details = match self.live().get(&id) {
            Some(live) => Details::of(&record, Some(&live.progress)),
            None => Details::of(&record, None),
        };
        Ok((record, details))
    }

    /// Follows a cache, starting after the event with number `after`.
    ///
    /// # Errors
    /// Returns [`Error::NotFound`] if the tenant has no such cache.
    pub async fn watch(&self, tenant: &TenantName, id: CacheId, after: u64) -> Result<Watch, Error> {
        let subscription = self.0.hub.subscribe(id);
        // Read after subscribing, so that no event is missed.
        let record = self.get(tenant, id).await?;
        Ok(subscription.from(&record, after))
    }

    /// Finds the cache that serves a workload best.
    ///
    /// # Errors
    /// Fails if the records cannot be read.
    pub async fn find(&self, tenant: &TenantName, images: &[ImageReference]) -> Result<Option<Found>, Error> {
        let records = self.records_of(tenant).await?;
        Ok(matching::best(records.iter().map(|stored| &stored.record), images))
    }

    /// Reports what a create would fetch and whether it fits, and stores nothing. Quotas and limits are
    /// checked before any registry is contacted.
    ///
    /// # Errors
    /// Fails if a create would be refused or the images cannot be resolved.
    pub async fn plan(&self, tenant: &TenantName, spec: Spec) -> Result<PlanReport, Error> {
        self.check(&spec)?;
        self.would_admit(tenant, &spec).await?;
        let (usable, unusable) = self.secrets(tenant, &spec, RequestOrigin::Api);
        let job = self.job(tenant, RequestOrigin::Api, &spec, usable, None);
        self.0.runner.plan(tenant.clone(), RequestOrigin::Api, job, unusable).await.map_err(Error::Plan)
    }

    /// Returns the maximum duration of a build.
    pub fn longest_build(&self) -> Duration {
        let minutes = self.settings(|settings| settings.caches.build_timeout_minutes);
        Duration::from_secs(u64::from(minutes) * 60)
    }

    /// Updates the metrics that are computed from the records.
    ///
    /// # Errors
    /// Fails if the records or the capacity cannot be read.
    pub async fn measure(&self) -> Result<(), Error> {
        let metrics = &self.0.metrics;
        let (waiting, building) = (self.queue().len(), self.live().len());
        metrics.builds_now(waiting, building);
        let records = self.records().await?;
        let records: Vec<&Record> = records.values().collect();
        metrics.caches(|status| records.iter().filter(|record| record.status == status).count());
        let content = records.iter().filter_map(|record| record.content.as_ref());
        let reserved: u64 = records.iter().map(|record| record.reserved_gib()).sum();
        metrics.disk(
            content.map(|content| content.totals.size).sum(),
            reserved.saturating_mul(1 << 30),
            self.capacity_gib()?.saturating_mul(1 << 30),
        );
        Ok(())
    }

    /// Returns the GiB that all caches can occupy together, or [`UNLIMITED`](super::volumes::UNLIMITED) if
    /// nothing here limits them.
    ///
    /// # Errors
    /// Fails if the size of the file system cannot be read.
    pub fn capacity_gib(&self) -> Result<u64, Error> {
        let configured = self.settings(|settings| settings.caches.capacity.0);
        if configured > 0 {
            return Ok(configured >> 30);
        }
        self.0.volumes.capacity_gib().map_err(|e| Error::Store(state_failed(&e)))
    }

    /// Splits the pull secrets of an order into those that its tenant can use and the others.
    fn secrets(
        &self,
        tenant: &TenantName,
        spec: &Spec,
        by: RequestOrigin,
    ) -> (Vec<PullSecretName>, Vec<String>) {
        let patterns = match by {
            RequestOrigin::Api => {
                self.settings(|settings| settings.secrets.get(tenant).cloned().unwrap_or_default())
            }
            // The reader of the secret checks whether it allows this namespace.
            RequestOrigin::Cluster => vec!["*".to_owned()],
        };
        pull_secrets::split(&patterns, &spec.pull_secrets)
    }

    fn job(
        &self,
        tenant: &TenantName,
        by: RequestOrigin,
        spec: &Spec,
        pull_secrets: Vec<PullSecretName>,
        deadline: Option<DateTime<Utc>>,
    ) -> Job {
        // A namespace can have the administrator's name, but remains an ordinary tenant.
        let administrator = by == RequestOrigin::Api && tenant.as_str() == ADMIN;
        Job {
            version: larder_model::job::VERSION,
            source: None,
            images: spec.images.clone(),
            size: Some(spec.size()),
            sizing: None,
            platform: None,
            volume_kind: None,
            layer_format: None,
            verity: None,
            pull_secrets,
            deadline,
            result_file: None,
            tar_split: None,
            reach: if administrator { NetworkAccess::Any } else { NetworkAccess::Tenant },
            min_layer_rate: self
                .settings(|settings| Some(settings.caches.min_layer_rate).filter(|rate| rate.0 > 0)),
        }
    }

    /// Returns a record of the tenant. Records of other tenants are reported as not found.
    async fn stored(&self, tenant: &TenantName, id: CacheId) -> Result<Stored, Error> {
        self.0.store.get_of(tenant.clone(), id).await?.ok_or(Error::NotFound(id))
    }

    /// Changes a record and retries until no concurrent change intervenes. `edit` returns `true` if it
    /// changed the record. Returns the record after the change; `None` if it is gone.
    async fn change(
        &self,
        id: CacheId,
        mut edit: impl FnMut(&mut Record) -> bool,
    ) -> Result<Option<Record>, StoreError> {
        loop {
            let Some(mut stored) = self.0.store.get(id).await? else { return Ok(None) };
            let sequence = stored.record.sequence;
            if !edit(&mut stored.record) {
                return Ok(Some(stored.record));
            }
            match self.0.store.replace(stored).await {
                Ok(Stored { record, .. }) => {
                    self.0.hub.changed(&record, sequence);
                    return Ok(Some(record));
                }
                Err(StoreError::Changed(_)) => {}
                Err(StoreError::Gone(_)) => return Ok(None),
                Err(e) => return Err(e),
            }
        }
    }

    /// Waits for the tenant's turn to check and reserve room ([`Inner::admission`]).
    async fn one_at_a_time(&self, tenant: &TenantName) -> Turn {
        self.0.admission.take(Kind::Write, Some(tenant.clone())).await
    }

    fn enqueue(&self, tenant: &TenantName, id: CacheId) {
        self.queue().push(tenant, id);
        self.0.wake.notify_one();
    }

    /// Stops the builder of a cache, if there is one.
    fn interrupt(&self, id: CacheId) {
        if let Some(live) = self.live().get(&id) {
            live.cancel.cancel();
        }
    }

    fn now(&self) -> DateTime<Utc> {
        self.0.clock.now()
    }

    fn settings<T>(&self, read: impl FnOnce(&Settings) -> T) -> T {
        read(&self.0.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self) -> MutexGuard<'_, HashMap<CacheId, Live>> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn promised(&self) -> MutexGuard<'_, HashMap<CacheId, (TenantName, u64)>> {
        self.0.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn promised_gib(&self) -> u64 {
        self.promised().values().map(|(_, gib)| gib).sum()
    }
}

/// The reason why a daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The records cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
}

fn state_failed(error: &StateError) -> StoreError {
    match error.class() {
        Class::Transient => StoreError::Unreachable(error.to_string()),
        _ => StoreError::Failed {
            doing: "working on the volumes behind",
            reason: error.to_string(),
            full: false,
        },
    }
}
