//! The service behind the API: answers requests from the records and never waits for a build.
//!
//! The service is a facade over four parts. Each owns its state, and only what an arrow shows is visible to
//! it:
//!
//! ```text
//! janitor ──► builds ──► admission          records       the store, and the watchers of events
//!    │           │           │              admission     the queue, and the space for volumes
//!    └───────────┴───────────┴─► records    builds        builders and their progress
//!                                           janitor       expiry, deletion, recovery after a crash
//! ```

mod admission;
mod archives;
mod builds;
mod change;
mod create;
mod details;
mod import;
mod janitor;
mod notice;
mod overview;
mod records;
mod resolve;
mod settings;
mod snapshots;
mod tasks;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};

use self::admission::Admission;
use self::builds::Builds;
pub use self::details::{Details, LayerDetails};
pub use self::import::{Received, Receiving};
use self::janitor::Janitor;
pub use self::janitor::MAX_PREVIOUS;
pub use self::overview::{AttachedAt, BuildOverview, HostOverview, Overview, Whose};
use self::records::Records;
use self::settings::Settings;
use self::tasks::Tasks;
use super::error::Error;
use super::hub::Watch;
use super::matching::{self, Found};
use super::record::{Record, RequestOrigin};
use super::runner::Runner;
use super::store::{Limits, Store, StoreError, Stored};
use super::volumes::{StateError, Volumes};
use crate::config::Config;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::Traces;
use larder_model::class::Class;
use larder_model::image_cache::{CacheId, Spec, Status, TenantName};
use larder_model::plan_report::PlanReport;
use larder_model::reference::ImageReference;
use larder_model::timeline::Timeline;
use larder_sys::clock::Clock;

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
    records: Arc<Records>,
    admission: Arc<Admission>,
    builds: Builds,
    janitor: Janitor,
    settings: Arc<Settings>,
    tasks: Tasks,
    volumes: Arc<dyn Volumes>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    /// `true` if this daemon builds, expires and sweeps.
    leading: AtomicBool,
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
        let Parts { store, runner, volumes, clock, metrics, progress_interval } = parts;
        let (settings, tasks) = (Arc::new(Settings::new(config)), Tasks::default());
        let records = Arc::new(Records::new(store));
        let last = records.saved_clock().await?;
        let admission = Arc::new(Admission::new(Arc::clone(&settings), Arc::clone(&volumes)));
        let builds = Builds::new(builds::Uses {
            records: Arc::clone(&records),
            admission: Arc::clone(&admission),
            settings: Arc::clone(&settings),
            tasks: tasks.clone(),
            runner,
            volumes: Arc::clone(&volumes),
            clock: Arc::clone(&clock),
            metrics: metrics.clone(),
            traces: Traces::start(&config.telemetry),
            progress_interval,
        });
        let uses = janitor::Uses {
            records: Arc::clone(&records),
            admission: Arc::clone(&admission),
            builds: builds.clone(),
            settings: Arc::clone(&settings),
            tasks: tasks.clone(),
            volumes: Arc::clone(&volumes),
            clock: Arc::clone(&clock),
            metrics: metrics.clone(),
        };
        let janitor = Janitor::new(uses, last);
        let leading = AtomicBool::new(false);
        Ok(Service(Arc::new(Inner {
            records,
            admission,
            builds,
            janitor,
            settings,
            tasks,
            volumes,
            clock,
            metrics,
            leading,
        })))
    }

    /// Cleans up after an earlier daemon and works until the service stops. Of several daemons with the same
    /// records, one leads at a time; leader election is elsewhere.
    ///
    /// # Errors
    /// Fails if the records or the state directory cannot be used.
    pub async fn lead(&self) -> Result<(), StartError> {
        let Inner { records, builds, janitor, settings, tasks, .. } = &*self.0;
        janitor.reset_clock(records.saved_clock().await?);
        janitor.recover().await?;
        self.0.leading.store(true, Ordering::Release);
        let builders = settings.read(|values| values.caches.max_concurrent_builds);
        tasks.supervise("the queue of builds", builds.clone().schedule(builders));
        tasks.supervise("expiry and deletion", janitor.clone().run());
        Ok(())
    }

    /// Returns `true` if this daemon builds, expires and sweeps.
    pub fn leads(&self) -> bool {
        self.0.leading.load(Ordering::Acquire)
    }

    /// Applies a reloaded configuration: quotas, clusters, pull secrets, times. The number of builders keeps
    /// its value from the start.
    pub fn reload(&self, config: &Config) {
        self.0.settings.reload(config);
        self.0.janitor.request();
    }

    /// Returns `true` if requests are answered: from the start until [`stop`](Service::stop).
    pub fn ready(&self) -> bool {
        !self.0.tasks.is_stopping()
    }

    /// Returns when the daemon can no longer work and should be restarted. Otherwise never returns.
    pub async fn broken(&self) {
        self.0.tasks.broken().await;
    }

    /// Stops the service. Builders leave volumes that the next start can resume. Returns when all work has
    /// ended.
    pub async fn stop(&self) {
        self.0.tasks.stop().await;
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
        Ok(self.records().list_of(tenant).await?)
    }

    /// Returns the record of one cache.
    ///
    /// # Errors
    /// Returns [`Error::NotFound`] if the tenant has no such cache.
    pub async fn get(&self, tenant: &TenantName, id: CacheId) -> Result<Record, Error> {
        self.records().get_of(tenant, id).await
    }

    /// Returns a cache with the details that the vendor's API lacks.
    ///
    /// # Errors
    /// Returns [`Error::NotFound`] if the tenant has no such cache.
    pub async fn details(&self, tenant: &TenantName, id: CacheId) -> Result<(Record, Details), Error> {
        let record = self.get(tenant, id).await?;
        let details = self.0.builds.progress(id, |progress| Details::of(&record, progress));
        Ok((record, details))
    }

    /// Returns the timeline of the build in progress, or else of the last one.
    ///
    /// # Errors
    /// Returns [`Error::NotFound`] if the tenant has no such cache.
    pub async fn timeline(&self, tenant: &TenantName, id: CacheId) -> Result<Option<Box<Timeline>>, Error> {
        let stored = self.get(tenant, id).await?.timeline;
        Ok(self.0.builds.timeline(id).or(stored))
    }

    /// Follows a cache, starting after the event with number `after`.
    ///
    /// # Errors
    /// Returns [`Error::NotFound`] if the tenant has no such cache.
    pub async fn watch(&self, tenant: &TenantName, id: CacheId, after: u64) -> Result<Watch, Error> {
        self.records().watch(tenant, id, after).await
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
        self.0.builds.plan(tenant, RequestOrigin::Api, &spec).await
    }

    /// Returns the UID of the cluster that an order names if its sender has no other preference. `None` if it
    /// can name any.
    pub fn default_cluster(&self) -> Option<String> {
        self.0.settings.first_cluster()
    }

    /// Returns the maximum duration of a build.
    pub fn longest_build(&self) -> Duration {
        let minutes = self.0.settings.read(|values| values.caches.build_timeout_minutes);
        Duration::from_secs(u64::from(minutes) * 60)
    }

    /// Updates the metrics that are computed from the records.
    ///
    /// # Errors
    /// Fails if the records or the capacity cannot be read.
    pub async fn measure(&self) -> Result<(), Error> {
        let Inner { admission, builds, metrics, .. } = &*self.0;
        metrics.builds_now(admission.queued(), builds.len());
        let records = self.records().survey().await?;
        let records: Vec<&Record> = records.values().collect();
        metrics.caches(|status| records.iter().filter(|record| record.status == status).count());
        let exist = records.iter().filter(|record| record.status != Status::Deleting);
        metrics.last_successes(exist.filter_map(|record| {
            let sealed_at = record.content.as_ref()?.sealed_at.timestamp();
            Some((record.tenant.as_str(), record.spec.name.as_str(), sealed_at))
        }));
        let content = records.iter().filter_map(|record| record.content.as_ref());
        let reserved: u64 = records.iter().map(|record| record.reserved_gib()).sum();
        metrics.disk(
            content.map(|content| content.totals.size).sum(),
            reserved.saturating_mul(1 << 30),
            admission.capacity_gib()?.saturating_mul(1 << 30),
        );
        Ok(())
    }

    /// Returns the limits that a new record of a tenant must fit. With `None` there is no limit on a tenant's
    /// space.
    ///
    /// # Errors
    /// Fails if the capacity of the host cannot be read.
    pub fn limits(&self, tenant: Option<&TenantName>) -> Result<Limits, StoreError> {
        self.admission().limits(tenant)
    }

    /// Checks whether this daemon can carry out an order at all.
    fn check(&self, spec: &Spec) -> Result<(), Error> {
        if !self.ready() {
            return Err(Error::Stopping);
        }
        spec.check()?;
        let known = self.0.settings.has_cluster(&spec.cluster);
        if known { Ok(()) } else { Err(Error::UnknownCluster(spec.cluster.clone())) }
    }

    /// Predicts the store's answer to a create.
    async fn would_admit(&self, tenant: &TenantName, spec: &Spec) -> Result<(), Error> {
        Ok(self.admission().would_admit(tenant, spec, &self.records().survey().await?)?)
    }

    /// Completes the request of a tenant even if its client disconnects.
    async fn complete<T: Send + 'static, F>(
        &self,
        tenant: &TenantName,
        request: impl FnOnce(Service, TenantName) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        self.0.tasks.complete(request(self.clone(), tenant.clone())).await
    }

    fn records(&self) -> &Records {
        &self.0.records
    }

    fn admission(&self) -> &Arc<Admission> {
        &self.0.admission
    }

    fn now(&self) -> DateTime<Utc> {
        self.0.clock.now()
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

fn volumes_failed(error: &StateError) -> StoreError {
    match error.class() {
        Class::Transient => StoreError::Unreachable(error.to_string()),
        _ => StoreError::Failed {
            doing: "working on the volumes behind",
            reason: error.to_string(),
            full: false,
        },
    }
}
