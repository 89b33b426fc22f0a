//! What tenants ask for, answered from the records. Nothing here waits for a build.

mod admission;
mod build;
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
#[expect(clippy::unwrap_used, reason = "tests")]
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
use super::record::{OrderedBy, Record, Work};
use super::runner::Runner;
use super::store::{Created, IdempotencyKey, Store, StoreError, Stored};
use super::turns::{Kind, Turn, Turns};
use super::volumes::{StateError, Volumes};
use crate::config::Config;
use crate::config::cluster;
use crate::config::tenant::ADMIN;
use crate::telemetry::metrics::Metrics;
use larder_model::class::Class;
use larder_model::image_cache::{CacheId, Spec, Status, TenantName};
use larder_model::job::{Job, Reach};
use larder_model::plan_report::PlanReport;
use larder_model::pull_secret::PullSecretName;
use larder_model::reference::ImageReference;
use larder_sys::clock::Clock;
use larder_sys::clock::guard::TimeGuard;

/// When to ask again while the queue is full.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// The image caches of this host. Clones are handles to the same.
#[derive(Clone, Debug)]
pub struct Service(Arc<Inner>);

/// What a service stands on.
#[derive(Debug)]
pub struct Parts {
    /// The records.
    pub store: Arc<dyn Store>,
    /// What starts builders.
    pub runner: Arc<dyn Runner>,
    /// What keeps volumes.
    pub volumes: Arc<dyn Volumes>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// What is counted.
    pub metrics: Metrics,
    /// How often the progress of a build is written into its record, where other daemons read it; none where there are none.
    pub tell_progress: Option<Duration>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<dyn Store>,
    runner: Arc<dyn Runner>,
    volumes: Arc<dyn Volumes>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    tell_progress: Option<Duration>,
    guard: Mutex<TimeGuard>,
    settings: RwLock<Settings>,
    queue: Mutex<Queue>,
    wake: Arc<Notify>,
    sweep: Notify,
    live: Mutex<HashMap<CacheId, Live>>,
    /// GiB that are kept for caches whose archives are being sent, and for which tenant.
    promised: Mutex<HashMap<CacheId, (TenantName, u64)>>,
    hub: Hub,
    /// Held while room for a volume, and a place in the queue, are looked for and taken, and while a build is given up:
    /// whoever orders the next one meanwhile must not lose it.
    admission: Turns,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// Whether this is the daemon that builds, expires and sweeps.
    leading: AtomicBool,
    /// Cancelled when one of the two loops has ended, which only a stop may bring about.
    broken: CancellationToken,
}

/// A build under way.
#[derive(Debug, Default)]
struct Live {
    cancel: CancellationToken,
    progress: Progress,
    /// What the build waits for outside of its builder.
    waiting: Option<String>,
    /// Whether another build was asked for before this one has ended.
    again: bool,
}

/// What the configuration says; replaced as a whole when it is read again.
struct Settings {
    caches: crate::config::caches::Caches,
    clusters: Vec<String>,
    /// Whether nobody but the administrator can give orders.
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
    /// Takes up the records, settles what a crash left, and goes to work. Needs a runtime of tokio.
    pub async fn start(parts: Parts, config: &Config) -> Result<Self, StartError> {
        let service = Service::new(parts, config).await?;
        service.lead().await?;
        Ok(service)
    }

