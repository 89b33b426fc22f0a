//! The service with the real store and the real disk, a manual clock, and a scripted runner (real builders:
//! tests/it).

mod imports;
mod races;
mod refresh;
mod retention;
mod shares;

use std::collections::VecDeque;
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use futures_util::future::BoxFuture;
use tempfile::TempDir;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::caches::attachments::{Attachment, Attachments};
use crate::caches::hub::Notification;
use crate::caches::layout::Layout;
use crate::caches::runner::{Ended, RunnerJob};
use crate::caches::store::IdempotencyKey;
use crate::caches::store::sqlite::SqliteStore;
use crate::caches::volumes::host::HostVolumes;
use crate::volume::lease::Lease;
use larder_model::digest::Digest;
use larder_model::event::{Failure, Line, Outcome, SealedImage, Status as BuildStatus};
use larder_model::image_cache::Status;
use larder_model::job::Job;
use larder_sys::Dir;
use larder_sys::clock::fake::FakeClock;

const DAY: Duration = Duration::from_secs(86_400);

/// The runner's behavior for the next build. By default it seals the volume.
#[derive(Debug)]
enum Act {
    Fail(Class),
    Die,
    /// Fills the volume until it is stopped.
    Hang,
    /// Fills the volume until it is stopped, and then ends with a delay.
    Linger,
    /// Fills the volume until it is stopped, and fails at that moment.
    FailOnStop,
    Panic,
}

/// Creates the parts of volumes that the service reads.
#[derive(Debug, Default)]
struct FakeRunner {
    acts: Mutex<VecDeque<Act>>,
    orders: Mutex<Vec<RunnerJob>>,
    leave: Notify,
}

impl Runner for FakeRunner {
    fn build<'a>(
        &'a self,
        order: RunnerJob,
        _: mpsc::Sender<Line>,
        stop: CancellationToken,
    ) -> BoxFuture<'a, Ended> {
        Box::pin(async move {
            let act = self.acts.lock().unwrap().pop_front();
            self.orders.lock().unwrap().push(order.clone());
            fs::create_dir_all(order.volume.join(".larder")).unwrap();
            fs::write(order.volume.join(".larder/use"), "").unwrap();
            match act {
                None => {
                    fs::write(order.volume.join("cache.json"), seal(&order)).unwrap();
                    Ended::Result(sealed(&order))
                }
                Some(Act::Fail(class)) => Ended::Result(failed(&order, class)),
                Some(Act::Die) => Ended::Died("killed by signal 9".into()),
                Some(Act::Hang) => {
                    stop.cancelled().await;
                    Ended::Stopped
                }
                Some(Act::FailOnStop) => {
                    stop.cancelled().await;
                    Ended::Result(failed(&order, Class::Transient))
                }
                Some(Act::Panic) => panic!("on purpose"),
                Some(Act::Linger) => {
                    stop.cancelled().await;
                    self.leave.notified().await;
                    Ended::Stopped
                }
            }
        })
    }

    fn plan<'a>(
        &'a self,
        _: TenantName,
        _: RequestOrigin,
        _: Job,
        _: Vec<String>,
    ) -> BoxFuture<'a, Result<PlanReport, Vec<Failure>>> {
        Box::pin(async { Ok(PlanReport::new(Vec::new(), larder_model::size::ByteSize(0))) })
    }
}

fn outcome(status: BuildStatus) -> Outcome {
    Outcome { status, elapsed_ms: 1, ..Outcome::succeeded("") }
}

fn sealed(order: &RunnerJob) -> Outcome {
    let images = order.job.images.iter().map(|image| SealedImage {
        reference: image.given().to_owned(),
        index: None,
        manifest: Digest::sha256(image.given().as_bytes()),
    });
    let digest = Some(Digest::sha256(order.volume.as_os_str().as_encoded_bytes()));
    Outcome { images: images.collect(), digest, ..outcome(BuildStatus::Ok) }
}

/// A readable seal without images.
fn seal(order: &RunnerJob) -> Vec<u8> {
    let content = larder_model::seal::Content {
        version: larder_model::seal::VERSION,
        larder: "test".into(),
        job: Digest::sha256(b"job"),
        layer_format: Default::default(),
        tar_split: true,
        size: order.job.size.unwrap().given().unwrap(),
        images: Vec::new(),
        layers: Vec::new(),
        totals: Default::default(),
    };
    serde_json::to_vec(&larder_model::seal::CacheManifest::new(content).unwrap()).unwrap()
}

fn failed(order: &RunnerJob, class: Class) -> Outcome {
    let images = order.job.images.iter().map(|image| image.given().to_owned()).collect();
    let failure = Failure { class, images, layer: None, message: "it is so".into(), explanation: None };
    Outcome { class: Some(class), failures: vec![failure], ..outcome(BuildStatus::Failed) }
}

