//! A cluster that runs Larder. It is either the API server of `larder_testing`, whose pods run the real
//! `larder build`, or a real cluster that `LARDER_TEST_KUBECONFIG` names.
//!
//! The nodes of a real cluster must have the image `larder:<version>`, or the image that
//! `LARDER_TEST_BUILDER_IMAGE` names. They must also reach this machine, which runs the registry of the test.
//! If they cannot, `LARDER_TEST_IMAGE` names a small image that the pods can pull. The harness detects the
//! storage class and the snapshot class, or takes them from `LARDER_TEST_STORAGE_CLASS` and
//! `LARDER_TEST_SNAPSHOT_CLASS`. Each test has its own namespaces, and Larder has the rights that
//! `config/kubernetes` grants.

mod real;
mod running;
mod waiting;

use nix::fcntl::Flock;
use std::env;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use larder::caches::record::Record;
use larder::caches::runner::child::{ChildRunner, Settings};
use larder::caches::service::Service;
use larder::config::Config;
use larder::config::cluster::{Cluster as Section, Runner};
use larder::config::log::Format;
use larder::config::registry::Host;
use larder::kubernetes::crd::{ImageCache, ImageCacheSpec};
use larder::kubernetes::daemon::{Daemon, Tuning};
use larder::kubernetes::names::ACCEPT_FROM;
use larder::kubernetes::runner::{BuildTiming, planner_config};
use larder::telemetry::metrics::Metrics;
use larder_fake_kubernetes::{Cluster, Node, Timing};
use larder_model::class::Class;
use larder_model::image_cache::{Spec, TenantName};
use larder_sys::cgroup::Cgroups;
use larder_sys::clock::{Clock, SystemClock};
use larder_testing::image::{Format as ImageFormat, Image, Layer};
use larder_testing::layer::LayerBuilder;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use self::real::Real;
pub(crate) use self::running::{Running, kill_daemon};
use super::served::{Served, random};

/// Time limit of every wait.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(120);
/// The user of the Larder daemon.
pub(crate) const LARDER: &str = "system:serviceaccount:larder:larder";

/// The namespace of the objects that nodes create from snapshots.
pub(crate) const VOLUMES: &str = "larder-volumes";

/// A cluster, and a registry with an image.
pub(crate) struct World {
    pub(crate) served: Served,
    pub(crate) runtime: Runtime,
    pub(crate) config: Config,
    pub(crate) tuning: Tuning,
    pub(crate) clock: Arc<dyn Clock>,
    /// The namespace of one tenant; `other` is the namespace of another.
    pub(crate) team: String,
    pub(crate) other: String,
    admin: Client,
    fake: Option<Cluster>,
    real: Option<Real>,
    /// The lock of the real cluster, if the test runs on one.
    turn: Option<Flock<File>>,
}

/// Returns an image of two layers with a few kilobytes.
pub(crate) fn image() -> Image {
    let layer =
        |seed| Layer::from(LayerBuilder::new().file(format!("f-{seed}"), random(seed, 50_000)).gzip());
    Image::builder(ImageFormat::Oci).layers((0..2).map(layer)).build()
}

/// Returns the documents of a file in `config/kubernetes`.
pub(crate) fn shipped(name: &str) -> Vec<Value> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config/kubernetes").join(name);
    let text = std::fs::read_to_string(path).unwrap();
    text.split("\n---\n").map(|document| serde_saphyr::from_str(document).unwrap()).collect()
}

impl World {
    pub(crate) fn new() -> Self {
        let runtime = Runtime::new().unwrap();
        match runtime.block_on(Real::of_environment()) {
            Some(real) => World::on(runtime, real, real::turn()),
            None => World::in_process(runtime, image(), Timing::default()),
        }
    }

    /// Creates a world with the API server of `larder_testing`. `None` if tests run on a real cluster, which
    /// can neither fail on demand nor show the content of its storage.
    pub(crate) fn faked() -> Option<Self> {
        World::faked_with(image(), Timing::default())
    }

    /// Does the same as [`World::faked`], with another image and other delays.
    pub(crate) fn faked_with(image: Image, timing: Timing) -> Option<Self> {
        if env::var_os("LARDER_TEST_KUBECONFIG").is_some() {
            eprintln!("skipped: needs an API server that fails on demand");
            return None;
        }
        Some(World::in_process(Runtime::new().unwrap(), image, timing))
    }

