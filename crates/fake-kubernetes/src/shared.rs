//! The state of the server, shared by its tasks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

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
