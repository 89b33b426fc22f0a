//! The build queue: tenants take turns, and the builds of one tenant run in order of arrival.

use std::collections::{HashMap, VecDeque};

use larder_model::image_cache::{CacheId, TenantName};

/// A queue in which no tenant can delay the others by queueing many builds. It contains only identities; the
/// work is in the records.
#[derive(Debug, Default)]
pub struct Queue {
    /// Tenants with queued builds, in turn order.
    turns: VecDeque<TenantName>,
    waiting: HashMap<TenantName, VecDeque<CacheId>>,
}

impl Queue {
    /// Returns the number of queued builds.
    pub fn len(&self) -> usize {
        self.waiting.values().map(VecDeque::len).sum()
    }

    /// Returns `true` if no build is queued.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Appends a cache to its tenant's line. A cache that is already queued keeps its position.
    pub fn push(&mut self, tenant: &TenantName, id: CacheId) {
        let line = self.waiting.entry(tenant.clone()).or_default();
        if line.is_empty() {
            self.turns.push_back(tenant.clone());
        }
        if !line.contains(&id) {
            line.push_back(id);
        }
    }

    /// Removes and returns the next cache of the first tenant that `may` accepts. The other tenants keep
    /// their positions.
    pub fn pop(&mut self, may: impl Fn(&TenantName) -> bool) -> Option<(TenantName, CacheId)> {
        let at = self.turns.iter().position(may)?;
        let tenant = self.turns.remove(at)?;
        let line = self.waiting.get_mut(&tenant)?;
        let id = line.pop_front()?;
        if line.is_empty() {
            self.waiting.remove(&tenant);
        } else {
            self.turns.push_back(tenant.clone());
        }
        Some((tenant, id))
    }

    /// Removes a cache from any position.
    pub fn remove(&mut self, tenant: &TenantName, id: CacheId) {
        let Some(line) = self.waiting.get_mut(tenant) else { return };
        line.retain(|other| *other != id);
        if line.is_empty() {
            self.waiting.remove(tenant);
            self.turns.retain(|other| other != tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_take_turns() {
        let [a, b]: [TenantName; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        let ids: Vec<CacheId> = (0..6).map(|_| CacheId::random()).collect();
        let mut queue = Queue::default();
        for id in &ids[..4] {
            queue.push(&a, *id);
        }
        queue.push(&a, ids[0]);
        queue.push(&b, ids[4]);
        queue.push(&b, ids[5]);
        assert_eq!(queue.len(), 6);
        queue.remove(&a, ids[1]);
        let order: Vec<CacheId> = std::iter::from_fn(|| queue.pop(|_| true)).map(|(_, id)| id).collect();
        assert_eq!(order, [ids[0], ids[4], ids[2], ids[5], ids[3]]);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_tenant_without_builds_loses_its_turn() {
        let [a, b]: [TenantName; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        let (one, two) = (CacheId::random(), CacheId::random());
        let mut queue = Queue::default();
        queue.push(&a, one);
        queue.push(&b, two);
        queue.remove(&a, one);
        queue.remove(&a, one);
        assert_eq!(queue.pop(|_| true), Some((b, two)));
        assert_eq!(queue.pop(|_| true), None);
    }

    #[test]
    fn a_tenant_that_is_passed_over_keeps_its_position() {
        let [a, b]: [TenantName; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        let ids: Vec<CacheId> = (0..3).map(|_| CacheId::random()).collect();
        let mut queue = Queue::default();
        queue.push(&a, ids[0]);
        queue.push(&b, ids[1]);
        queue.push(&b, ids[2]);
        assert_eq!(queue.pop(|tenant| *tenant != a), Some((b.clone(), ids[1])));
        assert_eq!(queue.pop(|tenant| *tenant == a), Some((a.clone(), ids[0])));
        assert_eq!(queue.pop(|tenant| *tenant == a), None);
        assert_eq!((queue.len(), queue.pop(|_| true)), (1, Some((b, ids[2]))));
    }
}
