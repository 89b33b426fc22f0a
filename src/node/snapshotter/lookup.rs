//! Provides layers of attached volumes as committed snapshots.

use std::path::PathBuf;

use chrono::Utc;
use rusqlite::Connection;

use super::operations::parent_of;
use super::store::{self, Record};
use super::{Error, Info, Kind, Labels, Snapshotter, Usage, lock};
use larder_model::chain::ChainId;

/// The label with the chain ID of the layer that containerd is about to unpack.
const TARGET: &str = "containerd.io/snapshot.ref";

impl Snapshotter {
    /// Ensures that the layer in `labels`, on top of `parent`, exists as a committed snapshot, if a volume
    /// has the layer. containerd then searches for a snapshot with this label and this parent.
    pub(super) fn provide_layer(
        &self,
        key: &str,
        parent: &str,
        labels: &Labels,
    ) -> Result<Option<ChainId>, Error> {
        let Some(target) = labels.get(TARGET) else { return Ok(None) };
        let Ok(chain) = serde_json::from_value::<ChainId>(target.clone().into()) else { return Ok(None) };
        let Some(volume) = lock(&self.volumes).with_layer(&chain).into_iter().next() else { return Ok(None) };
        let is_base = volume.layer(&chain).is_none_or(|layer| layer.parent.is_none());
        let id = self.next_id();
        let taken = lock(&self.store).write(|db| {
            if store::find(db, key)?.is_some() {
                return Err(Error::Exists(format!("snapshot {key:?}")));
            }
            let above = parent_of(db, parent)?;
            // Some clients unpack layers in parallel, without their parents. Such a snapshot is not the same
            // layer.
            if is_base != above.is_none() {
                return Ok(false);
            }
            let known = store::layers(db, &chain)?;
            let wanted = |record: &&Record| {
                record.info.parent == parent && record.info.labels.get(TARGET) == Some(target)
            };
            if let Some(known) = known.iter().find(wanted) {
                self.lower_dirs(known)?;
                return Ok(true);
            }
            let now = Utc::now();
            let info = Info {
                name: free_name(db, &chain, id)?,
                parent: parent.to_owned(),
                kind: Kind::Committed,
                created: now,
                updated: now,
                labels: labels.clone(),
            };
            let record = Record { id, info, chain: Some(chain.clone()), usage: Usage::default() };
            store::insert(db, &record, above.map(|above| above.id))?;
            self.lower_dirs(&record)?;
            Ok(true)
        });
        match taken {
            Ok(is_there) => Ok(is_there.then_some(chain)),
            // The layer of the volume cannot be used, so it is pulled like any other.
            Err(error @ (Error::Layer(_) | Error::Io { .. } | Error::Detached(_))) => {
                tracing::warn!(%chain, %error, "cannot use a layer of a volume");
                self.discard(id);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the lower directories for a committed snapshot, topmost first. Creates the missing ones.
    pub(super) fn lower_dirs(&self, record: &Record) -> Result<Vec<PathBuf>, Error> {
        let Some(chain) = &record.chain else { return Ok(vec![self.links.local(record.id)?]) };
        let mut failed = Error::Detached(chain.clone());
        let volumes = lock(&self.volumes).with_layer(chain);
        for volume in volumes {
            let Some(layer) = volume.layer(chain) else { continue };
            match self.links.layer(record.id, &volume, layer) {
                Ok(placed) => return Ok(placed),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Reads the attachment records, and updates the links for attached and detached volumes. With `retry`,
    /// updates them even if no record changed. Returns `false` if some links could not be updated.
    pub(super) fn update_links(&self, retry: bool) -> bool {
        let changed = lock(&self.volumes).refresh();
        if !changed && !retry {
            return true;
        }
        let store = lock(&self.store);
        let records = match store::on_volumes(store.read()) {
            Ok(records) => records,
            Err(error) => {
                tracing::error!(%error, "cannot update the layers of volumes");
                return false;
            }
        };
        let mut settled = true;
        for record in records {
            let placed = match self.lower_dirs(&record) {
                Err(Error::Detached(_)) => self.links.release(record.id),
                other => other.map(drop),
            };
            if let Err(error) = placed {
                settled = false;
                // This is retried regularly, but logged only once.
                if changed {
                    tracing::warn!(snapshot = record.info.name, %error, "cannot update the layer of a volume");
                }
            }
        }
        settled
    }
}

/// Returns the chain ID as a name, with a number if the layer already exists on top of another snapshot.
fn free_name(db: &Connection, chain: &ChainId, id: i64) -> Result<String, Error> {
    let plain = chain.to_string();
    Ok(if store::find(db, &plain)?.is_none() { plain } else { format!("{plain}#{id}") })
}