    fn in_process(runtime: Runtime, image: Image, timing: Timing) -> Self {
        let (admin, fake) = {
            let _in = runtime.enter();
            let cluster = Cluster::with_timing(timing);
            (cluster.admin(), cluster)
        };
        let section = Section {
            builder_image: "larder:1".into(),
            storage_class: "csi".into(),
            snapshot_class: "csi".into(),
            ..Section::default()
        };
        let names = ["team-a", "team-b"].map(str::to_owned);
        let world = World::of(runtime, Served::new([image]), section, names, (admin, Some(fake), None));
        world.install_objects();
        world
    }

    fn on(runtime: Runtime, real: Real, turn: Flock<File>) -> Self {
        let names = ["team-a", "team-b"].map(unique);
        let (section, address) =
            runtime.block_on(async { (real.section(unique("larder")).await, real.address().await) });
        let admin = real.admin.clone();
        let served = Served::at(address, [image()]);
        let host = Host { name: served.registry.host(), plain_http: Some(true), ..Host::default() };
        let mut world = World::of(runtime, served, section, names, (admin, None, Some(real)));
        world.turn = Some(turn);
        world.config.registry.host.push(host);
        world.name_namespaces();
        let real = world.real.as_ref().unwrap();
        world.wait(real.install(world.own(), &[&world.team, &world.other]));
        world
    }

    fn of(
        runtime: Runtime,
        served: Served,
        section: Section,
        [team, other]: [String; 2],
        (admin, fake, real): (Client, Option<Cluster>, Option<Real>),
    ) -> Self {
        let mut config = Config {
            cluster: vec![Section { uid: "here".into(), runner: Runner::Kubernetes, ..section }],
            ..Config::default()
        };
        (config.registry.retries, config.registry.backoff_max_seconds) = (1, 1);
        config.registry.allow.push("127.0.0.0/8".parse().unwrap());
        config.caches.build_retries = 2;
        let patient = |seconds| Duration::from_secs(if fake.is_some() { seconds } else { 300 });
        World {
            tuning: Tuning {
                builds: BuildTiming {
                    look: Duration::from_millis(30),
                    pending: patient(60),
                    report: Duration::from_secs(30),
                    attached: patient(60),
                    snapshot: patient(60),
                    outage: Duration::from_millis(200),
                },
                // Long enough for a busy machine.
                lease: Duration::from_secs(20),
                progress: Duration::from_millis(100),
                upkeep: Duration::from_millis(50),
            },
            clock: Arc::new(SystemClock),
            served,
            runtime,
            config,
            team,
            other,
            admin,
            fake,
            real,
            turn: None,
        }
    }

    fn name_namespaces(&self) {
        for name in [self.own(), &self.team, &self.other] {
            // The pods of builders comply with this level.
            let labels = json!({"pod-security.kubernetes.io/enforce": "baseline"});
            let namespace = json!({
                "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels},
            });
            match &self.fake {
                Some(fake) => {
                    fake.install(&namespace);
                }
                None => {
                    let api: Api<Namespace> = Api::all(self.admin.clone());
                    let namespace = serde_json::from_value(namespace).unwrap();
                    self.wait(api.create(&PostParams::default(), &namespace)).unwrap();
                }
            }
        }
    }

    fn install_objects(&self) {
        self.name_namespaces();
        let fake = self.fake();
        fake.install(&serde_json::to_value(larder::kubernetes::crd::definition()).unwrap());
        fake.install_storage("Delete");
        for object in shipped("rbac.yaml") {
            fake.install(&object);
        }
        for namespace in [&self.team, &self.other] {
            for mut object in shipped("tenant.yaml") {
                object["metadata"]["namespace"] = json!(namespace);
                fake.install(&object);
            }
        }
        self.add_node("node-a");
    }

    /// Installs the objects that node agents need, and makes Larder offer snapshots to nodes.
    pub(crate) fn install_node_objects(&mut self) {
        for file in ["node/namespace.yaml", "node/rbac.yaml"] {
            for object in shipped(file) {
                self.fake().install(&object);
            }
        }
        self.config.cluster[0].node_namespace = VOLUMES.into();
    }

    /// Adds a node whose pods run the `larder` under test.
    pub(crate) fn add_node(&self, name: &str) {
        self.add_node_with(name, env!("CARGO_BIN_EXE_larder").into());
    }

    /// Adds a node whose pods run another program.
    pub(crate) fn add_node_with(&self, name: &str, program: PathBuf) {
        self.fake().add_node(Node {
            name: name.to_owned(),
            labels: Vec::new(),
            program,
            images: Some(vec!["larder:1".to_owned()]),
            environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
        });
    }

    /// Reports whether the cluster is a real one, which tests can inspect less.
    pub(crate) fn is_real(&self) -> bool {
        self.fake.is_none()
    }

    pub(crate) fn fake(&self) -> &Cluster {
        self.fake.as_ref().expect("not a fake cluster")
    }

