//! The backend for image caches: this host, or a cluster.

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
use crate::kubernetes::daemon::{self, Daemon, Tuning};
use crate::telemetry::metrics::Metrics;
use larder_sys::clock::Clock;

/// A host or a cluster that builds and stores image caches.
pub(super) enum Backend {
    Host(Service, Arc<ChildRunner>),
    Cluster(Box<Daemon>),
}

impl Backend {
    /// Creates a host backend: records in SQLite, builders as child processes, volumes in the state
    /// directory.
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
        Ok(Backend::Host(Service::start(parts, config).await?, runner))
    }

    /// Creates a cluster backend. On this host it only uses a directory for the secrets of a plan.
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
            StateError::Io { doing: "creating", path, source }
        })?;
        let settings = Settings::of_this_process(layout.work(), logs.level, logs.format);
        let planner = ChildRunner::new(settings, &crate::kubernetes::runner::planner_config(config))?;
        let client = client::connect(cluster).await.map_err(daemon::Error::from)?;
        let tuning = Tuning::of(cluster);
        let daemon = Daemon::new(client, cluster, config, tuning, planner, clock, metrics).await?;
        Ok(Backend::Cluster(Box::new(daemon)))
    }

    /// Returns the image cache service of the backend.
    pub(super) fn service(&self) -> &Service {
        match self {
            Backend::Host(service, _) => service,
            Backend::Cluster(daemon) => daemon.service(),
        }
    }

    /// Applies a reloaded configuration. It takes effect for builders that start later.
    pub(super) fn reload(&self, config: &Config) -> Result<(), Error> {
        match self {
            Backend::Host(_, runner) => Ok(runner.reload(config)?),
            Backend::Cluster(daemon) => Ok(daemon.reload(config)?),
        }
    }

    /// Runs the backend's tasks that run alongside the API.
    pub(super) async fn run(&self, stop: &CancellationToken) -> Result<(), daemon::Error> {
        match self {
            Backend::Host(..) => std::future::pending().await,
            Backend::Cluster(daemon) => Box::pin(daemon.run(stop)).await,
        }
    }

    /// Releases the leader lease for the next daemon, once all tasks have stopped.
    pub(super) async fn release(&self) {
        if let Backend::Cluster(daemon) = self {
            daemon.release().await;
        }
    }
}
