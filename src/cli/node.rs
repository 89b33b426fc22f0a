//! `larder node`: runs the agent of a cluster node, and optionally the snapshotter, until a stop signal.

mod attacher;

use std::future::{Future, pending};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::field::display;

use self::attacher::NodeAttacher;
use super::args::{AgentArgs, NodeRole};
use super::exit;
use crate::blocking;
use crate::caches::attachments::Attachments;
use crate::caches::layout::{AGENT_LOCK, Layout};
use crate::config::Config;
use crate::config::node::Node;
use crate::keys;
use crate::kubernetes::client::{self, ConnectError};
use crate::kubernetes::node::health::Health;
use crate::kubernetes::node::{Agent, Settings};
use crate::node::attach::Host;
use crate::node::snapshotter::{self, Server, StartError};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::{Console, notify};
use crate::version::{VERSION, Version};
use crate::volume::proofs::Proofs;
use larder_model::class::Class;
use larder_sys::lock::Lock;
use larder_sys::{Dir, dir};

/// Maximum time for a stop. Must be within `terminationGracePeriodSeconds` of
/// config/kubernetes/node/daemonset.yaml.
const GRACE: Duration = Duration::from_secs(10);
/// Time for which a holder keeps running after a stop signal. Must be within its own grace period
/// (kubernetes::node::objects).
const SUCCESSION: Duration = Duration::from_secs(10);
/// Number of threads that can block: the parallel requests of containerd, and some more.
const THREADS: usize = 64;
/// Variable with the node's name, if the configuration does not set it.
const NAME: &str = "NODE_NAME";

