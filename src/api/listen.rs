//! The listeners of the API and the limits of connections.
//!
//! The Unix socket has its own connection limit, an eighth of `api.max_connections`, so that a flood over TCP
//! cannot lock the operator out. TCP has the rest. `places` selects the connection to close when there are
//! too many, and `connection` enforces the timeouts.

mod connection;
mod lines;
pub(super) mod origin;
mod places;
pub(super) mod standing;
mod tcp;
pub mod tls;
mod unix;

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::api::Api;
use connection::{Connection, Limits};
use larder_model::class::Class;
use larder_sys::private::ReadError;
use origin::Origin;
use places::{Bounds, ConnectionSet};
use standing::ConnectionState;
use tls::Tls;

/// Maximum time for active requests to finish when the daemon stops.
const DRAIN: Duration = Duration::from_secs(10);
/// Pause after a failed accept. The usual cause is a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Age at which a new connection counts as one without a valid credential.
const FRESH: Duration = Duration::from_secs(1);

/// The peer of a connection, attached to every request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A process of this host, over the Unix socket.
    Unix {
        /// User ID of the process.
        uid: u32,
        /// `true` if it is the tenant `admin` without a credential.
        admitted: bool,
    },
    /// A client over TCP.
    Tcp {
        /// Address of the client.
        address: SocketAddr,
    },
}

impl Peer {
    /// Returns `true` if the peer can act as the tenant `admin`.
    pub fn is_admitted(&self) -> bool {
        matches!(self, Peer::Unix { admitted: true, .. })
    }
}

/// The reason why the API cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// TCP without TLS is only allowed on loopback.
    #[error(
        "api.tcp {0} is not a loopback address, and no certificate is configured: set api.tls_certificate and api.tls_key"
    )]
    Plain(SocketAddr),
    /// Another daemon answers at the socket.
    #[error("binding {}: another daemon is already listening", .0.display())]
    Occupied(PathBuf),
    /// A file that is not a socket exists at the path.
    #[error("binding {}: a file that is not a socket exists there: remove it, or set another path", .0.display())]
    NotASocket(PathBuf),
    /// The configured group does not exist.
    #[error("api.socket_group {0:?}: there is no such group")]
    Group(String),
    /// The socket cannot be created.
    #[error("binding {}: {doing}: {source}", path.display())]
    Unix {
        /// Path of the socket.
        path: PathBuf,
        /// The operation that failed.
        doing: &'static str,
        /// The error of the kernel.
        r#source: io::Error,
    },
    /// The TCP address cannot be bound.
    #[error("binding api.tcp {address}: {source}")]
    Tcp {
        /// The configured address.
        address: SocketAddr,
        /// The error of the kernel.
        r#source: io::Error,
    },
    /// The key cannot be read, or other users can read it.
    #[error("reading {}: {source}", path.display())]
    Key {
        /// Path of the key file.
        path: PathBuf,
        /// The cause.
        r#source: ReadError,
    },
    /// The certificate or the key cannot be used.
    #[error("reading {}: {reason}", path.display())]
    Tls {
        /// Path of the file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
}

impl ListenError {
    /// Returns the class, which determines the exit code and whether to retry.
    pub fn class(&self) -> Class {
        match self {
            ListenError::Occupied(_) | ListenError::Tcp { .. } => Class::Busy,
            ListenError::Unix { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Class::Denied
            }
            ListenError::Key { source: ReadError::Open { .. }, .. } => Class::Denied,
            _ => Class::Invalid,
        }
    }
}

/// Bound listeners. Until [`Api::serve`](super::Api::serve), connecting clients wait.
#[derive(Debug)]
pub struct Listeners {
    unix: UnixListener,
    group: bool,
    tcp: Option<(TcpListener, Option<Tls>)>,
}

