//! Cached records of tenants, so that a repeated list without changes does not read the database.
//!
//! Only the task that uses the connection adds and removes snapshots. A write removes the snapshot of its
//! tenant before it commits, and a read adds one that contains all earlier writes. So a snapshot is as fresh
//! as a read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::caches::store::Stored;
use larder_model::image_cache::TenantName;

/// Maximum memory of all snapshots together, bytes as estimated by [`weight`].
const MAX_WEIGHT: usize = 32 << 20;

/// The cached records. Clones share the same state.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshots(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    of: HashMap<TenantName, (Arc<[Stored]>, usize)>,
    weight: usize,
}

impl Snapshots {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the cached records of a tenant.
    pub(super) fn find(&self, tenant: &TenantName) -> Option<Arc<[Stored]>> {
        self.kept().of.get(tenant).map(|(records, _)| Arc::clone(records))
    }

    /// Caches the records of a tenant. If there is not enough room, all other tenants' records are dropped.
    pub(super) fn keep(&self, tenant: TenantName, records: &Arc<[Stored]>) {
        let weight = records.iter().map(weight).sum();
        let mut kept = self.kept();
        kept.forget(&tenant);
        if kept.weight + weight > MAX_WEIGHT {
            *kept = Kept::default();
        }
        if weight <= MAX_WEIGHT {
            kept.weight += weight;
            kept.of.insert(tenant, (Arc::clone(records), weight));
        }
    }

    /// Drops the cached records of a tenant.
    pub(super) fn forget(&self, tenant: &TenantName) {
        self.kept().forget(tenant);
    }
}

impl Kept {
    fn forget(&mut self, tenant: &TenantName) {
        if let Some((_, weight)) = self.of.remove(tenant) {
            self.weight -= weight;
        }
    }
}

/// Estimates the memory of a record, bytes. Its layers account for most of it.
fn weight(stored: &Stored) -> usize {
    let record = &stored.record;
    let layers = record.content.as_ref().map_or(0, |content| content.layers.len());
    2048 + 256 * record.events.len() + 512 * (layers + record.spec.images.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caches::store::suite;

    #[test]
    fn memory_is_bounded() {
        let snapshots = Snapshots::default();
        let records = |tenant: &str, many: usize| -> Arc<[Stored]> {
            let record = suite::record(tenant, "web", 0);
            (0..many).map(|_| Stored { version: 1, record: record.clone() }).collect()
        };
        let [a, b, c]: [TenantName; 3] = ["a", "b", "c"].map(|name| name.parse().unwrap());
        let one = weight(&records("a", 1)[0]);
        snapshots.keep(a.clone(), &records("a", MAX_WEIGHT / one / 2));
        snapshots.keep(b.clone(), &records("b", 1));
        snapshots.keep(a.clone(), &records("a", MAX_WEIGHT / one / 2));
        assert!(snapshots.find(&a).is_some() && snapshots.find(&b).is_some());
        snapshots.keep(c.clone(), &records("c", MAX_WEIGHT / one));
        assert!(snapshots.find(&a).is_none() && snapshots.find(&b).is_none());
        assert!(snapshots.find(&c).is_some());
        snapshots.keep(b.clone(), &records("b", MAX_WEIGHT / one + 1));
        assert!(snapshots.find(&b).is_none(), "too large for all of the memory");
        snapshots.keep(c.clone(), &records("c", 1));
        snapshots.forget(&c);
        assert_eq!(snapshots.kept().weight, 0);
    }
}
