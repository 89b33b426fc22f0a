//! The state of one connection, shared by its task, its requests, and the listener that can close it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The state of one connection.
#[derive(Debug)]
pub(in crate::api) struct ConnectionState {
    opened: Instant,
    state: Mutex<State>,
    changed: Notify,
    close: CancellationToken,
}

#[derive(Debug)]
struct State {
    open: usize,
    since: Instant,
    had_any: bool,
    authenticated: bool,
}

/// A copy of the state of one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    /// Time at which the connection was accepted.
    pub(super) opened: Instant,
    /// Number of active requests.
    pub(super) open: usize,
    /// Time at which a request last started or ended. Before the first request, the time of the accept.
    pub(super) since: Instant,
    /// `true` if there was a request.
    pub(super) had_any: bool,
    /// `true` if a request was authenticated.
    pub(super) authenticated: bool,
}

impl ConnectionState {
    /// Creates the state of a new connection. `authenticated` is `true` if its peer needs no credential.
    pub(super) fn new(authenticated: bool) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(ConnectionState {
            opened: now,
            state: Mutex::new(State { open: 0, since: now, had_any: false, authenticated }),
            changed: Notify::new(),
            close: CancellationToken::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that a request on this connection had a valid credential. This remains until the connection
    /// closes.
    pub(in crate::api) fn authenticate(&self) {
        self.state().authenticated = true;
        self.changed.notify_one();
    }

    /// Records a request, which ends when the returned value is dropped.
    pub(super) fn request(self: &Arc<Self>) -> ActiveRequest {
        let mut state = self.state();
        (state.open, state.since, state.had_any) = (state.open + 1, Instant::now(), true);
        drop(state);
        self.changed.notify_one();
        ActiveRequest(Arc::clone(self))
    }

    /// Returns a copy of the current state.
    pub(super) fn view(&self) -> View {
        let State { open, since, had_any, authenticated } = *self.state();
        View { opened: self.opened, open, since, had_any, authenticated }
    }

    /// Waits until the state might have changed.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Makes the task of the connection close it immediately.
    pub(super) fn close(&self) {
        self.close.cancel();
    }

    /// Waits until [`ConnectionState::close`] is called.
    pub(super) async fn closed(&self) {
        self.close.cancelled().await;
    }
}

/// An active request, until its answer is sent or dropped.
#[derive(Debug)]
pub(super) struct ActiveRequest(Arc<ConnectionState>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        let mut state = self.0.state();
        (state.open, state.since) = (state.open - 1, Instant::now());
        drop(state);
        self.0.changed.notify_one();
    }
}