/// A daemon without listeners.
struct Host {
    dir: TempDir,
    clock: Arc<FakeClock>,
    runner: Arc<FakeRunner>,
    config: Config,
    service: Service,
}

impl Host {
    async fn new(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(FakeClock::default());
        clock.pass(DAY);
        let runner = Arc::new(FakeRunner::default());
        let config = Config::parse(text, []).unwrap();
        let service = start(dir.path(), &clock, &runner, &config).await;
        Host { dir, clock, runner, config, service }
    }

    /// Starts another daemon with the same state.
    async fn restart(self) -> Self {
        let Host { dir, clock, runner, config, service } = self;
        service.stop().await;
        drop(service);
        // The state directory is unlocked with its last handle, and the task that empties the trash has one.
        for _ in 0..2000 {
            if HostVolumes::take(Layout::new(dir.path())).is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let service = start(dir.path(), &clock, &runner, &config).await;
        Host { dir, clock, runner, config, service }
    }

    fn next(&self, act: Act) {
        self.runner.acts.lock().unwrap().push_back(act);
    }

    /// Returns `true` if no build is in progress.
    fn is_idle(&self) -> bool {
        self.service.0.builds.len() == 0
    }

    fn started(&self) -> usize {
        self.runner.orders.lock().unwrap().len()
    }

    /// Waits until the record of the cache satisfies `wanted`.
    async fn until(&self, id: CacheId, wanted: impl Fn(&Record) -> bool) -> Record {
        for _ in 0..2000 {
            let record = self.service.get(&team(), id).await.unwrap();
            if wanted(&record) {
                return record;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{:?}", self.service.get(&team(), id).await);
    }

    /// Waits until the record is deleted.
    async fn gone(&self, id: CacheId) {
        for _ in 0..2000 {
            match self.service.get(&team(), id).await {
                Err(Error::NotFound(_)) => return,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
        panic!("{:?}", self.service.get(&team(), id).await);
    }

    async fn available(&self, name: &str) -> Record {
        let record = self.service.create(&team(), spec(name), None).await.unwrap();
        assert_eq!(record.status, Status::Creating);
        self.until(record.id, |record| record.status == Status::Available).await
    }

    /// Runs the cleanup until only these volumes are left. A builder that has reported its end still runs
    /// briefly.
    async fn left(&self, wanted: &[String]) {
        for _ in 0..2000 {
            self.service.0.janitor.clean_up().await.unwrap();
            if self.volumes() == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(self.volumes(), wanted);
    }

    fn volumes(&self) -> Vec<String> {
        let volumes = self.dir.path().join("tenants/team/volumes");
        let mut names: Vec<String> = fs::read_dir(volumes)
            .map(|entries| entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
            .unwrap_or_default();
        names.sort();
        names
    }
}

async fn start(dir: &Path, clock: &Arc<FakeClock>, runner: &Arc<FakeRunner>, config: &Config) -> Service {
    let volumes = HostVolumes::take(Layout::new(dir)).unwrap();
    let store = SqliteStore::open(&volumes.layout().database(), volumes.any().unwrap()).unwrap();
    let parts = Parts {
        store: Arc::new(store),
        runner: Arc::clone(runner) as Arc<dyn Runner>,
        volumes: Arc::new(volumes),
        clock: Arc::clone(clock) as Arc<dyn Clock>,
        metrics: Metrics::new(),
        progress_interval: None,
    };
    Service::start(parts, config).await.unwrap()
}

fn team() -> TenantName {
    "team".parse().unwrap()
}

fn spec(name: &str) -> Spec {
    Spec {
        name: name.parse().unwrap(),
        images: vec!["nginx:1".parse().unwrap()],
        size_gib: 20,
        retention_days: 0,
        cluster: "c".into(),
        pull_secrets: Vec::new(),
    }
}

const ROOM: &str = "[caches]\ncapacity = \"1000GiB\"\nmax_concurrent_builds = 1\nqueue_length = 2\n";

#[tokio::test]
async fn from_order_to_content() {
    let host = Host::new(ROOM).await;
    let record = host.available("web").await;
    let content = record.content.unwrap();
    assert_eq!((content.generation, content.images.len()), (1, 1));
    assert_eq!((record.message, record.work), (None, None));
    assert_eq!(host.volumes(), [format!("{}.1", record.id)]);
    let order = host.runner.orders.lock().unwrap()[0].clone();
    assert_eq!(order.job.size.unwrap().given().unwrap().0, 20 << 30);
    assert_eq!(order.job.deadline.unwrap(), host.clock.now() + chrono::TimeDelta::minutes(120));
    let found = host.service.find(&team(), &["nginx:1".parse().unwrap()]).await.unwrap();
    assert_eq!(found.unwrap().record.id, record.id);
}

#[tokio::test]
async fn tenants_cannot_see_each_others_caches() {
    let host = Host::new(ROOM).await;
    let record = host.available("web").await;
    let other: TenantName = "other".parse().unwrap();
    let id = record.id;
    assert!(matches!(host.service.get(&other, id).await, Err(Error::NotFound(_))));
    assert!(matches!(host.service.delete(&other, id).await, Err(Error::NotFound(_))));
    assert!(matches!(host.service.cancel(&other, id).await, Err(Error::NotFound(_))));
    assert!(matches!(host.service.refresh(&other, id).await, Err(Error::NotFound(_))));
    assert!(matches!(host.service.details(&other, id).await, Err(Error::NotFound(_))));
    assert!(matches!(host.service.watch(&other, id, 0).await, Err(Error::NotFound(_))));
    assert!(host.service.list(&other, None).await.unwrap().is_empty());
    assert_eq!(host.service.find(&other, &["nginx:1".parse().unwrap()]).await.unwrap(), None);
    host.service.create(&other, spec("web"), None).await.unwrap();
}

#[tokio::test]
async fn a_failure_frees_the_volume_and_keeps_the_name_for_a_day() {
    let host = Host::new(ROOM).await;
    host.next(Act::Fail(Class::NotFound));
    let record = host.service.create(&team(), spec("web"), None).await.unwrap();
    let record = host.until(record.id, |record| record.status == Status::Failed).await;
    assert_eq!(record.message.as_deref(), Some("nginx:1: it is so"));
    assert_eq!(record.class, Some(Class::NotFound));
    host.left(&[]).await;
    let taken = host.service.create(&team(), spec("web"), None).await.unwrap_err();
    assert!(matches!(taken, Error::Store(StoreError::NameTaken(_))), "{taken:?}");
    host.clock.pass(DAY - Duration::from_secs(1));
    host.service.0.janitor.clean_up().await.unwrap();
    host.service.get(&team(), record.id).await.unwrap();
    host.clock.pass(Duration::from_secs(1));
    host.service.0.janitor.clean_up().await.unwrap();
    host.service.get(&team(), record.id).await.unwrap_err();
    host.available("web").await;
}

#[tokio::test]
async fn transient_failures_are_retried() {
    let host = Host::new(&format!("{ROOM}build_retries = 2\nbuild_retry_pause_seconds = 0\n")).await;
    host.next(Act::Fail(Class::Transient));
    host.next(Act::Die);
    let record = host.service.create(&team(), spec("web"), None).await.unwrap();
    host.until(record.id, |record| record.status == Status::Available).await;
    assert_eq!(host.started(), 3);
    for _ in 0..3 {
        host.next(Act::Die);
    }
    let record = host.service.create(&team(), spec("bad"), None).await.unwrap();
    let record = host.until(record.id, |record| record.status == Status::Failed).await;
    assert_eq!(record.message.as_deref(), Some("killed by signal 9"));
    assert_eq!(host.started(), 6);
}

#[tokio::test]
async fn deletion_waits_while_the_volume_is_in_use() {
    let host = Host::new(ROOM).await;
    let record = host.available("web").await;
    let volume = host.dir.path().join("tenants/team/volumes").join(format!("{}.1", record.id));
    let lease = Lease::shared(&Dir::open(&volume).unwrap()).unwrap().unwrap();
    assert_eq!(host.service.delete(&team(), record.id).await.unwrap().status, Status::Deleting);
    let record = host.until(record.id, |record| record.message.is_some()).await;
    assert!(record.message.unwrap().contains("in use") && record.status == Status::Deleting);
    assert_eq!(host.service.delete(&team(), record.id).await.unwrap().status, Status::Deleting);
    drop(lease);
    host.service.0.janitor.clean_up().await.unwrap();
    host.gone(record.id).await;
    assert!(host.volumes().is_empty());
}

#[tokio::test]
async fn a_running_build_can_be_cancelled_or_deleted() {
    let host = Host::new(ROOM).await;
    host.next(Act::Hang);
    let one = host.service.create(&team(), spec("one"), None).await.unwrap();
    let two = host.service.create(&team(), spec("two"), None).await.unwrap();
    host.until(one.id, |_| host.started() == 1).await;
    let cancelled = host.service.cancel(&team(), one.id).await.unwrap();
    assert_eq!((cancelled.status, cancelled.class), (Status::Failed, Some(Class::Cancelled)));
    host.until(two.id, |record| record.status == Status::Available).await;
    let again = host.service.cancel(&team(), two.id).await.unwrap_err();
    assert!(matches!(again, Error::NotCancellable { status: Status::Available, .. }), "{again:?}");

    host.next(Act::Hang);
    let three = host.service.create(&team(), spec("three"), None).await.unwrap();
    host.until(three.id, |_| host.started() == 3).await;
    let mut watch = host.service.watch(&team(), three.id, 1).await.unwrap();
    host.service.delete(&team(), three.id).await.unwrap();
    host.gone(three.id).await;
    let mut messages = Vec::new();
    while let Some(Notification::CacheEvent(happened)) = watch.next().await {
        messages.push(happened.message);
    }
    assert_eq!(messages, ["attempt 1 began", "deletion requested"]);
    assert_eq!(host.volumes().len(), 1);
}

#[tokio::test]
async fn the_queue_is_bounded() {
    let host = Host::new(ROOM).await;
    let ready = host.available("ready").await;
    host.next(Act::Hang);
    let one = host.service.create(&team(), spec("one"), None).await.unwrap();
    host.until(one.id, |_| host.started() == 2).await;
    let key = || Some(IdempotencyKey { key: "k".into(), request: [7; 32] });
    let two = host.service.create(&team(), spec("two"), key()).await.unwrap();
    // Concurrent creates: there is one place in the queue, and one create gets it.
    let names = ["three", "four", "five", "six", "seven"];
    let tenant = team();
    let creates = names.map(|name| host.service.create(&tenant, spec(name), None));
    let refused: Vec<Error> =
        futures_util::future::join_all(creates).await.into_iter().filter_map(Result::err).collect();
    assert_eq!(refused.len(), names.len() - 1);
    assert!(refused.iter().all(|error| matches!(error, Error::QueueFull { .. })), "{refused:?}");
    assert_eq!(host.service.list(&team(), None).await.unwrap().len(), 4);
    let again = host.service.create(&team(), spec("two"), key()).await.unwrap();
    assert_eq!(again.id, two.id, "a repeated create takes no place in the queue");
    let full = host.service.refresh(&team(), ready.id).await.unwrap_err();
    assert!(matches!(full, Error::QueueFull { .. }), "{full:?}");
    assert!(!host.service.get(&team(), ready.id).await.unwrap().is_refreshing());
}

#[tokio::test]
async fn tenants_take_turns_at_the_builders() {
    let host = Host::new("[caches]\ncapacity = \"1000GiB\"\nmax_concurrent_builds = 1\n").await;
    let other: TenantName = "other".parse().unwrap();
    host.next(Act::Hang);
    let first = host.service.create(&team(), spec("first"), None).await.unwrap();
    host.until(first.id, |_| host.started() == 1).await;
    let mut ids = vec![first.id];
    for name in ["second", "third"] {
        ids.push(host.service.create(&team(), spec(name), None).await.unwrap().id);
    }
    ids.insert(2, host.service.create(&other, spec("late"), None).await.unwrap().id);
    host.service.cancel(&team(), first.id).await.unwrap();
    host.until(ids[3], |record| record.status == Status::Available).await;
    let started: Vec<_> = host.runner.orders.lock().unwrap().iter().map(|order| order.id).collect();
    assert_eq!(started, ids);
}

#[tokio::test]
async fn a_tenant_has_a_space_of_its_own() {
    let text = "[caches]\ncapacity = \"900GiB\"\nmax_gib_per_tenant = 60\n";
    let host = Host::new(text).await;
    let own = |error: Error, used, need| {
        let Error::Store(StoreError::TenantFull { need_gib, used_gib, max_gib: 60 }) = error else {
            panic!("{error:?}")
        };
        assert_eq!((need_gib, used_gib), (need, used));
    };
    let record = host.available("web").await;
    let big = || Spec { size_gib: 41, ..spec("big") };
    own(host.service.create(&team(), big(), None).await.unwrap_err(), 20, 41);
    own(host.service.plan(&team(), big()).await.unwrap_err(), 20, 41);
    let other: TenantName = "other".parse().unwrap();
    host.service.create(&other, big(), None).await.unwrap();
    host.service.create(&team(), Spec { size_gib: 21, ..spec("big") }, None).await.unwrap();
    // A refresh temporarily needs two volumes.
    own(host.service.refresh(&team(), record.id).await.unwrap_err(), 41, 20);
    let begun = host.service.receive(&team(), spec("sent"), Some(1), false).await;
    own(begun.unwrap_err(), 41, 20);
}

#[tokio::test]
async fn a_second_daemon_is_refused() {
    let host = Host::new(ROOM).await;
    let second = HostVolumes::take(Layout::new(host.dir.path())).unwrap_err();
    assert!(matches!(second, StateError::InUse(_)), "{second}");
}
