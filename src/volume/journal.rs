//! The journal of committed and durable layers. Each line has a checksum.
//!
//! ```text
//! <first 16 hexadecimal digits of sha256 over the rest> {"committed":{"boot":"…","layer":{…}}}
//! <…>                                                   {"synced":["sha256:…", …]}
//! <…>                                                   {"lost":["sha256:…", …]}
//! ```
//!
//! Reading stops at the first line with a wrong checksum, because the lines after a torn line cannot be
//! trusted.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Write as _;

use serde::{Deserialize, Serialize};

use super::budget::Budget;
use super::error::Error;
use super::layout;
use larder_model::chain::ChainId;
use larder_model::digest::Digest;
use larder_model::io_error::{Context as _, IoError};
use larder_model::seal::Layer;
use larder_sys::{Dir, atomic, process};

/// Maximum size of a journal, in bytes: 10^4 layers with long lists of settled paths.
const MAX: u64 = 256 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Committed { boot: String, layer: Box<Layer> },
    Synced(Vec<ChainId>),
    Lost(Vec<ChainId>),
}

/// Trust in layers that were committed but not synced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// Trust layers that were committed since the machine was started: their data is in memory or on the
    /// disk.
    #[default]
    ThisBoot,
    /// Trust only synced layers, because the disk was not unmounted cleanly.
    Synced,
}

/// An open journal file.
#[derive(Debug)]
pub(super) struct Journal {
    pub(super) file: File,
    boot: String,
    len: u64,
}

/// The layers that a journal lists as intact.
#[derive(Debug, Default)]
pub(super) struct Trusted {
    pub(super) layers: Vec<Layer>,
    pub(super) synced: HashSet<ChainId>,
}

impl Journal {
    /// Opens the journal of a volume: reads it, and rewrites it with the trusted layers only.
    pub(super) fn open(larder: &Dir, trust: Trust) -> Result<(Self, Trusted), Error> {
        let boot = process::boot_id().context("reading", "the boot ID")?;
        let bytes = read(larder)?;
        let trusted = trusted(&bytes, (trust == Trust::ThisBoot).then_some(boot.as_str()));
        let mut rewritten = Vec::new();
        for layer in &trusted.layers {
            let layer = Box::new(layer.clone());
            rewritten.extend(encode(&Line::Committed { boot: boot.clone(), layer })?);
        }
        let synced: Vec<ChainId> = trusted
            .layers
            .iter()
            .map(|l| l.chain_id.clone())
            .filter(|id| trusted.synced.contains(id))
            .collect();
        if !synced.is_empty() {
            rewritten.extend(encode(&Line::Synced(synced))?);
        }
        if rewritten != bytes {
            atomic::write(larder, layout::JOURNAL, &rewritten, 0o600).context("writing", "the journal")?;
        }
        let file = larder.append_file(layout::JOURNAL, 0o600).context("opening", "the journal")?;
        Ok((Journal { file, boot, len: rewritten.len() as u64 }, trusted))
    }

    /// Records that a layer is in place.
    pub(super) fn committed(&mut self, layer: &Layer, budget: &Budget) -> Result<(), Error> {
        let line = Line::Committed { boot: self.boot.clone(), layer: Box::new(layer.clone()) };
        self.append(&line, budget)
    }

    /// Records that layers are durable. The record itself is durable when this returns.
    pub(super) fn synced(&mut self, layers: &[ChainId], budget: &Budget) -> Result<(), Error> {
        self.append(&Line::Synced(layers.to_vec()), budget)?;
        Ok(self.file.sync_data().context("flushing", "the journal")?)
    }

    /// Records that the writes of layers were lost. These layers do not count unless they are committed
    /// again.
    pub(super) fn lost(&mut self, layers: &[ChainId], budget: &Budget) -> Result<(), Error> {
        self.append(&Line::Lost(layers.to_vec()), budget)
    }

    fn append(&mut self, line: &Line, budget: &Budget) -> Result<(), Error> {
        let bytes = encode(line)?;
        let len = self.len + bytes.len() as u64;
        let file_system = budget.file_system();
        budget.reserve_file(file_system.round_up(len) - file_system.round_up(self.len), "the journal")?;
        if len > MAX {
            return Err(Error::TooLarge { what: "the journal", need: len, limit: MAX });
        }
        if let Err(e) = self.file.write_all(&bytes) {
            // A partial line would hide the lines after it.
            let _ = self.file.set_len(self.len);
            return Err(budget.explained(IoError::new("writing", "the journal", e)));
        }
        self.len = len;
        Ok(())
    }
}

/// Reports whether the journal of a volume has a layer that a build would keep. Changes nothing.
pub(super) fn has_layers(larder: &Dir, trust: Trust) -> Result<bool, Error> {
    let boot = process::boot_id().context("reading", "the boot ID")?;
    let boot = (trust == Trust::ThisBoot).then_some(boot.as_str());
    Ok(!trusted(&read(larder)?, boot).layers.is_empty())
}

/// Returns the bytes of the journal; empty if there is none.
fn read(larder: &Dir) -> Result<Vec<u8>, Error> {
    match larder.read_file(layout::JOURNAL, MAX) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        other => Ok(other.context("reading", "the journal")?),
    }
}

