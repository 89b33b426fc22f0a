//! `larder serve`: starts, runs and stops the daemon.

mod backend;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::backend::Backend;
use super::exit;
use crate::api::auth::{SharedTenants, TenantError, Tenants};
use crate::api::listen::tls::Tls;
use crate::api::listen::{ListenError, Listeners};
use crate::api::{self, Api};
use crate::caches::layout::Layout;
use crate::caches::runner::child::ChildRunnerError;
use crate::caches::service::StartError;
use crate::caches::store::StoreError;
use crate::caches::volumes::StateError;
use crate::caches::volumes::host::HostVolumes;
use crate::config::cluster::kubernetes;
use crate::config::{Config, ConfigError};
use crate::kubernetes::daemon;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::{Console, notify};
use crate::version::{VERSION, Version};
use crate::{blocking, ui};
use larder_model::class::Class;
use larder_sys::clock::SystemClock;

/// Maximum time for a stop. Must be within `TimeoutStopSec` of systemd/larder.service.
const GRACE: Duration = Duration::from_secs(40);

/// Loads the configuration again, from the same sources as at the start.
pub(super) type Reload = Box<dyn Fn() -> Result<Config, ConfigError>>;

/// Log settings of the daemon, which its builders inherit.
#[derive(Debug)]
pub(super) struct Logs {
    /// The log filter of the daemon.
    pub(super) level: String,
    /// The format of the log lines.
    pub(super) format: crate::config::log::Format,
}

/// Runs the command and returns its exit code. The log names `source`, the origin of the configuration.
pub(super) fn run(config: &Config, reload: &Reload, logs: Logs, source: &str, console: &Console) -> u8 {
    let runtime = match blocking::multi_thread(None, blocking::MAX_THREADS) {
        Ok(runtime) => runtime,
        Err(e) => {
            return exit::fail(console, Class::Internal, &format!("starting the threads of the daemon: {e}"));
        }
    };
    let code = match runtime.block_on(serve(config, reload, logs, source)) {
        Ok(code) => code,
        Err(error) => exit::fail(console, error.class(), &error.to_string()),
    };
    // Tasks that are still running after the grace period are not awaited.
    runtime.shutdown_background();
    code
}

/// Errors that prevent the daemon from starting.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Tenants(#[from] TenantError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Runner(#[from] ChildRunnerError),
    #[error(transparent)]
    Cluster(#[from] daemon::Error),
    #[error("waiting for signals: {0}")]
    Signals(std::io::Error),
}

impl From<StartError> for Error {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Store(e) => Error::Store(e),
            StartError::State(e) => Error::State(e),
        }
    }
}

impl Error {
    fn class(&self) -> Class {
        match self {
            Error::Tenants(e) => e.class(),
            Error::Listen(e) => e.class(),
            Error::State(e) => e.class(),
            Error::Store(e) => e.class(),
            Error::Runner(e) => e.class(),
            Error::Cluster(e) => e.class(),
            Error::Signals(_) => Class::Internal,
        }
    }
}

/// The signals that the daemon handles.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }
}

async fn serve(config: &Config, reload: &Reload, logs: Logs, source: &str) -> Result<u8, Error> {
    let mut signals = Signals::listen().map_err(Error::Signals)?;
    let (clock, metrics) = (Arc::new(SystemClock), Metrics::new());
    metrics.registries(&config.registry);
    let tenants = SharedTenants::new(tenants(config)?);
    if config.api.tcp.is_some() && !tenants.current().any_credential() {
        tracing::warn!(
            "no tenant has a token or an access key: api.tcp serves only /healthz, /readyz and /metrics"
        );
    }
    let (backend, listeners) = match kubernetes(&config.cluster) {
        None => {
            // Lock the state directory first, so that a second daemon cannot take the socket of the first.
            let volumes = HostVolumes::take(Layout::new(&config.state.dir))?;
            let listeners = Listeners::bind(&config.api)?;
            (Backend::host(volumes, config, logs, clock.clone(), metrics.clone()).await?, listeners)
        }
        Some(cluster) => {
            let listeners = Listeners::bind(&config.api)?;
            (Backend::cluster(cluster, config, logs, clock.clone(), metrics.clone()).await?, listeners)
        }
    };
    let Version { version, commit, .. } = VERSION;
    let (tcp, tls) = (listeners.tcp_address().map(tracing::field::display), listeners.tls().is_some());
    let (socket, state) = (config.api.socket.display(), config.state.dir.display());
    tracing::info!(version, commit, config = source, %socket, tcp, tls, %state, "serving requests");
    let service = backend.service().clone();
    let parts = api::Parts { service, tenants: tenants.clone(), clock, metrics: metrics.clone() };
    let stop = CancellationToken::new();
    let tls = listeners.tls();
    let serving = create_api(parts, config).serve(listeners, stop.clone());
    tokio::pin!(serving);
    notify::ready();
    let alive = tokio::spawn(notify::stay_alive());
    let apply = || apply_config(reload, &metrics, &backend, &tenants, tls.as_ref());
    let running = backend.run(&stop);
    tokio::pin!(running);
    let failed = until_end(&backend, serving.as_mut(), running.as_mut(), &mut signals, apply).await;
    let code = shut_down(&backend, serving, &stop, &mut signals, failed).await;
    alive.abort();
    Ok(code)
}