/// Errors that prevent the agent from starting or running.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the name of the node is not configured: set node.name, or {NAME} as the DaemonSet does")]
    Name,
    #[error("node.image is not set: set it to Larder's own image, for the pods that hold volumes")]
    Image,
    #[error("node.trust: {0}")]
    Keys(keys::Error),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Snapshotter(#[from] StartError),
    #[error("creating {}: {source}", path.display())]
    Directory { path: std::path::PathBuf, source: io::Error },
    #[error("another agent uses {0}: wait until it stops, or remove this one")]
    Taken(std::path::PathBuf),
    #[error("listening on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("{doing}: {source}")]
    Io { doing: &'static str, source: io::Error },
}

impl Error {
    fn class(&self) -> Class {
        match self {
            Error::Name | Error::Image => Class::Invalid,
            Error::Keys(e) => e.class(),
            Error::Connect(e) => e.class(),
            Error::Snapshotter(e) => e.class(),
            Error::Taken(_) | Error::Listen { .. } => Class::Conflict,
            Error::Directory { .. } | Error::Io { .. } => Class::Internal,
        }
    }
}

/// Runs the command and returns its exit code. The log names `source`, the origin of the configuration.
pub(super) fn run(args: &AgentArgs, config: &Config, source: &str, console: &Console) -> u8 {
    let built = blocking::multi_thread(None, THREADS);
    let runtime = match built {
        Ok(runtime) => runtime,
        Err(e) => {
            return exit::fail(console, Class::Internal, &format!("starting the threads of the agent: {e}"));
        }
    };
    let ended = match args.role {
        Some(NodeRole::Hold) => runtime.block_on(hold()),
        None => runtime.block_on(Box::pin(work(args, config, source))),
    };
    // Remaining work is not awaited. The next start resumes it.
    runtime.shutdown_background();
    match ended {
        Ok(()) => 0,
        Err(error) => exit::fail(console, error.class(), &error.to_string()),
    }
}

/// Keeps the volume of this pod mounted until the process is stopped. If the pod is deleted by another party,
/// the volume stays mounted for a short time. In this time the agent creates a successor, so that the volume
/// always has a pod.
async fn hold() -> Result<(), Error> {
    stopped()?.await;
    tokio::time::sleep(SUCCESSION).await;
    Ok(())
}

/// Returns a future that waits for a stop signal. Signals are handled from this call on.
fn stopped() -> Result<impl Future<Output = ()>, Error> {
    let listen = |kind| signal(kind).map_err(|source| Error::Io { doing: "waiting for signals", source });
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

async fn work(args: &AgentArgs, config: &Config, source: &str) -> Result<(), Error> {
    let stopped = stopped()?;
    let node = &config.node;
    let name = node_name(node)?;
    if node.image.is_empty() {
        return Err(Error::Image);
    }
    let client = client::connect_by("of this node", node.kubeconfig.as_deref()).await?;
    let layout = Layout::new(&config.state.dir);
    let _lock = take_directories(&layout, node)?;
    let attacher = Arc::new(attacher(args, node, &layout)?);
    let settings = snapshotter::Settings {
        root: layout.snapshotter(),
        attached: layout.attached(),
        socket: args.socket.clone(),
    };
    let snapshotter = node.snapshotter.then(|| Server::start(&settings)).transpose()?;
    let metrics = Metrics::new();
    let settings = Settings { config: node.clone(), node: name.clone() };
    let mut agent = Agent::new(client, settings, attacher, metrics.clone());
    let health = match node.listen {
        Some(address) => Some(serve_health(address, agent.readiness(), metrics).await?),
        None => None,
    };
    let Version { version, commit, .. } = VERSION;
    let (address, state) = (health.as_ref().map(|(address, _)| display(address)), layout.root().display());
    let socket = snapshotter.as_ref().map(|_| display(args.socket.display()));
    tracing::info!(version, commit, config = source, node = name, health = address, socket, %state, "managing image caches");
    let ended = manage(&mut agent, snapshotter, stopped).await;
    if let Some((_, health)) = health {
        health.abort();
    }
    ended
}

/// Runs the agent and the snapshotter until a stop signal.
async fn manage(
    agent: &mut Agent,
    snapshotter: Option<Server>,
    stopped: impl Future<Output = ()>,
) -> Result<(), Error> {
    let stop = CancellationToken::new();
    let serves = snapshotter.is_some();
    let serving = async {
        match snapshotter {
            Some(server) => server.serve(stop.clone()).await,
            None => pending().await,
        }
    };
    tokio::pin!(serving);
    notify::ready();
    tokio::spawn(notify::stay_alive());
    tokio::select! {
        ended = &mut serving => {
            return ended.map_err(|source| Error::Io { doing: "serving containerd", source });
        }
        () = agent.run(&stop) => {}
        () = stopped => {}
    }
    tracing::info!("shutting down");
    notify::stopping();
    stop.cancel();
    if serves {
        // Do not wait longer for clients that keep their connection open.
        let _ = tokio::time::timeout(GRACE, serving).await;
    }
    Ok(())
}

/// Returns the name of this node: from the configuration, otherwise from the environment.
fn node_name(node: &Node) -> Result<String, Error> {
    match node.name.as_str() {
        "" => std::env::var(NAME).ok().filter(|name| !name.is_empty()).ok_or(Error::Name),
        name => Ok(name.to_owned()),
    }
}

/// Creates the directories of the agent and locks them.
fn take_directories(layout: &Layout, node: &Node) -> Result<Lock, Error> {
    // Pods read the mounts below the second directory.
    for (path, mode) in [(layout.root(), 0o700), (&node.mounts, 0o755)] {
        let made = dir::create_all(path, mode);
        made.map_err(|source| Error::Directory { path: path.to_owned(), source })?;
    }
    // The previous agent might still be stopping. The DaemonSet then restarts this one.
    let lock = Dir::open(layout.root()).and_then(|dir| Lock::try_exclusive(&dir, AGENT_LOCK.as_bytes()));
    let lock = lock.map_err(|source| Error::Io { doing: "locking state.dir", source })?;
    lock.ok_or_else(|| Error::Taken(layout.root().to_owned()))
}

fn attacher(args: &AgentArgs, node: &Node, layout: &Layout) -> Result<NodeAttacher, Error> {
    let mounts = node.mounts.canonicalize();
    let mounts = mounts.map_err(|source| Error::Directory { path: node.mounts.clone(), source })?;
    Ok(NodeAttacher {
        host: Host {
            root: node.root.clone(),
            records: Attachments::new(layout.attached()),
            proofs: Proofs::new(layout.verified()),
            socket: args.socket.clone(),
            snapshots: layout.snapshotter(),
            content_cache: layout.content_cache(),
        },
        mounts,
        runtimes: node.runtimes.clone(),
        preload: node.preload,
        trust: keys::trust(&node.trust).map_err(Error::Keys)?,
        verify_layers: node.verify_layers,
    })
}

/// Serves the health endpoints in a task. Returns its address, in which a port of 0 is resolved.
async fn serve_health(
    address: SocketAddr,
    readiness: Arc<AtomicBool>,
    metrics: Metrics,
) -> Result<(SocketAddr, JoinHandle<()>), Error> {
    let failed = |source| Error::Listen { address, source };
    let bound = Health::bind(address).await.map_err(failed)?;
    let address = bound.address().map_err(failed)?;
    Ok((address, tokio::spawn(bound.serve(readiness, metrics))))
}
