//! Whose build is next: tenants take turns, and within a tenant the first comes first.

use std::collections::{HashMap, VecDeque};

use larder_model::image_cache::{CacheId, TenantName};

/// A queue that no tenant can fill for the others' turns. It holds identities only; what is to be done is in the records.
#[derive(Debug, Default)]
pub struct Queue {
    /// Tenants with something waiting, whose turn it is first.
    turns: VecDeque<TenantName>,
    waiting: HashMap<TenantName, VecDeque<CacheId>>,
}

impl Queue {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.values().map(VecDeque::len).sum()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Puts a cache at the end of its tenant's line; one that waits already keeps its place.
    pub fn push(&mut self, tenant: &TenantName, id: CacheId) {
        let line = self.waiting.entry(tenant.clone()).or_default();
        if line.is_empty() {
            self.turns.push_back(tenant.clone());
        }
        if !line.contains(&id) {
            line.push_back(id);
        }
    }

    /// Takes the next one of a tenant that `may` have its turn. The others keep their places.
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

    /// Takes a cache out wherever it stands.
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
    fn whoever_leaves_loses_the_turn() {
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
    fn whoever_may_not_have_a_turn_keeps_the_place() {
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
