//! The attached volumes and their layers.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::caches::attachments::{Attachment, Attachments};
use crate::volume::{layout, seal};
use larder_model::chain::ChainId;
use larder_model::job::LayerFormat;
use larder_model::seal::{Content, Layer};
use larder_sys::{Dir, Timestamp};

/// An attached volume, as its seal describes it.
#[derive(Debug)]
pub(super) struct Volume {
    /// The mount point of the volume.
    pub(super) at: PathBuf,
    pub(super) format: LayerFormat,
    layers: HashMap<ChainId, Layer>,
}

impl Volume {
    pub(super) fn layer(&self, chain: &ChainId) -> Option<&Layer> {
        self.layers.get(chain)
    }
}

/// The identity of a seal. Another volume, or a seal that was written again, has another identity.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seal {
    root: (u64, u64),
    file: (u64, u64),
    size: u64,
    mtime: Timestamp,
}

/// A mounted directory of a record. `volume` is `None` if the content cannot be used.
#[derive(Debug)]
struct AttachedDir {
    record: Attachment,
    seal: Seal,
    volume: Option<Arc<Volume>>,
}

/// The list of attached volumes.
#[derive(Debug)]
pub(super) struct Volumes {
    records: Attachments,
    attached_dirs: Vec<AttachedDir>,
    /// The last logged error of the records, so that each is logged once.
    logged_error: Option<String>,
}

impl Volumes {
    /// Creates a list for the records in `dir`. [`refresh`](Self::refresh) reads them.
    pub(super) fn new(dir: PathBuf) -> Self {
        Volumes { records: Attachments::new(dir), attached_dirs: Vec::new(), logged_error: None }
    }

    /// Reads the records. Returns whether any volume was attached or detached.
    pub(super) fn refresh(&mut self) -> bool {
        let mut records = match self.records.list() {
            Ok(records) => records,
            // The list stays unchanged, because containers on these volumes might start.
            Err(error) => {
                let text = error.to_string();
                if self.logged_error.as_ref() != Some(&text) {
                    tracing::error!(%error, "cannot read the attachment records; the list of volumes stays unchanged");
                    self.logged_error = Some(text);
                }
                return false;
            }
        };
        self.logged_error = None;
        records.retain(|record| !record.leaving);
        records.sort_by(|a, b| (a.since, &a.at).cmp(&(b.since, &b.at)));
        let mut before = std::mem::take(&mut self.attached_dirs);
        let mut changed = false;
        for record in records {
            // The volume is not mounted yet, or no longer.
            let Some(seal) = read_identity(&record.at) else { continue };
            let known = before.iter().position(|dir| dir.record == record && dir.seal == seal);
            if let Some(known) = known {
                self.attached_dirs.push(before.remove(known));
                continue;
            }
            changed = true;
            let volume = match read(&record) {
                Ok(volume) => {
                    tracing::info!(at = %record.at.display(), layers = volume.layers.len(), "volume attached");
                    Some(Arc::new(volume))
                }
                Err(error) => {
                    tracing::error!(at = %record.at.display(), error, "cannot use an attached volume");
                    None
                }
            };
            self.attached_dirs.push(AttachedDir { record, seal, volume });
        }
        for gone in &before {
            tracing::info!(at = %gone.record.at.display(), "volume detached");
        }
        changed || !before.is_empty()
    }

    /// Returns the volumes with a layer, attached last first. New snapshots use the newest volume, so an
    /// older one eventually has no users ([`snapshot_users`](crate::node::snapshot_users) relies on this).
    pub(super) fn with_layer(&self, chain: &ChainId) -> Vec<Arc<Volume>> {
        let volumes = self.attached_dirs.iter().rev().filter_map(|dir| dir.volume.as_ref());
        volumes.filter(|volume| volume.layers.contains_key(chain)).cloned().collect()
    }
}

fn read_identity(at: &Path) -> Option<Seal> {
    let root = Dir::open(at).ok()?;
    let file = root.stat(layout::CACHE).ok()?;
    let identity = root.stat_self().ok()?.identity;
    Some(Seal { root: identity, file: file.identity, size: file.size, mtime: file.mtime })
}

fn read(record: &Attachment) -> Result<Volume, String> {
    let at = &record.at;
    let manifest = seal::read(at).map_err(|e| e.to_string())?;
    if let Some(attached) = record.cache.as_ref().filter(|attached| **attached != manifest.digest) {
        return Err(format!("its cache.json is {}, but {attached} was attached", manifest.digest));
    }
    let content = manifest.content;
    check_chain_ids(&content)?;
    let layers = content.layers.into_iter().map(|layer| (layer.chain_id.clone(), layer)).collect();
    Ok(Volume { at: at.to_owned(), format: content.layer_format, layers })
}

/// Checks that chain IDs match their layers, and that parents come first.
fn check_chain_ids(content: &Content) -> Result<(), String> {
    let mut known = HashSet::new();
    for layer in &content.layers {
        let want = match &layer.parent {
            None => ChainId::base(&layer.diff_id),
            Some(parent) if known.contains(parent) => parent.child(&layer.diff_id),
            Some(parent) => {
                return Err(format!("cache.json has layer {} before its parent {parent}", layer.chain_id));
            }
        };
        if layer.chain_id != want {
            return Err(format!(
                "cache.json has a layer with the chain ID {}, but it must be {want}",
                layer.chain_id
            ));
        }
        known.insert(layer.chain_id.clone());
    }
    Ok(())
}
