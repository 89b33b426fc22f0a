//! Exclusive access in fair order, for the connection to the records or the right to reserve space.
//!
//! Work waits by kind and, within a kind, by tenant. Kinds take turns, the tenants of a kind take turns, and
//! the work of one tenant runs in order of arrival. So a create waits for one list and not for all earlier
//! lists, and a tenant that sends many requests delays only itself.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use larder_model::image_cache::TenantName;

/// A kind of work, each with its own line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::caches) enum Kind {
    /// Reads one record.
    Get,
    /// Reads many records.
    List,
    /// Writes a record.
    Write,
}

const KINDS: usize = 3;

/// The turns for one resource. Clones share the same state.
#[derive(Clone, Debug, Default)]
pub(in crate::caches) struct Turns(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    taken: bool,
    /// Index of the kind that had the last turn.
    last: usize,
    lines: [Line; KINDS],
}

/// The waiters for one kind of work. `None` is the daemon itself.
#[derive(Debug, Default)]
struct Line {
    /// Tenants with waiters, in turn order.
    tenants: VecDeque<Option<TenantName>>,
    waiting: HashMap<Option<TenantName>, VecDeque<oneshot::Sender<Turn>>>,
}

/// The exclusive right to use the resource until this is dropped.
pub(in crate::caches) struct Turn(Option<Turns>);

impl fmt::Debug for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turn").finish_non_exhaustive()
    }
}

impl Turns {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn. A caller that drops the future loses its position.
    pub(in crate::caches) async fn take(&self, kind: Kind, tenant: Option<TenantName>) -> Turn {
        let next = {
            let mut state = self.state();
            if !state.taken {
                (state.taken, state.last) = (true, kind as usize);
                return Turn(Some(self.clone()));
            }
            state.lines[kind as usize].push(tenant)
        };
        match next.await {
            Ok(turn) => turn,
            // The sender is dropped only with the state, which `self` keeps alive.
            Err(_) => std::future::pending().await,
        }
    }

    /// Passes the turn to the next waiter that still exists.
    fn pass(self) {
        loop {
            let Some(next) = self.state().pop() else { return };
            match next.send(Turn(Some(self.clone()))) {
                Ok(()) => return,
                // The waiter was dropped.
                Err(mut turn) => turn.0 = None,
            }
        }
    }
}

impl State {
    /// Removes and returns the next waiter. If there is none, marks the resource as free.
    fn pop(&mut self) -> Option<oneshot::Sender<Turn>> {
        for step in 1..=KINDS {
            let kind = (self.last + step) % KINDS;
            if let Some(next) = self.lines[kind].pop() {
                self.last = kind;
                return Some(next);
            }
        }
        self.taken = false;
        None
    }
}

impl Line {
    fn push(&mut self, tenant: Option<TenantName>) -> oneshot::Receiver<Turn> {
        let (sender, receiver) = oneshot::channel();
        let line = self.waiting.entry(tenant.clone()).or_default();
        if line.is_empty() {
            self.tenants.push_back(tenant);
        }
        line.push_back(sender);
        receiver
    }

    fn pop(&mut self) -> Option<oneshot::Sender<Turn>> {
        let tenant = self.tenants.pop_front()?;
        let line = self.waiting.get_mut(&tenant)?;
        let next = line.pop_front();
        if line.is_empty() {
            self.waiting.remove(&tenant);
        } else {
            self.tenants.push_back(tenant);
        }
        next
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            turns.pass();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs work in the order of its turns and returns its labels.
    async fn order(requests: &[(&'static str, Kind, &str)]) -> Vec<&'static str> {
        let turns = Turns::default();
        let first = turns.take(Kind::List, None).await;
        let done = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for (label, kind, tenant) in requests {
            let (turns, done, label) = (turns.clone(), Arc::clone(&done), *label);
            let (kind, tenant) = (*kind, tenant.parse().ok());
            tasks.push(tokio::spawn(async move {
                let _turn = turns.take(kind, tenant).await;
                done.lock().unwrap().push(label);
            }));
            // Lets this task join the line before the next one.
            tokio::task::yield_now().await;
        }
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        assert!(!turns.state().taken);
        assert!(turns.state().lines.iter().all(|line| line.waiting.is_empty() && line.tenants.is_empty()));
        Arc::into_inner(done).unwrap().into_inner().unwrap()
    }

    #[tokio::test]
    async fn kinds_and_tenants_take_turns() {
        let requests = [
            ("a lists 1", Kind::List, "a"),
            ("a lists 2", Kind::List, "a"),
            ("a lists 3", Kind::List, "a"),
            ("b lists 1", Kind::List, "b"),
            ("a creates", Kind::Write, "a"),
            ("c creates", Kind::Write, "c"),
            ("a gets", Kind::Get, "a"),
        ];
        let wanted = ["a creates", "a gets", "a lists 1", "c creates", "b lists 1", "a lists 2", "a lists 3"];
        assert_eq!(order(&requests).await, wanted);
    }

    #[tokio::test]
    async fn dropped_waiters_are_skipped() {
        let turns = Turns::default();
        let first = turns.take(Kind::Get, None).await;
        let gone: Vec<_> = (0..10_000)
            .map(|_| {
                let turns = turns.clone();
                tokio::spawn(async move { turns.take(Kind::List, None).await })
            })
            .collect();
        tokio::task::yield_now().await;
        for task in gone {
            task.abort();
            assert!(task.await.is_err());
        }
        let last = tokio::spawn({
            let turns = turns.clone();
            async move { drop(turns.take(Kind::Write, None).await) }
        });
        tokio::task::yield_now().await;
        drop(first);
        last.await.unwrap();
        assert!(!turns.state().taken);
    }
}
