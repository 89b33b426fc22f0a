//! Builder slots: their number, and how many of them one tenant can use.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use larder_model::image_cache::TenantName;

/// The builder slots. One tenant never gets the last slot if there are other tenants, because a slow registry
/// can occupy a builder for hours.
#[derive(Debug)]
pub(super) struct Slots {
    all: usize,
    free: Arc<Semaphore>,
    taken: Arc<Mutex<HashMap<TenantName, usize>>>,
}

impl Slots {
    pub(super) fn new(all: usize) -> Self {
        Slots { all, free: Arc::new(Semaphore::new(all)), taken: Arc::default() }
    }

    /// Waits for a free slot.
    pub(super) async fn free(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).acquire_owned().await.ok()
    }

    /// Returns `true` if a tenant can have one more slot. `alone` means that there is no other tenant.
    pub(super) fn allows(&self, tenant: &TenantName, alone: bool) -> bool {
        let share = if alone { self.all } else { (self.all - 1).max(1) };
        lock(&self.taken).get(tenant).copied().unwrap_or_default() < share
    }

    /// Assigns a free slot to a tenant. `woken` is notified when the slot is released.
    pub(super) fn give(&self, free: OwnedSemaphorePermit, tenant: &TenantName, woken: Arc<Notify>) -> Slot {
        *lock(&self.taken).entry(tenant.clone()).or_default() += 1;
        Slot { _free: free, tenant: tenant.clone(), taken: Arc::clone(&self.taken), woken }
    }
}

/// A slot that is assigned to a tenant. Dropping it releases the slot.
#[derive(Debug)]
pub(super) struct Slot {
    _free: OwnedSemaphorePermit,
    tenant: TenantName,
    taken: Arc<Mutex<HashMap<TenantName, usize>>>,
    woken: Arc<Notify>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        if let Some(count) = taken.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.tenant);
            }
        }
        drop(taken);
        self.woken.notify_one();
    }
}

fn lock(taken: &Mutex<HashMap<TenantName, usize>>) -> MutexGuard<'_, HashMap<TenantName, usize>> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_slot_is_left_for_other_tenants() {
        let [a, b]: [TenantName; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        for (all, alone, share) in [(1, false, 1), (2, false, 1), (4, false, 3), (4, true, 4)] {
            let (slots, woken) = (Slots::new(all), Arc::new(Notify::new()));
            let mut held = Vec::new();
            while slots.allows(&a, alone) {
                held.push(slots.give(slots.free().await.unwrap(), &a, Arc::clone(&woken)));
            }
            assert_eq!(held.len(), share, "{all} {alone}");
            assert!(slots.allows(&b, alone), "{all} {alone}");
            held.pop();
            woken.notified().await;
            assert!(slots.allows(&a, alone));
            held.clear();
            assert!(lock(&slots.taken).is_empty());
        }
    }
}
