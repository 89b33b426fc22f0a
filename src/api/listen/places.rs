//! Connection limits of a listener, and the selection of connections to close.
//!
//! | limit | connection that is closed for a new one |
//! |---|---|
//! | connections of one origin | one of that origin |
//! | connections without a valid credential, not counting new ones ([`Bounds::fresh`]) | one of those |
//! | all connections | any |
//!
//! Connections without a valid credential are closed first, then idle ones with a credential. Among these,
//! the origin with the most connections loses the one that was idle longest. So an address that opens many
//! connections closes its own. A connection with a credential and an active request is never closed. If only
//! such connections remain, a new connection of the same origin is closed, and the listener accepts none
//! until a place is free.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::origin::Origin;
use super::standing::{ConnectionState, View};

/// Interval at which a full listener looks for an idle connection.
const RECHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Minimum interval between log messages about a reached limit.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The connection limits of a listener.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Maximum number of all connections.
    pub(super) all: usize,
    /// Maximum number of connections older than `fresh` on which no request had a valid credential.
    pub(super) unauthenticated: usize,
    /// Time for a new connection to send a credential before it counts as one without. Without it, many
    /// clients that connect at the same time would close each other's connections.
    pub(super) fresh: Duration,
    /// Maximum number of connections of one origin.
    pub(super) per_origin: usize,
}

/// The connections of a listener.
#[derive(Debug)]
pub(super) struct ConnectionSet {
    bounds: Bounds,
    taken: Mutex<Taken>,
    left: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    of: HashMap<u64, (Origin, Arc<ConnectionState>)>,
    logged_at: Option<Instant>,
}

/// The place of one connection, released on drop.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    number: u64,
    places: Arc<ConnectionSet>,
}

impl ConnectionSet {
    /// Creates an empty set of connections.
    pub(super) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(ConnectionSet { bounds, taken: Mutex::default(), left: Notify::new() })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a place is free or can be freed.
    pub(super) async fn room(&self) {
        loop {
            {
                let taken = self.taken();
                if taken.of.len() < self.bounds.all || taken.to_close(Candidates::All).is_some() {
                    return;
                }
            }
            // A connection that becomes idle sends no notification.
            let _ = timeout(RECHECK_INTERVAL, self.left.notified()).await;
        }
    }

    /// Admits a new connection, and closes another one if there are too many. `None` if no connection can be
    /// closed, so the new one must be closed.
    pub(super) fn admit(
        self: &Arc<Self>,
        origin: Origin,
        standing: &Arc<ConnectionState>,
    ) -> Option<ConnectionSlot> {
        let mut taken = self.taken();
        let Bounds { all, unauthenticated, fresh, per_origin } = self.bounds;
        // Freeing a place of the origin also frees a place overall, so no connection is closed for one that
        // is then refused.
        if taken.of.values().filter(|(other, _)| *other == origin).count() >= per_origin {
            let victim = taken.to_close(Candidates::Origin(origin));
            taken.log_limit(origin, victim.is_some(), "connections of one address");
            taken.close(victim?);
        }
        while taken.unauthenticated(fresh) > unauthenticated {
            taken.log_limit(origin, true, "connections without a valid credential");
            let Some(victim) = taken.to_close(Candidates::Unauthenticated(fresh)) else { break };
            taken.close(victim);
        }
        if taken.of.len() >= all {
            let victim = taken.to_close(Candidates::All);
            taken.log_limit(origin, victim.is_some(), "connections");
            taken.close(victim?);
        }
        let number = taken.next;
        taken.next += 1;
        taken.of.insert(number, (origin, Arc::clone(standing)));
        drop(taken);
        Some(ConnectionSlot { number, places: Arc::clone(self) })
    }
}

/// The connections from which one is closed.
#[derive(Clone, Copy, Debug)]
enum Candidates {
    All,
    Origin(Origin),
    /// Connections without a valid credential that are older than this.
    Unauthenticated(Duration),
}

impl Candidates {
    fn has(self, origin: Origin, view: &View) -> bool {
        match self {
            Candidates::All => true,
            Candidates::Origin(one) => one == origin,
            Candidates::Unauthenticated(fresh) => !view.authenticated && view.opened.elapsed() >= fresh,
        }
    }
}

impl Taken {
    /// Counts the connections without a valid credential that are older than `fresh`.
    fn unauthenticated(&self, fresh: Duration) -> usize {
        let all = Candidates::Unauthenticated(fresh);
        self.of.values().filter(|(origin, standing)| all.has(*origin, &standing.view())).count()
    }

    /// Returns the connection to close first. `None` if all have a credential and an active request.
    fn to_close(&self, among: Candidates) -> Option<u64> {
        let views = self.of.iter().map(|(number, (origin, standing))| (*number, *origin, standing.view()));
        let candidates = views
            .filter(|(_, origin, view)| among.has(*origin, view) && !(view.authenticated && view.open > 0));
        let candidates: Vec<_> = candidates.collect();
        let mut has: HashMap<(Origin, bool), usize> = HashMap::new();
        for (_, origin, view) in &candidates {
            *has.entry((*origin, view.authenticated)).or_default() += 1;
        }
        let first = candidates.iter().max_by_key(|(_, origin, view)| {
            (!view.authenticated, has[&(*origin, view.authenticated)], Reverse(view.since))
        });
        first.map(|(number, ..)| *number)
    }

