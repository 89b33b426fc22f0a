//! `larder snapshotter`: runs the snapshotter of a node until a stop signal.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::args::SnapshotterArgs;
use super::exit;
use crate::blocking;
use crate::caches::layout::Layout;
use crate::config::Config;
use crate::node::snapshotter::{Server, Settings};
use crate::telemetry::{Console, notify};
use crate::version::{VERSION, Version};
use larder_model::class::Class;

/// Maximum time to wait for requests in progress. Must be within `TimeoutStopSec` of
/// systemd/larder-snapshotter.service.
const GRACE: Duration = Duration::from_secs(10);
/// Number of threads that can block: the parallel requests, and some more.
const THREADS: usize = 64;

/// Runs the command and returns its exit code. The log names `source`, the origin of the configuration.
pub(super) fn run(args: SnapshotterArgs, config: &Config, source: &str, console: &Console) -> u8 {
    let layout = Layout::new(&config.state.dir);
    let settings = Settings {
        root: args.root.unwrap_or_else(|| layout.snapshotter()),
        attached: layout.attached(),
        socket: args.socket,
    };
    let server = match Server::start(&settings) {
        Ok(server) => server,
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    };
    let runtime = match blocking::multi_thread(None, THREADS) {
        Ok(runtime) => runtime,
        Err(e) => {
            return exit::fail(
                console,
                Class::Internal,
                &format!("starting the threads of the snapshotter: {e}"),
            );
        }
    };
    let Version { version, commit, .. } = VERSION;
    let (socket, root) = (settings.socket.display(), settings.root.display());
    let state = config.state.dir.display();
    tracing::info!(version, commit, config = source, %socket, %root, %state, "serving containerd");
    let ended = runtime.block_on(serve(server));
    // Remaining requests are not awaited. The next start removes their leftovers.
    runtime.shutdown_background();
    match ended {
        Ok(()) => 0,
        Err(e) => exit::fail(console, Class::Internal, &format!("serving containerd: {e}")),
    }
}

async fn serve(server: Server) -> io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let serving = server.serve(stop.clone());
    tokio::pin!(serving);
    notify::ready();
    tokio::spawn(notify::stay_alive());
    tokio::select! {
        ended = &mut serving => return ended,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("shutting down");
    notify::stopping();
    stop.cancel();
    // Do not wait longer for clients that keep their connection open.
    let _ = tokio::time::timeout(GRACE, serving).await;
    Ok(())
}
