//! The server task and its shared state.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::sync::watch;

use super::http;
use super::store::State;

/// Reason for a wake-up of watches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wake {
    revision: u64,
    /// Number of times that running watches were cut off.
    pub(super) cuts: u64,
    /// Number of times that running watches were ended with 410.
    pub(super) expiries: u64,
}

/// State of the server, with notifications of its changes.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    wake: watch::Sender<Wake>,
}

impl Shared {
    pub(super) fn new(state: State) -> Arc<Self> {
        Arc::new(Shared { state: Mutex::new(state), wake: watch::Sender::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.lock())
    }

    /// Changes the state and notifies its subscribers.
    pub(super) fn write<T>(&self, write: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let done = write(&mut state);
        let revision = state.revision;
        drop(state);
        self.wake.send_if_modified(|wake| std::mem::replace(&mut wake.revision, revision) != revision);
        done
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Wake> {
        self.wake.subscribe()
    }

    pub(super) fn cut_watches(&self) {
        self.wake.send_modify(|wake| wake.cuts += 1);
    }

    pub(super) fn expire_watches(&self) {
        self.wake.send_modify(|wake| wake.expiries += 1);
    }
}

/// Accepts connections until the future is dropped.
pub(super) async fn serve(listener: std::net::TcpListener, shared: Arc<Shared>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("the socket is non-blocking");
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let service = service_fn(|request| http::answer(request, Arc::clone(&shared)));
            let connection = hyper::server::conn::http1::Builder::new();
            // A client that disconnects is not an error of the server.
            let _ = connection.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// Returns a listener on a free port of 127.0.0.1.
pub(super) fn listen() -> (std::net::TcpListener, SocketAddr) {
    let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    listener.set_nonblocking(true).expect("a socket can be non-blocking");
    let address = listener.local_addr().expect("a bound socket has an address");
    (listener, address)
}