fn encode(line: &Line) -> Result<Vec<u8>, Error> {
    let json = serde_json::to_vec(line).map_err(|source| Error::Json { what: "the journal", source })?;
    let mut bytes = check(&json).into_bytes();
    bytes.push(b' ');
    bytes.extend(json);
    bytes.push(b'\n');
    Ok(bytes)
}

fn check(json: &[u8]) -> String {
    Digest::sha256(json).hex()[..16].to_owned()
}

fn decode(line: &[u8]) -> Option<Line> {
    let (sum, json) = (line.get(..17)?, line.get(17..)?);
    (sum.strip_suffix(b" ")? == check(json).as_bytes()).then(|| serde_json::from_slice(json).ok()).flatten()
}

/// Returns the layers to keep: those committed in the trusted boot or synced in any boot, whose parents are
/// kept too.
fn trusted(journal: &[u8], boot: Option<&str>) -> Trusted {
    let mut committed: Vec<(String, Layer)> = Vec::new();
    let mut synced = HashSet::new();
    for line in journal.split_inclusive(|b| *b == b'\n') {
        match line.strip_suffix(b"\n").and_then(decode) {
            Some(Line::Committed { boot, layer }) => committed.push((boot, *layer)),
            Some(Line::Synced(layers)) => synced.extend(layers),
            Some(Line::Lost(layers)) => {
                committed.retain(|(_, layer)| !layers.contains(&layer.chain_id));
                synced.retain(|chain_id| !layers.contains(chain_id));
            }
            None => break,
        }
    }
    let mut kept: HashMap<ChainId, ()> = HashMap::new();
    let mut layers = Vec::new();
    for (written_in, layer) in committed {
        let durable = Some(written_in.as_str()) == boot || synced.contains(&layer.chain_id);
        let parent_kept = layer.parent.as_ref().is_none_or(|parent| kept.contains_key(parent));
        if durable && parent_kept && kept.insert(layer.chain_id.clone(), ()).is_none() {
            layers.push(layer);
        }
    }
    synced.retain(|chain_id| kept.contains_key(chain_id));
    Trusted { layers, synced }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::seal::{Compression, Settled};

    fn layer(name: &str, parent: Option<&Layer>) -> Layer {
        let diff_id = Digest::sha256(name.as_bytes());
        let parent = parent.map(|layer| layer.chain_id.clone());
        let chain_id =
            parent.as_ref().map_or_else(|| ChainId::base(&diff_id), |parent| parent.child(&diff_id));
        Layer {
            chain_id,
            parent,
            blob: diff_id.clone(),
            diff_id,
            media_type: "application/vnd.oci.image.layer.v1.tar".into(),
            compression: Compression::None,
            compressed_size: 1,
            size: 1,
            entries: 1,
            tar_split_size: Some(1),
            image: None,
            settled: Settled::default(),
            lost: Vec::new(),
        }
    }

    fn committed(boot: &str, layer: &Layer) -> Vec<u8> {
        encode(&Line::Committed { boot: boot.into(), layer: Box::new(layer.clone()) }).unwrap()
    }

    fn names(trusted: &Trusted) -> Vec<ChainId> {
        trusted.layers.iter().map(|layer| layer.chain_id.clone()).collect()
    }

    #[test]
    fn only_synced_layers_survive_a_reboot() {
        let a = layer("a", None);
        let b = layer("b", Some(&a));
        let c = layer("c", Some(&b));
        let mut journal = committed("one", &a);
        journal.extend(committed("one", &b));
        journal.extend(encode(&Line::Synced(vec![a.chain_id.clone()])).unwrap());
        journal.extend(committed("one", &c));
        assert_eq!(trusted(&journal, Some("one")).layers, [a.clone(), b.clone(), c]);
        assert_eq!(names(&trusted(&journal, Some("two"))), std::slice::from_ref(&a.chain_id));
    }

    #[test]
    fn every_cut_and_every_flip_leaves_a_prefix() {
        let a = layer("a", None);
        let b = layer("b", Some(&a));
        let mut journal = committed("one", &a);
        let first = journal.len();
        journal.extend(committed("one", &b));
        for cut in 0..=journal.len() {
            let want = usize::from(cut >= first) + usize::from(cut == journal.len());
            assert_eq!(trusted(&journal[..cut], Some("one")).layers.len(), want, "cut at {cut}");
        }
        for at in 0..journal.len() {
            let mut flipped = journal.clone();
            flipped[at] ^= 1;
            let kept = trusted(&flipped, Some("one")).layers.len();
            assert!(kept <= usize::from(at >= first), "flip at {at} kept {kept}");
        }
    }

    #[test]
    fn lost_layers_count_only_when_they_are_committed_again() {
        let a = layer("a", None);
        let mut journal = committed("one", &a);
        journal.extend(encode(&Line::Lost(vec![a.chain_id.clone()])).unwrap());
        assert!(trusted(&journal, Some("one")).layers.is_empty());
        journal.extend(committed("one", &a));
        assert_eq!(names(&trusted(&journal, Some("one"))), [a.chain_id]);
    }

    #[test]
    fn a_child_without_its_parent_is_not_kept() {
        let a = layer("a", None);
        let b = layer("b", Some(&a));
        let mut journal = committed("one", &a);
        journal.extend(committed("two", &b));
        assert!(trusted(&journal, Some("two")).layers.is_empty());
    }
}