impl Listeners {
    /// Binds the configured listeners. Requires a tokio runtime.
    ///
    /// # Errors
    /// Returns [`ListenError`], also for TCP that would expose credentials to the network.
    pub fn bind(settings: &Api) -> Result<Self, ListenError> {
        let tcp = match settings.tcp {
            None => None,
            Some(address) => {
                let tls = Tls::load(settings)?;
                if tls.is_none() && !address.ip().is_loopback() {
                    return Err(ListenError::Plain(address));
                }
                Some((tcp::bind(address)?, tls))
            }
        };
        let unix = unix::bind(&settings.socket, &settings.socket_group)?;
        Ok(Listeners { unix, group: !settings.socket_group.is_empty(), tcp })
    }

    /// Returns the TCP address. If the configured port is 0, it has the assigned port.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|(listener, _)| listener.local_addr().ok())
    }

    /// Returns a handle to the certificate, which can be reloaded while connections are served.
    pub fn tls(&self) -> Option<Tls> {
        self.tcp.as_ref().and_then(|(_, tls)| tls.clone())
    }

    /// Accepts connections until `stop`, then waits for active requests.
    pub(super) async fn serve(self, router: Router, settings: Api, stop: CancellationToken) {
        let limits = Limits::of(&settings);
        let tracker = TaskTracker::new();
        let cut = CancellationToken::new();
        let acceptor = |bounds| Acceptor {
            places: ConnectionSet::new(bounds),
            tracker: tracker.clone(),
            connection: Connection { router: router.clone(), limits, stop: stop.clone(), cut: cut.clone() },
        };
        let (over_unix, over_tcp) = bounds(&settings);
        let (over_unix, over_tcp) = (acceptor(over_unix), acceptor(over_tcp));
        let over_unix = unix::accept(self.unix, self.group, over_unix);
        let over_tcp = async move {
            if let Some((listener, tls)) = self.tcp {
                tcp::accept(listener, tls, over_tcp).await;
            }
        };
        tokio::join!(over_unix, over_tcp);
        tracker.close();
        if tokio::time::timeout(DRAIN, tracker.wait()).await.is_err() {
            tracing::warn!(connections = tracker.len(), "aborting requests that did not end in time");
            cut.cancel();
            tracker.wait().await;
        }
    }
}

/// Returns the limits of the Unix socket and of TCP.
fn bounds(settings: &Api) -> (Bounds, Bounds) {
    let own = (settings.max_connections / 8).max(1);
    let rest = settings.max_connections.saturating_sub(own).max(1);
    let over_unix = Bounds { all: own, unauthenticated: (own / 4).max(1), fresh: FRESH, per_origin: own };
    let over_tcp = Bounds {
        all: rest,
        unauthenticated: settings.max_unauthenticated_connections.min(rest),
        fresh: FRESH,
        per_origin: settings.max_connections_per_address,
    };
    (over_unix, over_tcp)
}

/// An accepted connection that counts against the limits.
struct Accepted<S> {
    stream: S,
    peer: Peer,
    standing: Arc<ConnectionState>,
}

/// A listener with its connections.
struct Acceptor {
    places: Arc<ConnectionSet>,
    tracker: TaskTracker,
    connection: Connection,
}

impl Acceptor {
    /// Accepts connections with `accept` until the daemon stops, and passes admitted ones to `serve`.
    /// `accept` returns no peer if the kernel does not report it; such a connection is closed.
    async fn open<S, F>(
        self,
        mut accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<(S, Option<Peer>)>>,
        serve: impl Fn(Accepted<S>, Connection) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.connection.stop.clone();
        let stopped = stop.cancelled();
        tokio::pin!(stopped);
        loop {
            let next = async {
                self.places.room().await;
                poll_fn(&mut accept).await
            };
            let accepted = tokio::select! {
                () = &mut stopped => return,
                accepted = next => accepted,
            };
            match accepted {
                Ok((_, None)) => {}
                Ok((stream, Some(peer))) => {
                    let standing = ConnectionState::new(peer.is_admitted());
                    let Some(place) = self.places.admit(Origin::of(&peer), &standing) else { continue };
                    let serving = serve(Accepted { stream, peer, standing }, self.connection.clone());
                    self.tracker.spawn(async move {
                        serving.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