    fn close(&mut self, number: u64) {
        if let Some((_, standing)) = self.of.remove(&number) {
            standing.close();
        }
    }

    fn log_limit(&mut self, origin: Origin, closed: bool, what: &str) {
        let now = Instant::now();
        if self.logged_at.is_some_and(|logged_at| now - logged_at < LOG_INTERVAL) {
            return;
        }
        self.logged_at = Some(now);
        let done = if closed {
            "an idle connection was closed for a new one"
        } else {
            "the new connection was refused"
        };
        tracing::warn!(%origin, "the limit of {what} is reached: {done}");
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.places.taken().of.remove(&self.number);
        self.places.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A listener, to open connections with their places.
    struct Listener(Arc<ConnectionSet>);

    impl Listener {
        fn new(all: usize, unauthenticated: usize, per_origin: usize) -> Self {
            Listener(ConnectionSet::new(Bounds { all, unauthenticated, fresh: Duration::ZERO, per_origin }))
        }

        /// Opens a connection of the address with this last number.
        fn open(&self, address: u8, authenticated: bool) -> (Arc<ConnectionState>, Option<ConnectionSlot>) {
            let standing = ConnectionState::new(authenticated);
            let place = self.0.admit(Origin::V4([192, 0, 2, address]), &standing);
            (standing, place)
        }
    }

    fn is_closed(connection: &(Arc<ConnectionState>, Option<ConnectionSlot>)) -> bool {
        futures_util::FutureExt::now_or_never(connection.0.closed()).is_some()
    }

    #[tokio::test]
    async fn unauthenticated_connections_replace_those_of_the_same_address() {
        let listener = Listener::new(100, 4, 50);
        let tenant = listener.open(1, true);
        let other = listener.open(2, false);
        let mut flood = Vec::new();
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            flood.push(listener.open(1, false));
        }
        assert!(
            !is_closed(&tenant) && !is_closed(&other),
            "the address with the most connections loses its own"
        );
        let open: Vec<usize> = (0..20).filter(|at| !is_closed(&flood[*at])).collect();
        assert_eq!(open, [16, 17, 18, 19], "the longest idle one is closed first");
        assert_eq!(listener.0.taken().of.len(), 6);
    }

    #[tokio::test]
    async fn new_connections_have_time_to_send_a_credential() {
        let bounds =
            Bounds { all: 100, unauthenticated: 4, fresh: Duration::from_millis(200), per_origin: 100 };
        let listener = Listener(ConnectionSet::new(bounds));
        let herd: Vec<_> = (0..20).map(|_| listener.open(1, false)).collect();
        assert!(!herd.iter().any(is_closed));
        for (standing, _) in &herd[..10] {
            standing.authenticate();
        }
        tokio::time::sleep(bounds.fresh).await;
        let next = listener.open(2, false);
        let open = herd.iter().filter(|connection| !is_closed(connection)).count();
        assert_eq!(open, 10 + 4, "a limited number without a credential stays");
        assert!(!herd[..10].iter().any(is_closed) && !is_closed(&next));
    }

    #[tokio::test]
    async fn an_address_has_its_limit() {
        let listener = Listener::new(100, 100, 3);
        let busy = [listener.open(1, true), listener.open(1, true)];
        let _requests = busy.each_ref().map(|(standing, _)| standing.request());
        let idle = listener.open(1, true);
        let another = listener.open(2, false);
        let fourth = listener.open(1, false);
        assert!(is_closed(&idle) && fourth.1.is_some());
        fourth.0.authenticate();
        let _request = fourth.0.request();
        assert!(listener.open(1, false).1.is_none(), "all of the address have a credential and are busy");
        assert!(listener.open(2, false).1.is_some() && !is_closed(&another));
        assert!(busy.iter().all(|connection| !is_closed(connection)));
    }

    #[tokio::test]
    async fn a_full_listener_waits_for_a_place() {
        let listener = Listener::new(2, 1, 2);
        let busy = [listener.open(1, true), listener.open(2, true)];
        let request = busy[0].0.request();
        let other = busy[1].0.request();
        assert!(timeout(Duration::from_millis(50), listener.0.room()).await.is_err(), "all are busy");
        assert!(listener.open(3, false).1.is_none());
        drop(request);
        timeout(Duration::from_secs(60), listener.0.room()).await.unwrap();
        let newcomer = listener.open(3, false);
        assert!(newcomer.1.is_some() && is_closed(&busy[0]) && !is_closed(&busy[1]));
        let next = listener.open(4, false);
        assert!(next.1.is_some() && is_closed(&newcomer), "an unauthenticated connection is closed first");
        drop((other, next));
        assert_eq!(listener.0.taken().of.len(), 1);
    }
}
