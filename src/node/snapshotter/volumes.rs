//! The attached volumes, and which layers they have.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::caches::attachments::{Attachment, Attachments};
use crate::volume::{layout, seal};
use larder_model::chain::ChainId;
use larder_model::job::LayerFormat;
use larder_model::seal::{Content, Layer};
use larder_sys::{Dir, Timestamp};

/// A volume, as its seal describes it.
#[derive(Debug)]
pub(super) struct Volume {
    /// Where it is mounted.
    pub(super) at: PathBuf,
    pub(super) format: LayerFormat,
    layers: HashMap<ChainId, Layer>,
}

impl Volume {
    pub(super) fn layer(&self, chain: &ChainId) -> Option<&Layer> {
        self.layers.get(chain)
    }
}

/// Which seal was read: that of another volume, or one that was written anew, is another.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seal {
    root: (u64, u64),
    file: (u64, u64),
    size: u64,
    mtime: Timestamp,
}

/// Something lies where a record says; nothing can be made of it where there is no volume.
#[derive(Debug)]
struct Seen {
    record: Attachment,
    seal: Seal,
    volume: Option<Arc<Volume>>,
}

/// All attached volumes.
#[derive(Debug)]
pub(super) struct Volumes {
    records: Attachments,
    seen: Vec<Seen>,
    /// What was told of the records last, so that it is told once.
    told: Option<String>,
}

impl Volumes {
    /// Those with a record in `dir`; they are read by [`refresh`](Self::refresh).
    pub(super) fn new(dir: PathBuf) -> Self {
        Volumes { records: Attachments::new(dir), seen: Vec::new(), told: None }
    }

    /// Looks at the records; whether anything came or went.
    pub(super) fn refresh(&mut self) -> bool {
        let mut records = match self.records.list() {
            Ok(records) => records,
            // What was known stays: containers of it may start.
            Err(error) => {
                let text = error.to_string();
                if self.told.as_ref() != Some(&text) {
                    tracing::error!(%error, "the attached volumes stay as they were");
                    self.told = Some(text);
                }
                return false;
            }
        };
        self.told = None;
        records.retain(|record| !record.leaving);
        records.sort_by(|a, b| (a.since, &a.at).cmp(&(b.since, &b.at)));
        let mut before = std::mem::take(&mut self.seen);
        let mut changed = false;
        for record in records {
            // Nothing is mounted there yet, or no longer.
            let Some(seal) = look(&record.at) else { continue };
            let known = before.iter().position(|seen| seen.record == record && seen.seal == seal);
            if let Some(known) = known {
                self.seen.push(before.remove(known));
                continue;
            }
            changed = true;
            let volume = match read(&record) {
                Ok(volume) => {
                    tracing::info!(at = %record.at.display(), layers = volume.layers.len(), "a volume is attached");
                    Some(Arc::new(volume))
                }
                Err(error) => {
                    tracing::error!(at = %record.at.display(), error, "an attached volume is not used");
                    None
                }
            };
            self.seen.push(Seen { record, seal, volume });
        }
        for gone in &before {
            tracing::info!(at = %gone.record.at.display(), "a volume is detached");
        }
        changed || !before.is_empty()
    }

    /// The volumes that have a layer, attached last first: what starts stands on the newest, and an older one comes to be used
    /// by nobody ([`standing`](crate::node::standing) counts on it).
    pub(super) fn with(&self, chain: &ChainId) -> Vec<Arc<Volume>> {
        let volumes = self.seen.iter().rev().filter_map(|seen| seen.volume.as_ref());
        volumes.filter(|volume| volume.layers.contains_key(chain)).cloned().collect()
    }
}

fn look(at: &Path) -> Option<Seal> {
    let root = Dir::open(at).ok()?;
    let file = root.stat(layout::CACHE).ok()?;
    let identity = root.stat_self().ok()?.identity;
    Some(Seal { root: identity, file: file.identity, size: file.size, mtime: file.mtime })
}

fn read(record: &Attachment) -> Result<Volume, String> {
    let at = &record.at;
    let manifest = seal::read(at).map_err(|e| e.to_string())?;
    if let Some(attached) = record.cache.as_ref().filter(|attached| **attached != manifest.digest) {
        return Err(format!("its cache.json is {}, attached was {attached}", manifest.digest));
    }
    let content = manifest.content;
    prove(&content)?;
    let layers = content.layers.into_iter().map(|layer| (layer.chain_id.clone(), layer)).collect();
    Ok(Volume { at: at.to_owned(), format: content.layer_format, layers })
}

/// Chain IDs are those of the layers they stand for, and parents come first.
fn prove(content: &Content) -> Result<(), String> {
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
            return Err(format!("cache.json calls a layer {} that is {want}", layer.chain_id));
        }
        known.insert(layer.chain_id.clone());
    }
    Ok(())
}
