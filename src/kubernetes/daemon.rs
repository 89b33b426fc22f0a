//! A daemon of a cluster: the parts put together, and what runs beside the API.

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
use super::node::held::Keeper;
use super::runner::{KubeRunner, Pace};
use super::store::KubeStore;
use super::upkeep::{self, Upkeep};
use super::uses::Uses;
use super::volumes::KubeVolumes;
use super::watch::Watch;
use crate::caches::runner::child::{ChildRunner, ChildRunnerError};
use crate::caches::service::{Parts, Service, StartError};
use crate::config::Config;
use crate::config::caches::Holder;
use crate::config::cluster::Cluster;
use crate::telemetry::metrics::Metrics;
use larder_model::class::Class;
use larder_model::image_cache::CacheId;
use larder_sys::clock::Clock;

/// How often the progress of a build is written for other daemons and for `kubectl`.
const TELL: Duration = Duration::from_secs(5);
/// Pause between two looks at what is due of the upkeep of image caches.
const UPKEEP: Duration = Duration::from_secs(5);
/// Claims of tenants are listed again after this many of these pauses: ten minutes.
const USES_PART: u32 = 120;

/// How a daemon of a cluster goes about it.
#[derive(Clone, Debug)]
pub struct Habits {
    /// How patient builds are.
    pub pace: Pace,
    /// For how long the lease of the one that leads is good.
    pub lease: Duration,
    /// How often the progress of a build is written down.
    pub tell: Duration,
    /// Pause between two looks at what is due: refreshes, last uses, image caches on a miss.
    pub upkeep: Duration,
}

impl Habits {
    /// As the configuration has it.
    pub fn of(cluster: &Cluster) -> Self {
        Habits { pace: Pace::of(cluster), lease: leader::GOOD_FOR, tell: TELL, upkeep: UPKEEP }
    }
}

/// The configuration of what plans on the host of a daemon: it fills no volume, so it matters not what could hold one.
pub fn of_planner(config: &Config) -> Config {
    let mut config = config.clone();
    config.caches.volume_kind = Holder::Directory;
    config
}

/// A daemon cannot start, or not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no way to the cluster.
    #[error(transparent)]
    Connect(#[from] client::ConnectError),
    /// The configuration cannot be used for builders.
    #[error(transparent)]
    Runner(#[from] ChildRunnerError),
    /// The records cannot be read.
    #[error(transparent)]
    Start(#[from] StartError),
    /// It leads no more.
    #[error("{0}; this larder ends, to begin anew")]
    Ended(Ended),
    /// The watch came to an end, which it does not.
    #[error("the watch of image caches broke off")]
    Watch,
}

impl Error {
    /// The class that decides exit code and retry.
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
    /// `None` if pods are not held back.
    keeper: Option<Keeper>,
}

impl Daemon {
    /// Puts the parts together. Answers requests from then on; the rest is [`run`](Daemon::run)'s.
    pub async fn new(
        client: Client,
        cluster: &Cluster,
        config: &Config,
        habits: Habits,
        planner: ChildRunner,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Result<Self, Error> {
        // Pods are named anew each time, processes in them are not.
        let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "larder".to_owned());
        let identity = format!("{host}_{}", CacheId::random());
        let own = &cluster.namespace;
        let names = Names { namespace: own.clone() };
        let store = Arc::new(KubeStore::new(client.clone(), &cluster.uid, own, &identity));
        let inventory = Inventory::new(&client, &names);
        let runner =
            KubeRunner::new(client.clone(), cluster, config, habits.pace, planner, inventory.clone())?;
        let runner = Arc::new(runner);
        let copies = Arc::new(Copies::new(client.clone(), names.clone()));
        let used_for = habits.upkeep * USES_PART;
        let uses = Uses::new(client.clone(), Arc::clone(&clock), &cluster.node_namespace, used_for);
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
            progress_interval: Some(habits.tell),
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
            every: habits.upkeep,
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
        let keeper = cluster
            .hold_pods
            .then(|| Keeper::new(client.clone(), service.clone(), &cluster.node_namespace, &identity));
        let lease = Lease::new(client, own, leader::NAME, &identity, habits.lease);
        Ok(Daemon { service, runner, watch, upkeep, lease, keeper })
    }

    /// Takes up a configuration that was read again, for builders that are started from now on. The cluster stays as it was.
    pub fn reload(&self, config: &Config) -> Result<(), Error> {
        self.upkeep.reload(&config.upkeep);
        Ok(self.runner.reload(config)?)
    }

    /// The image caches.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// Watches, waits for its turn and leads, until `stop`. An error is the end of this daemon: whoever leads by now must not
    /// be written over.
    pub async fn run(&self, stop: &CancellationToken) -> Result<(), Error> {
        tokio::select! {
            ended = leader::lead(&self.lease, &self.service, stop) => match ended {
                Ended::Stopped => Ok(()),
                Ended::Start(error) => Err(error.into()),
                lost @ Ended::Lost => Err(Error::Ended(lost)),
            },
            () = self.watch.run() => Err(Error::Watch),
            () = self.upkeep.run() => Err(Error::Watch),
            () = self.keep() => Err(Error::Watch),
        }
    }

    async fn keep(&self) {
        match &self.keeper {
            Some(keeper) => keeper.run().await,
            None => std::future::pending().await,
        }
    }

    /// Lets the next one lead, when everything is still.
    pub async fn release(&self) {
        if let Err(fault) = self.lease.release().await {
            tracing::warn!("the next larder leads a little later: {fault}");
        }
    }
}
