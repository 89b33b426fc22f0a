//! Where the API listens, and what one connection may take.
//!
//! The Unix socket has connections of its own, so that a flood over TCP cannot lock the operator out: an eighth of
//! `api.max_connections`. TCP has the rest. `places` says which connection is closed when there are too many, and
//! `connection` has the clocks.

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
use places::{Bounds, Places};
use standing::Standing;
use tls::Tls;

/// How long requests under way may take to come to their end when the daemon stops.
const DRAIN: Duration = Duration::from_secs(10);
/// Pause after an accept that failed, most likely for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How long a new connection may take until it counts as one without a valid credential.
const FRESH: Duration = Duration::from_secs(1);

/// Who is at the other end of a connection; every request carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A process of this host, over the Unix socket.
    Unix {
        /// Its user.
        uid: u32,
        /// Whether it is the tenant `admin` without a credential.
        admitted: bool,
    },
    /// Somebody over TCP.
    Tcp {
        /// From where.
        address: SocketAddr,
    },
}

impl Peer {
    /// Whether it may act as the tenant `admin`.
    pub fn is_admitted(&self) -> bool {
        matches!(self, Peer::Unix { admitted: true, .. })
    }
}

/// The API cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// TCP with nobody who could use it.
    #[error("api.tcp is set, and no tenant has a token or an access key: add one, or remove api.tcp")]
    NoCredential,
    /// TCP without TLS beyond this host.
    #[error(
        "api.tcp {0} is no address of loopback, and there is no certificate: set api.tls_certificate and api.tls_key"
    )]
    Plain(SocketAddr),
    /// A daemon answers at the socket.
    #[error("binding {}: a daemon answers there already", .0.display())]
    Occupied(PathBuf),
    /// Something that is no socket is in its place.
    #[error("binding {}: something that is no socket is there, and is left alone", .0.display())]
    NotASocket(PathBuf),
    /// No such group.
    #[error("api.socket_group {0:?}: there is no such group")]
    Group(String),
    /// The socket cannot be made.
    #[error("binding {}: {doing}: {source}", path.display())]
    Unix {
        /// The socket.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The address cannot be bound.
    #[error("binding api.tcp {address}: {source}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The key cannot be read, or others can read it.
    #[error("reading {}: {source}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ReadError,
    },
    /// Certificate or key cannot be used.
    #[error("reading {}: {reason}", path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl ListenError {
    /// The class that decides exit code and retry.
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

/// Bound, and not answering yet: until [`Api::serve`](super::Api::serve), who connects waits.
#[derive(Debug)]
pub struct Listeners {
    unix: UnixListener,
    group: bool,
    tcp: Option<(TcpListener, Option<Tls>)>,
}

impl Listeners {
    /// Binds what is configured. Needs a runtime of tokio.
    ///
    /// # Errors
    /// [`ListenError`], also for TCP that nobody could use or that would show credentials to the network.
    pub fn bind(settings: &Api, any_credential: bool) -> Result<Self, ListenError> {
        let tcp = match settings.tcp {
            None => None,
            Some(_) if !any_credential => return Err(ListenError::NoCredential),
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

    /// The address of TCP; with port 0 in the configuration, the port that was given.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|(listener, _)| listener.local_addr().ok())
    }

    /// A handle to the certificate, which can be read again while connections are served.
    pub fn tls(&self) -> Option<Tls> {
        self.tcp.as_ref().and_then(|(_, tls)| tls.clone())
    }

    /// Accepts until `stop`, then waits for requests under way.
    pub(super) async fn serve(self, router: Router, settings: Api, stop: CancellationToken) {
        let limits = Limits::of(&settings);
        let tracker = TaskTracker::new();
        let cut = CancellationToken::new();
        let door = |bounds| Door {
            places: Places::new(bounds),
            tracker: tracker.clone(),
            connection: Connection { router: router.clone(), limits, stop: stop.clone(), cut: cut.clone() },
        };
        let (over_unix, over_tcp) = bounds(&settings);
        let (over_unix, over_tcp) = (door(over_unix), door(over_tcp));
        let over_unix = unix::accept(self.unix, self.group, over_unix);
        let over_tcp = async move {
            if let Some((listener, tls)) = self.tcp {
                tcp::accept(listener, tls, over_tcp).await;
            }
        };
        tokio::join!(over_unix, over_tcp);
        tracker.close();
        if tokio::time::timeout(DRAIN, tracker.wait()).await.is_err() {
            tracing::warn!(connections = tracker.len(), "requests were cut: they did not end in time");
            cut.cancel();
            tracker.wait().await;
        }
    }
}

/// The limits of the Unix socket and of TCP.
fn bounds(settings: &Api) -> (Bounds, Bounds) {
    let own = (settings.max_connections / 8).max(1);
    let rest = settings.max_connections.saturating_sub(own).max(1);
    let over_unix = Bounds { all: own, strangers: (own / 4).max(1), fresh: FRESH, per_origin: own };
    let over_tcp = Bounds {
        all: rest,
        strangers: settings.max_unauthenticated_connections.min(rest),
        fresh: FRESH,
        per_origin: settings.max_connections_per_address,
    };
    (over_unix, over_tcp)
}

/// A connection that was accepted and has a place.
struct Accepted<S> {
    stream: S,
    peer: Peer,
    standing: Arc<Standing>,
}

/// A listener.
struct Door {
    places: Arc<Places>,
    tracker: TaskTracker,
    connection: Connection,
}

impl Door {
    /// Accepts with `accept` and hands each connection that gets a place to `serve`, until the daemon stops. `accept` returns
    /// no peer if the kernel does not say who it is: such a connection is closed.
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
                    let standing = Standing::new(peer.is_admitted());
                    let Some(place) = self.places.admit(Origin::of(&peer), &standing) else { continue };
                    let serving = serve(Accepted { stream, peer, standing }, self.connection.clone());
                    self.tracker.spawn(async move {
                        serving.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;