    /// Returns a client with all rights.
    pub(crate) fn admin(&self) -> Client {
        self.admin.clone()
    }

    /// Returns the namespace of Larder.
    pub(crate) fn own(&self) -> &str {
        &self.config.cluster[0].namespace
    }

    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Returns the objects of one kind, through a client with all rights.
    pub(crate) fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.admin.clone(), namespace)
    }

    pub(crate) fn get<K>(&self, namespace: &str, name: &str) -> Option<K>
    where
        K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        self.wait(self.api::<K>(namespace).get_opt(name)).unwrap()
    }

    /// Annotates the namespace `receiver` to accept image caches of these namespaces.
    pub(crate) fn accept(&self, receiver: &str, from: &str) {
        let namespaces: Api<Namespace> = Api::all(self.admin.clone());
        let patch = json!({"metadata": {"annotations": {ACCEPT_FROM: from}}});
        self.wait(namespaces.patch(receiver, &PatchParams::default(), &Patch::Merge(&patch))).unwrap();
    }

    pub(crate) fn tenant(&self) -> TenantName {
        self.team.parse().unwrap()
    }

    pub(crate) fn images(&self) -> Vec<String> {
        match env::var("LARDER_TEST_IMAGE") {
            Ok(image) if self.is_real() => vec![image],
            _ => self.served.references(),
        }
    }

    pub(crate) fn spec(&self, name: &str) -> Spec {
        Spec {
            name: name.parse().unwrap(),
            images: self.images().iter().map(|image| image.parse().unwrap()).collect(),
            size_gib: 20,
            retention_days: 0,
            cluster: "here".into(),
            pull_secrets: Vec::new(),
        }
    }

    /// Returns an object as a user would write it for `kubectl apply`.
    pub(crate) fn object(&self, name: &str) -> ImageCache {
        let spec = json!({"images": self.images()});
        let mut object = ImageCache::new(name, serde_json::from_value::<ImageCacheSpec>(spec).unwrap());
        object.metadata.namespace = Some(self.team.clone());
        object
    }

    pub(crate) fn apply(&self, object: &ImageCache) -> ImageCache {
        self.wait(self.api(&self.team).create(&PostParams::default(), object)).unwrap()
    }

    /// Starts a daemon with the rights of Larder.
    pub(crate) fn daemon(&self) -> Running {
        let client = match &self.fake {
            Some(fake) => {
                let _in = self.runtime.enter();
                fake.client(LARDER)
            }
            None => self.wait(self.real.as_ref().unwrap().larder(self.own())),
        };
        self.daemon_of(client)
    }

    /// Starts a daemon as another user.
    pub(crate) fn daemon_of(&self, client: Client) -> Running {
        // `LARDER_LOG=larder=debug` shows the logs of the daemons.
        if let Ok(filter) = env::var("LARDER_LOG") {
            let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        }
        let runtime = Runtime::new().unwrap();
        let begin = || {
            let mut settings =
                Settings::of_this_process(self.served.beside("work"), "debug".into(), Format::Text);
            settings.program = env!("CARGO_BIN_EXE_larder").into();
            settings.cgroups = Arc::new(Cgroups::none("not in this test"));
            let planner = ChildRunner::new(settings, &planner_config(&self.config)).unwrap();
            let (section, tuning, clock) =
                (&self.config.cluster[0], self.tuning.clone(), Arc::clone(&self.clock));
            let new =
                Daemon::new(client.clone(), section, &self.config, tuning, planner, clock, Metrics::new());
            runtime.block_on(new)
        };
        // A supervisor would start it again after the API server fails its requests.
        let daemon = self.until("it starts", || match begin() {
            Err(error) if error.class() == Class::Transient => None,
            other => Some(other.unwrap()),
        });
        let service = daemon.service().clone();
        let stop = CancellationToken::new();
        let told = stop.clone();
        let running = runtime.spawn(async move {
            let ended = Box::pin(daemon.run(&told)).await;
            daemon.service().stop().await;
            daemon.release().await;
            ended.map_err(|error| error.to_string())
        });
        Running { runtime: Some(runtime), service, stop, running: Some(running) }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(real) = &self.real {
            self.wait(real.clear(self.own(), &[&self.team, &self.other]));
        }
    }
}

fn unique(what: &str) -> String {
    format!("{what}-{}", &uuid::Uuid::new_v4().simple().to_string()[..8])
}

/// Returns the name of the VolumeSnapshot with a record's content.
pub(crate) fn snapshot_name(object: &ImageCache) -> String {
    format!("ic-{}", object.uid().unwrap())
}
