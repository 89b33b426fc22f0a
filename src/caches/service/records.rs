//! A snapshot of all records.

use std::collections::HashMap;
use std::sync::Arc;

use super::Service;
use crate::caches::record::Record;
use crate::caches::store::{StoreError, Stored};
use larder_model::image_cache::CacheId;

/// The records of a [survey](crate::caches::store::Store::survey), by ID.
pub(super) struct Records(HashMap<CacheId, Arc<Stored>>);

impl Records {
    /// Returns the record of an image cache.
    pub(super) fn get(&self, id: &CacheId) -> Option<&Record> {
        self.0.get(id).map(|stored| &stored.record)
    }

    /// Returns all records in arbitrary order.
    pub(super) fn values(&self) -> impl Iterator<Item = &Record> + Clone {
        self.0.values().map(|stored| &stored.record)
    }
}

impl Service {
    /// Returns all records as the store last saw them.
    pub(super) async fn records(&self) -> Result<Records, StoreError> {
        let all = self.0.store.survey().await?;
        Ok(Records(all.into_iter().map(|stored| (stored.record.id, stored)).collect()))
    }
}