    /// A view of the records: answers what tenants ask for, and leaves the work to the daemon that [leads](Service::lead).
    pub async fn new(parts: Parts, config: &Config) -> Result<Self, StartError> {
        let last = parts.store.noted().await?;
        Ok(Service(Arc::new(Inner {
            store: parts.store,
            runner: parts.runner,
            volumes: parts.volumes,
            guard: Mutex::new(TimeGuard::new(&*parts.clock, last)),
            clock: parts.clock,
            metrics: parts.metrics,
            tell_progress: parts.tell_progress,
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

    /// Settles what an earlier daemon left, and goes to work, until the service stops. Of several daemons with the same
    /// records one leads at a time; whose turn it is is decided elsewhere.
    pub async fn lead(&self) -> Result<(), StartError> {
        let last = self.0.store.noted().await?;
        *self.guard() = TimeGuard::new(&*self.0.clock, last);
        self.recover().await?;
        self.0.leading.store(true, Ordering::Release);
        let builds = self.settings(|settings| settings.caches.max_concurrent_builds);
        self.supervise("the queue of builds", self.clone().schedule(builds));
        self.supervise("expiry and deletion", self.clone().keep_house());
        Ok(())
    }

    /// Whether this is the daemon that builds, expires and sweeps.
    pub fn leads(&self) -> bool {
        self.0.leading.load(Ordering::Acquire)
    }

    /// Takes up a configuration that was read again: quotas, clusters, pull secrets, times. The number of builders is as it was
    /// at the start.
    pub fn reload(&self, config: &Config) {
        *self.0.settings.write().unwrap_or_else(PoisonError::into_inner) = Settings::of(config);
        self.0.sweep.notify_one();
    }

    /// Whether requests are answered: from the start until [`stop`](Service::stop).
    pub fn ready(&self) -> bool {
        !self.0.stop.is_cancelled()
    }

    /// Stops: builders leave volumes that the next start goes on with. Resolves when all is still.
    pub async fn stop(&self) {
        self.0.stop.cancel();
        for live in self.live().values() {
            live.cancel.cancel();
        }
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Orders an image cache. The record is as it was first answered where the key was used before.
    pub async fn create(
        &self,
        tenant: &TenantName,
        spec: Spec,
        key: Option<IdempotencyKey>,
    ) -> Result<Record, Error> {
        let (service, tenant) = (self.clone(), tenant.clone());
        self.to_its_end(async move { service.create_now(&tenant, spec, key, None).await }).await
    }

    /// Answers a create that may have been carried out before: as [`create`](Service::create), but with [`Error::Replayed`]
    /// where that would order an image cache.
    pub async fn create_again(
        &self,
        tenant: &TenantName,
        spec: Spec,
        key: Option<IdempotencyKey>,
    ) -> Result<Record, Error> {
        let (service, owner, order) = (self.clone(), tenant.clone(), spec.clone());
        let replayed = Some(Error::Replayed);
        let answer =
            self.to_its_end(async move { service.create_now(&owner, order, key, replayed).await }).await;
        if matches!(answer, Err(Error::Replayed)) {
            // A client that sends a refused order twice within a second signs both alike.
            self.check_queue()?;
            self.would_admit(tenant, &spec).await?;
        }
        answer
    }

    async fn create_now(
        &self,
        tenant: &TenantName,
        spec: Spec,
        key: Option<IdempotencyKey>,
        refusal: Option<Error>,
    ) -> Result<Record, Error> {
        self.check(&spec)?;
        let _one_at_a_time = self.one_at_a_time(tenant).await;
        // The identity is a proposal: the store may know a better one.
        let record = Record::new(CacheId::random(), tenant.clone(), spec, self.now());
        match self.place(record, key, refusal).await? {
            Created::New(Stored { record, .. }) => {
                let images = &record.spec.images;
                tracing::info!(tenant = %tenant, cache = %record.id, name = %record.spec.name, ?images, "ordered");
                self.enqueue(tenant, record.id);
                Ok(record)
            }
            Created::Before(record) => Ok(*record),
        }
    }

    /// Writes a new record, if there is room for it and no `refusal`. The caller holds [`Inner::admission`].
    async fn place(
        &self,
        record: Record,
        key: Option<IdempotencyKey>,
        refusal: Option<Error>,
    ) -> Result<Created, Error> {
        let refusal = refusal.or_else(|| self.check_queue().err());
        let mut admission = self.admission(Some(&record.tenant))?;
        if refusal.is_some() {
            // Nothing new is written, but a repeated create still gets its answer.
            admission.max_per_tenant = 0;
        }
        match (self.0.store.create(record, admission, key).await, refusal) {
            (Err(StoreError::Quota { .. }), Some(refusal)) => Err(refusal),
            (created, _) => Ok(created?),
        }
    }

    /// The caches of a tenant, oldest first; with a name, the one of that name.
    pub async fn list(&self, tenant: &TenantName, name: Option<&str>) -> Result<Vec<Record>, Error> {
        let records = self.records_of(tenant).await?;
        let records = records.iter().map(|stored| &stored.record);
        let named = |record: &&Record| name.is_none_or(|name| record.spec.name.as_str() == name);
        Ok(records.filter(named).cloned().collect())
    }

    /// All caches of a tenant, oldest first, shared with others that list them.
    pub async fn records_of(&self, tenant: &TenantName) -> Result<Arc<[Stored]>, Error> {
        Ok(self.0.store.list_of(tenant.clone()).await?)
    }

    /// One cache.
    pub async fn get(&self, tenant: &TenantName, id: CacheId) -> Result<Record, Error> {
        Ok(self.stored(tenant, id).await?.record)
    }

    /// Lets a cache go. It is Deleting until its build has stopped and nobody uses its volume any more.
    pub async fn delete(&self, tenant: &TenantName, id: CacheId) -> Result<Record, Error> {
        let (service, tenant) = (self.clone(), tenant.clone());
        self.to_its_end(async move { service.delete_now(&tenant, id).await }).await
    }

    async fn delete_now(&self, tenant: &TenantName, id: CacheId) -> Result<Record, Error> {
        self.stored(tenant, id).await?;
        let now = self.now();
        let deleted = self.change(id, |record| {
            if record.status == Status::Deleting {
                return false;
            }
            record.message = None;
            record.turn(Status::Deleting, now, "deletion was asked for");
            true
        });
        let record = deleted.await?.ok_or(Error::NotFound(id))?;
        self.queue().remove(tenant, id);
        self.interrupt(id);
        self.0.sweep.notify_one();
        Ok(record)
    }

    /// Gives up the build of a cache, or its refresh.
    pub async fn cancel(&self, tenant: &TenantName, id: CacheId) -> Result<Record, Error> {
        let (service, tenant) = (self.clone(), tenant.clone());
        self.to_its_end(async move { service.cancel_now(&tenant, id).await }).await
    }

    async fn cancel_now(&self, tenant: &TenantName, id: CacheId) -> Result<Record, Error> {
        let _one_at_a_time = self.one_at_a_time(tenant).await;
        self.stored(tenant, id).await?;
        let now = self.now();
        let mut given_up = false;
        let cancelled = self.change(id, |record| {
            given_up = record.work.is_some() && record.status != Status::Deleting;
            if given_up {
                build::give_up(record, now, Class::Cancelled, "cancelled by request");
            }
            given_up
        });
        let record = cancelled.await?.ok_or(Error::NotFound(id))?;
        if !given_up {
            return Err(Error::NotCancellable { id, status: record.status });
        }
        self.queue().remove(tenant, id);
        self.interrupt(id);
        self.0.sweep.notify_one();
        Ok(record)
    }

    /// Resolves the tags of a cache again and builds what they stand for now beside the present volume, which is served
    /// until the new one takes its place.
    pub async fn refresh(&self, tenant: &TenantName, id: CacheId) -> Result<Record, Error> {
        let (service, tenant) = (self.clone(), tenant.clone());
        self.to_its_end(async move { service.refresh_now(&tenant, id).await }).await
    }

    async fn refresh_now(&self, tenant: &TenantName, id: CacheId) -> Result<Record, Error> {
        if !self.ready() {
            return Err(Error::Stopping);
        }
        let _one_at_a_time = self.one_at_a_time(tenant).await;
        let before = self.get(tenant, id).await?;
        if before.import.is_some() {
            return Err(Error::Imported(id));
        }
        let refuse = |record: &Record| Error::NotRefreshable {
            id,
            status: record.status,
            busy: record.is_refreshing(),
        };
        if before.status != Status::Available || before.is_refreshing() {
            return Err(refuse(&before));
        }
        self.check_queue()?;
        self.room_to_refresh(&before).await?;
        let now = self.now();
        let mut begun = false;
        let changed = self.change(id, |record| {
            begun = record.status == Status::Available && record.work.is_none();
            if !begun {
                return false;
            }
            record.generation += 1;
            record.work = Some(Work::new(record.generation));
            record.message = None;
            record.class = None;
            record.note(now, "a refresh was asked for");
            true
        });
        let record = changed.await?.ok_or(Error::NotFound(id))?;
        if !begun {
            return Err(refuse(&record));
        }
        self.enqueue(tenant, id);
        Ok(record)
    }

    /// What is known of a cache beyond what the vendor tells.
    pub async fn details(&self, tenant: &TenantName, id: CacheId) -> Result<(Record, Details), Error> {
        let record = self.get(tenant, id).await?;
        let details = match self.live().get(&id) {
            Some(live) => Details::of(&record, Some(&live.progress)),
            None => Details::of(&record, None),
        };
        Ok((record, details))
    }

    /// Follows a cache from the event after number `after` on.
    pub async fn watch(&self, tenant: &TenantName, id: CacheId, after: u64) -> Result<Watch, Error> {
        let listening = self.0.hub.subscribe(id);
        // Read after listening, so that nothing falls between.
        let record = self.get(tenant, id).await?;
        Ok(listening.from(&record, after))
    }

    /// The cache that serves a workload best.
    pub async fn find(&self, tenant: &TenantName, images: &[ImageReference]) -> Result<Option<Found>, Error> {
        let records = self.records_of(tenant).await?;
        Ok(matching::best(records.iter().map(|stored| &stored.record), images))
    }

    /// Says what a create would fetch and whether it fits; nothing is kept. What a create would be refused for now is told
    /// before registries are asked.
    pub async fn plan(&self, tenant: &TenantName, spec: Spec) -> Result<PlanReport, Error> {
        self.check(&spec)?;
        self.would_admit(tenant, &spec).await?;
        let (usable, unusable) = self.secrets(tenant, &spec, OrderedBy::Api);
        let job = self.job(tenant, OrderedBy::Api, &spec, usable, None);
        self.0.runner.plan(tenant.clone(), OrderedBy::Api, job, unusable).await.map_err(Error::Plan)
    }

    /// How long a build may take.
    pub fn longest_build(&self) -> Duration {
        let minutes = self.settings(|settings| settings.caches.build_timeout_minutes);
        Duration::from_secs(u64::from(minutes) * 60)
    }

    /// The metrics as they are now.
    pub async fn measure(&self) -> Result<String, Error> {
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
        Ok(metrics.encode())
    }

    /// GiB that all caches may occupy together; [`UNLIMITED`](super::volumes::UNLIMITED) where nothing here limits them.
    pub fn capacity_gib(&self) -> Result<u64, Error> {
        let configured = self.settings(|settings| settings.caches.capacity.0);
        if configured > 0 {
            return Ok(configured >> 30);
        }
        self.0.volumes.capacity_gib().map_err(|e| Error::Store(state_failed(&e)))
    }

    /// Pull secrets of an order that its tenant may use, and the others.
    fn secrets(&self, tenant: &TenantName, spec: &Spec, by: OrderedBy) -> (Vec<PullSecretName>, Vec<String>) {
        let patterns = match by {
            OrderedBy::Api => {
                self.settings(|settings| settings.secrets.get(tenant).cloned().unwrap_or_default())
            }
            // Whoever reads the secret asks it whether this namespace may use it.
            OrderedBy::Cluster => vec!["*".to_owned()],
        };
        pull_secrets::split(&patterns, &spec.pull_secrets)
    }

    fn job(
        &self,
        tenant: &TenantName,
        by: OrderedBy,
        spec: &Spec,
        pull_secrets: Vec<PullSecretName>,
        deadline: Option<DateTime<Utc>>,
    ) -> Job {
        // A namespace of a cluster may have the administrator's name, and is a tenant all the same.
        let administrator = by == OrderedBy::Api && tenant.as_str() == ADMIN;
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
            reach: if administrator { Reach::Any } else { Reach::Tenant },
            min_layer_rate: self
                .settings(|settings| Some(settings.caches.min_layer_rate).filter(|rate| rate.0 > 0)),
        }
    }

    /// A record of the tenant. Those of others are not there.
    async fn stored(&self, tenant: &TenantName, id: CacheId) -> Result<Stored, Error> {
        self.0.store.get_of(tenant.clone(), id).await?.ok_or(Error::NotFound(id))
    }

    /// Changes a record, however often somebody else is faster. `edit` says whether there is anything to change. Gives the
    /// record as it is then; none where it is gone.
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

    /// Waits for the tenant's turn to look for room and take it ([`Inner::admission`]).
    async fn one_at_a_time(&self, tenant: &TenantName) -> Turn {
        self.0.admission.take(Kind::Write, Some(tenant.clone())).await
    }

    fn enqueue(&self, tenant: &TenantName, id: CacheId) {
        self.queue().push(tenant, id);
        self.0.wake.notify_one();
    }

    /// Asks the builder of a cache to stop, if there is one.
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

/// A daemon cannot start.
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
