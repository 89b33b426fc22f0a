//! The uploaded archives of caches. Every call runs on a blocking thread.

use std::io;

use crate::caches::imports::Imports;
use crate::caches::store::StoreError;
use crate::caches::volumes::Volumes;
use larder_model::image_cache::CacheId;

/// Lists the caches that have an archive.
pub(super) async fn list(volumes: &dyn Volumes) -> Result<Vec<CacheId>, StoreError> {
    run(volumes, Imports::list).await.map(Option::unwrap_or_default)
}

/// Deletes archives that are not needed.
pub(super) async fn remove(volumes: &dyn Volumes, ids: Vec<CacheId>) -> Result<(), StoreError> {
    if ids.is_empty() {
        return Ok(());
    }
    run(volumes, move |imports| ids.iter().try_for_each(|id| imports.remove(id))).await.map(drop)
}

async fn run<T: Send + 'static>(
    volumes: &dyn Volumes,
    work: impl FnOnce(&Imports) -> io::Result<T> + Send + 'static,
) -> Result<Option<T>, StoreError> {
    let Some(imports) = volumes.imports().cloned() else { return Ok(None) };
    let done = crate::blocking::spawn(move || work(&imports)).await;
    let done = done.unwrap_or_else(|e| Err(io::Error::other(e)));
    done.map(Some).map_err(|e| StoreError::Failed {
        doing: "accessing the archives of",
        reason: e.to_string(),
        full: false,
    })
}
