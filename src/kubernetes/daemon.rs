//! A daemon of a cluster: its parts, and the tasks that run next to the API.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio_util::sync::CancellationToken;

use super::client;
use super::copies::Copies;
use super::events::Reporter;
use super::inventory::Inventory;
use super::leader::{self, Ended};
use super::lease::Lease;
use super::names::Names;
use super::node::held::PodReleaser;
use super::runner::{BuildTiming, KubeRunner};
use super::store::KubeStore;
use super::upkeep::{self, Upkeep};
use super::uses::Uses;
use super::volumes::KubeVolumes;
use super::watch::Watch;
use crate::caches::runner::child::{ChildRunner, ChildRunnerError};
use crate::caches::service::{Parts, Service, StartError};
use crate::config::Config;
use crate::config::cluster::Cluster;
use crate::telemetry::metrics::Metrics;
use larder_model::class::Class;
use larder_model::image_cache::CacheId;
use larder_sys::clock::Clock;

/// Interval between two writes of a build's progress, for other daemons and for `kubectl`.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
/// Interval between two checks for due upkeep of image caches.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Number of these intervals between two lists of a tenant namespace's claims: ten minutes.
const USES_INTERVALS: u32 = 120;

/// Intervals and timeouts of a daemon of a cluster.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Intervals and timeouts of builds.
    pub builds: BuildTiming,
    /// Duration of the leader lease.
    pub lease: Duration,
    /// Interval between two writes of a build's progress.
    pub progress: Duration,
    /// Interval between two checks for due refreshes, last uses and image caches to create on a miss.
    pub upkeep: Duration,
}

impl Tuning {
    /// Returns the settings for a configuration.
    pub fn of(cluster: &Cluster) -> Self {
        Tuning {
            builds: BuildTiming::of(cluster),
            lease: leader::LEASE_DURATION,
            progress: PROGRESS_INTERVAL,
            upkeep: UPKEEP_INTERVAL,
        }
    }
}

/// A daemon cannot start or continue.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client for the cluster cannot be created.
    #[error(transparent)]
    Connect(#[from] client::ConnectError),
    /// The configuration cannot be passed to builders.
    #[error(transparent)]
    Runner(#[from] ChildRunnerError),
    /// The records cannot be read.
    #[error(transparent)]
    Start(#[from] StartError),
    /// This daemon is no longer the leader.
    #[error("{0}; this process exits and must be started again")]
    Ended(Ended),
    /// A watch ended, which must not happen.
    #[error("a watch of the cluster ended unexpectedly")]
    Watch,
}

impl Error {
    /// Returns the class, which decides exit code and retry.
    pub fn class(&self) -> Class {
        match self {
            Error::Connect(e) => e.class(),
            Error::Runner(e) => e.class(),
            Error::Start(StartError::Store(e)) => e.class(),
            Error::Start(StartError::State(e)) => e.class(),
            Error::Ended(_) | Error::Watch => Class::Busy,
        }
    }
}

/// A daemon whose records are in a cluster.
#[derive(Debug)]
pub struct Daemon {
    service: Service,
    runner: Arc<KubeRunner>,
    watch: Watch,
    upkeep: Arc<Upkeep>,
    lease: Lease,
    /// `None` if pods are not held back until their image cache is attached.
    releaser: Option<PodReleaser>,
}

impl Daemon {
    /// Connects the parts. The daemon answers requests from then on; [`run`](Daemon::run) does everything
    /// else.
    ///
    /// # Errors
    /// The configuration cannot be passed to builders, or the records cannot be read.
    pub async fn new(
        client: Client,
        cluster: &Cluster,
        config: &Config,
        tuning: Tuning,
        planner: ChildRunner,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Result<Self, Error> {
        // `HOSTNAME` is unique for each pod, but not for each process in it.
        let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "larder".to_owned());
        let identity = format!("{host}_{}", CacheId::random());
        let own = &cluster.namespace;
        let names = Names { namespace: own.clone() };
        let store = Arc::new(KubeStore::new(client.clone(), &cluster.uid, own, &identity));
        let inventory = Inventory::new(&client, &names);
        let runner =
            KubeRunner::new(client.clone(), cluster, config, tuning.builds, planner, inventory.clone())?;
        let runner = Arc::new(runner);
        let copies = Arc::new(Copies::new(client.clone(), names.clone()));
        let claims_interval = tuning.upkeep * USES_INTERVALS;
        let uses = Uses::new(client.clone(), Arc::clone(&clock), &cluster.node_namespace, claims_interval);
        let uses = Arc::new(uses);
        let volumes = KubeVolumes::new(
            client.clone(),
            names.clone(),
            Arc::clone(&copies),
            inventory.clone(),
            Arc::clone(&uses),
        );
        let parts = Parts {
            store: Arc::clone(&store) as _,
            runner: Arc::clone(&runner) as _,
            volumes: Arc::new(volumes),
            clock: Arc::clone(&clock),
            metrics,
            progress_interval: Some(tuning.progress),
        };
        let service = Service::new(parts, config).await?;
        let reporter = || Reporter::new(client.clone(), "larder.dev/daemon", &identity);
        let parts = upkeep::Parts {
            client: client.clone().into(),
            service: service.clone(),
            uses,
            clock: Arc::clone(&clock),
            reporter: reporter(),
            cluster: cluster.uid.clone(),
            every: tuning.upkeep,
        };
        let upkeep = Arc::new(Upkeep::new(parts, &config.upkeep));
        let watch = Watch {
            client: client.clone().into(),
            store,
            service: service.clone(),
            names,
            node_namespace: cluster.node_namespace.clone(),
            copies,
            inventory,
            clock,
            reporter: reporter(),
            upkeep: Arc::clone(&upkeep),
        };
        let releaser = cluster
            .hold_pods
            .then(|| PodReleaser::new(client.clone(), service.clone(), &cluster.node_namespace, &identity));
        let lease = Lease::new(client, own, leader::NAME, &identity, tuning.lease);
        Ok(Daemon { service, runner, watch, upkeep, lease, releaser })
    }

    /// Applies a reloaded configuration to builders that start from now on. The cluster settings do not
    /// change.
    ///
    /// # Errors
    /// The configuration cannot be passed to builders.
    pub fn reload(&self, config: &Config) -> Result<(), Error> {
        self.upkeep.reload(&config.upkeep);
        Ok(self.runner.reload(config)?)
    }

    /// Returns the service that manages the image caches.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// Watches the cluster, waits for the leader lease and leads, until `stop`.
    ///
    /// # Errors
    /// The daemon must exit. Another daemon may lead by now, and this one must not write any more.
    pub async fn run(&self, stop: &CancellationToken) -> Result<(), Error> {
        tokio::select! {
            ended = leader::lead(&self.lease, &self.service, stop) => match ended {
                Ended::Stopped => Ok(()),
                Ended::Start(error) => Err(error.into()),
                lost @ Ended::Lost => Err(Error::Ended(lost)),
            },
            () = self.watch.run() => Err(Error::Watch),
            () = self.upkeep.run() => Err(Error::Watch),
            () = self.release_pods() => Err(Error::Watch),
        }
    }

    async fn release_pods(&self) {
        match &self.releaser {
            Some(releaser) => releaser.run().await,
            None => std::future::pending().await,
        }
    }

    /// Releases the leader lease, so that another daemon can lead at once. Call it when all work has stopped.
    pub async fn release(&self) {
        if let Err(fault) = self.lease.release().await {
            tracing::warn!("could not release the leader lease; it will expire: {fault}");
        }
    }
}
