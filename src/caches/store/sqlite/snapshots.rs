//! Records of tenants as they were last read, so that a list that nothing changed does not read the database.
//!
//! Only the task that uses the connection adds and removes snapshots. A write removes the snapshot of its tenant before it
//! commits, and a read adds one that contains all earlier writes. So a snapshot is as fresh as a read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::caches::store::Stored;
use larder_model::image_cache::TenantName;

/// Maximum memory of all snapshots together, bytes as [`weight`] estimates them.
const MOST: usize = 32 << 20;

/// The snapshots. Clones are handles to the same.
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

    /// The records of a tenant, if they are known.
    pub(super) fn find(&self, tenant: &TenantName) -> Option<Arc<[Stored]>> {
        self.kept().of.get(tenant).map(|(records, _)| Arc::clone(records))
    }

    /// Keeps the records of a tenant. If there is no room for all, those of others are forgotten.
    pub(super) fn keep(&self, tenant: TenantName, records: &Arc<[Stored]>) {
        let weight = records.iter().map(weight).sum();
        let mut kept = self.kept();
        kept.forget(&tenant);
        if kept.weight + weight > MOST {
            *kept = Kept::default();
        }
        if weight <= MOST {
            kept.weight += weight;
            kept.of.insert(tenant, (Arc::clone(records), weight));
        }
    }

    /// Forgets the records of a tenant.
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

/// Memory of a record, bytes, as a rough estimate: its layers are most of it.
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
        snapshots.keep(a.clone(), &records("a", MOST / one / 2));
        snapshots.keep(b.clone(), &records("b", 1));
        snapshots.keep(a.clone(), &records("a", MOST / one / 2));
        assert!(snapshots.find(&a).is_some() && snapshots.find(&b).is_some());
        snapshots.keep(c.clone(), &records("c", MOST / one));
        assert!(snapshots.find(&a).is_none() && snapshots.find(&b).is_none());
        assert!(snapshots.find(&c).is_some());
        snapshots.keep(b.clone(), &records("b", MOST / one + 1));
        assert!(snapshots.find(&b).is_none(), "too large for all of the memory");
        snapshots.keep(c.clone(), &records("c", 1));
        snapshots.forget(&c);
        assert_eq!(snapshots.kept().weight, 0);
    }
}