/// Creates the API, with its pages unless they are turned off.
fn create_api(parts: api::Parts, config: &Config) -> Api {
    let api = Api::new(parts, config.api.clone());
    if config.api.ui { api.with_pages(ui::pages) } else { api }
}

/// Waits for a stop signal or a failure, and returns the class of the failure. SIGHUP applies a changed
/// configuration.
async fn until_end(
    backend: &Backend,
    mut serving: Pin<&mut impl Future<Output = ()>>,
    mut running: Pin<&mut impl Future<Output = Result<(), daemon::Error>>>,
    signals: &mut Signals,
    apply: impl Fn(),
) -> Option<Class> {
    loop {
        tokio::select! {
            Err(error) = &mut running => {
                tracing::error!("{error}");
                return Some(error.class());
            }
            // The service has logged the reason. The service manager restarts the daemon.
            () = backend.service().broken() => return Some(Class::Internal),
            // It ends only after a stop.
            () = &mut serving => return None,
            _ = signals.terminate.recv() => return None,
            _ = signals.interrupt.recv() => return None,
            _ = signals.hang_up.recv() => {
                notify::reloading();
                apply();
                notify::ready();
            }
        }
    }
}

/// Stops all tasks within the grace period and returns the exit code. A second signal ends the wait.
async fn shut_down(
    backend: &Backend,
    serving: Pin<&mut impl Future<Output = ()>>,
    stop: &CancellationToken,
    signals: &mut Signals,
    failed: Option<Class>,
) -> u8 {
    tracing::info!("shutting down; unfinished builds resume on the next start");
    notify::stopping();
    stop.cancel();
    let stopping = async {
        tokio::join!(serving, backend.service().stop());
        backend.release().await;
    };
    tokio::select! {
        () = stopping => failed.map_or(0, Class::exit_code),
        () = tokio::time::sleep(GRACE) => {
            tracing::error!("shutdown grace period of {} s exceeded; aborting the remaining tasks", GRACE.as_secs());
            Class::Busy.exit_code()
        }
        _ = signals.terminate.recv() => exit::TERMINATED,
        _ = signals.interrupt.recv() => Class::Cancelled.exit_code(),
    }
}

fn tenants(config: &Config) -> Result<Tenants, TenantError> {
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    Tenants::load(&config.api, &config.tenant, credentials.as_deref())
}

/// Applies a reloaded configuration. If it has an error, nothing changes.
fn apply_config(
    reload: &Reload,
    metrics: &Metrics,
    backend: &Backend,
    shared: &SharedTenants,
    tls: Option<&Tls>,
) {
    let config = match reload() {
        Ok(config) => config,
        Err(error) => {
            return tracing::error!(%error, "cannot reload the configuration; keeping the current one");
        }
    };
    let tenants = match tenants(&config) {
        Ok(tenants) => tenants,
        Err(error) => {
            return tracing::error!(%error, "cannot reload the configuration; keeping the current one");
        }
    };
    if let Some(Err(error)) = tls.map(|tls| tls.reload(&config.api)) {
        return tracing::error!(%error, "cannot reload the configuration; keeping the current one");
    }
    if let Err(error) = backend.reload(&config) {
        return tracing::error!(%error, "cannot reload the configuration; keeping the current one");
    }
    shared.replace(tenants);
    backend.service().reload(&config);
    metrics.registries(&config.registry);
    tracing::info!(
        "configuration reloaded; changes to state, log, telemetry, listeners and the number of builders need a restart"
    );
}
