//! Where image caches are made and kept: on this host, or in a cluster.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{Error, Logs};
use crate::caches::layout::Layout;
use crate::caches::runner::child::{ChildRunner, Settings, clear_work};
use crate::caches::service::{Parts, Service};
use crate::caches::store::sqlite::SqliteStore;
use crate::caches::volumes::StateError;
use crate::caches::volumes::host::HostVolumes;
use crate::config::Config;
use crate::config::cluster::Cluster;
use crate::kubernetes::client;
use crate::kubernetes::daemon::{self, Daemon, Habits};
use crate::telemetry::metrics::Metrics;
use larder_sys::clock::Clock;

/// One of the two.
pub(super) enum Place {
    Host(Service, Arc<ChildRunner>),
    Cluster(Box<Daemon>),
}

impl Place {
    /// Records in SQLite, builders as child processes, volumes in the state directory.
    pub(super) async fn host(
        volumes: HostVolumes,
        config: &Config,
        logs: Logs,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Result<Self, Error> {
        let store = SqliteStore::open(&volumes.layout().database(), volumes.any()?)?;
        let settings = Settings::of_this_process(volumes.layout().work(), logs.level, logs.format);
        let runner = Arc::new(ChildRunner::new(settings, config)?);
        let parts = Parts {
            store: Arc::new(store),
            runner: runner.clone(),
            volumes: Arc::new(volumes),
            clock,
            metrics,
            progress_interval: None,
        };
        Ok(Place::Host(Service::start(parts, config).await?, runner))
    }

    /// Everything in a cluster. Of this host it takes a directory for the secrets of a plan.
    pub(super) async fn cluster(
        cluster: &Cluster,
        config: &Config,
        logs: Logs,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Result<Self, Error> {
        let layout = Layout::new(&config.state.dir);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(layout.root());
        made.and_then(|()| clear_work(&layout.work())).map_err(|source| {
            let path = layout.work();
            StateError::Io { doing: "making", path, source }
        })?;
        let settings = Settings::of_this_process(layout.work(), logs.level, logs.format);
        let planner = ChildRunner::new(settings, &daemon::of_planner(config))?;
        let client = client::connect(cluster).await.map_err(daemon::Error::from)?;
        let habits = Habits::of(cluster);
        let daemon = Daemon::new(client, cluster, config, habits, planner, clock, metrics).await?;
        Ok(Place::Cluster(Box::new(daemon)))
    }

    /// The image caches.
    pub(super) fn service(&self) -> &Service {
        match self {
            Place::Host(service, _) => service,
            Place::Cluster(daemon) => daemon.service(),
        }
    }

    /// Takes up a configuration that was read again, for builders that are started from now on.
    pub(super) fn reload(&self, config: &Config) -> Result<(), Error> {
        match self {
            Place::Host(_, runner) => Ok(runner.reload(config)?),
            Place::Cluster(daemon) => Ok(daemon.reload(config)?),
        }
    }

    /// What runs beside the API, for as long as it may.
    pub(super) async fn run(&self, stop: &CancellationToken) -> Result<(), daemon::Error> {
        match self {
            Place::Host(..) => std::future::pending().await,
            Place::Cluster(daemon) => Box::pin(daemon.run(stop)).await,
        }
    }

    /// Makes room for the next daemon, when everything is still.
    pub(super) async fn release(&self) {
        if let Place::Cluster(daemon) = self {
            daemon.release().await;
        }
    }
}
