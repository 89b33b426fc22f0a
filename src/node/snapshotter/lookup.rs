//! Layers of attached volumes as committed snapshots.

use std::path::PathBuf;

use chrono::Utc;
use rusqlite::Connection;

use super::operations::parent_of;
use super::store::{self, Record};
use super::{Error, Info, Kind, Labels, Snapshotter, Usage, lock};
use larder_model::chain::ChainId;

/// The label by which containerd names the layer that it is about to unpack: its chain ID.
const TARGET: &str = "containerd.io/snapshot.ref";

impl Snapshotter {
    /// Sees to it that the layer that `labels` ask for, on top of `parent`, is there as a committed snapshot, if a volume has
    /// it. containerd looks for one with this label and this parent.
    pub(super) fn take_layer(
        &self,
        key: &str,
        parent: &str,
        labels: &Labels,
    ) -> Result<Option<ChainId>, Error> {
        let Some(target) = labels.get(TARGET) else { return Ok(None) };
        let Ok(chain) = serde_json::from_value::<ChainId>(target.clone().into()) else { return Ok(None) };
        let Some(volume) = lock(&self.volumes).with(&chain).into_iter().next() else { return Ok(None) };
        let is_base = volume.layer(&chain).is_none_or(|layer| layer.parent.is_none());
        let id = self.next_id();
        let taken = lock(&self.store).write(|db| {
            if store::find(db, key)?.is_some() {
                return Err(Error::Exists(format!("snapshot {key:?}")));
            }
            let above = parent_of(db, parent)?;
            // Unpacked without its parents, as some do side by side, a layer is another thing.
            if is_base != above.is_none() {
                return Ok(false);
            }
            let known = store::layers(db, &chain)?;
            let wanted = |record: &&Record| {
                record.info.parent == parent && record.info.labels.get(TARGET) == Some(target)
            };
            if let Some(known) = known.iter().find(wanted) {
                self.place(known)?;
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
            self.place(&record)?;
            Ok(true)
        });
        match taken {
            Ok(is_there) => Ok(is_there.then_some(chain)),
            // What the volume has is of no use; the layer is pulled as any other.
            Err(error @ (Error::Layer(_) | Error::Io { .. } | Error::Detached(_))) => {
                tracing::warn!(%chain, %error, "a layer of a volume cannot be used");
                self.discard(id);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// What stands for a committed snapshot in overlays, topmost first. Made where it is missing.
    pub(super) fn place(&self, record: &Record) -> Result<Vec<PathBuf>, Error> {
        let Some(chain) = &record.chain else { return Ok(vec![self.links.local(record.id)?]) };
        let mut failed = Error::Detached(chain.clone());
        let volumes = lock(&self.volumes).with(chain);
        for volume in volumes {
            let Some(layer) = volume.layer(chain) else { continue };
            match self.links.layer(record.id, &volume, layer) {
                Ok(placed) => return Ok(placed),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Looks at the records of attachments, and makes and takes back links as volumes came and went. Whether all is settled.
    pub(super) fn look_around(&self, anew: bool) -> bool {
        let changed = lock(&self.volumes).refresh();
        if !changed && !anew {
            return true;
        }
        let store = lock(&self.store);
        let records = match store::on_volumes(store.read()) {
            Ok(records) => records,
            Err(error) => {
                tracing::error!(%error, "layers of volumes are not looked after");
                return false;
            }
        };
        let mut settled = true;
        for record in records {
            let placed = match self.place(&record) {
                Err(Error::Detached(_)) => self.links.let_go(record.id),
                other => other.map(drop),
            };
            if let Err(error) = placed {
                settled = false;
                // Tried again and again, and told once.
                if changed {
                    tracing::warn!(snapshot = record.info.name, %error, "a layer of a volume is in between");
                }
            }
        }
        settled
    }
}

/// The chain ID, and a number with it where the layer is there already, on top of another snapshot.
fn free_name(db: &Connection, chain: &ChainId, id: i64) -> Result<String, Error> {
    let plain = chain.to_string();
    Ok(if store::find(db, &plain)?.is_none() { plain } else { format!("{plain}#{id}") })
}
