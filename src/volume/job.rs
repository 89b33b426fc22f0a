//! Which job a volume belongs to, and what its references were resolved to: a tag that moves between two runs of one job
//! must not mix two images on one volume.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::{Context, Error};
use super::{Volume, layout};
use larder_model::digest::Digest;
use larder_model::job::LayerFormat;
use larder_model::platform::Platform;
use larder_model::reference::ImageReference;
use larder_sys::{Dir, atomic};

/// Most bytes that the file may have.
const MAX: u64 = 4 << 20;

/// What makes two jobs the same. The size, credentials and limits may change between runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// References in normal form, in order.
    pub images: Vec<String>,
    /// Platform of the images.
    pub platform: Platform,
    /// Form of the layers.
    pub layer_format: LayerFormat,
    /// Whether images have hash trees.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub verity: bool,
    /// Whether tar-split files are kept.
    pub tar_split: bool,
    /// Whether losses of an unprivileged build are allowed.
    pub rootless: bool,
}

impl Identity {
    /// sha256 over the identity as compact JSON.
    pub fn digest(&self) -> Digest {
        // Strings and booleans always serialise.
        Digest::sha256(&serde_json::to_vec(self).unwrap_or_default())
    }
}

/// One reference and what it stands for on this volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// The reference as given.
    pub reference: ImageReference,
    /// Digest of the index the reference pointed to, where there was one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub index: Option<Digest>,
    /// Digest of the manifest.
    pub manifest: Digest,
}

/// `.larder/job.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) identity: Identity,
    #[serde(default)]
    pub(super) resolved: Vec<Resolved>,
}

/// Reads the record; nothing where the volume has none yet.
pub(super) fn read(larder: &Dir) -> Result<Option<Record>, Error> {
    let bytes = match larder.read_file(layout::JOB, MAX) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.context("reading", "job.json")?,
    };
    let record = serde_json::from_slice(&bytes).map_err(|source| Error::Json { what: "job.json", source })?;
    Ok(Some(record))
}

pub(super) fn write(larder: &Dir, record: &Record) -> Result<(), Error> {
    let bytes = serde_json::to_vec(record).map_err(|source| Error::Json { what: "job.json", source })?;
    atomic::write(larder, layout::JOB, &bytes, 0o600).context("writing", "job.json")
}

/// The form of the layers of the volume at `path`; nothing where none was begun there, or it cannot be told.
pub fn format_at(path: &Path) -> Option<LayerFormat> {
    let larder = Dir::open(path).ok()?.open_dir(layout::LARDER).ok()?;
    Some(read(&larder).ok()??.identity.layer_format)
}

impl Volume {
    /// What the references were resolved to in an earlier run of this job; empty in the first.
    pub fn resolved(&self) -> Result<Vec<Resolved>, Error> {
        Ok(read(&self.larder)?.map(|record| record.resolved).unwrap_or_default())
    }

    /// Notes what the references stand for, for this run and later ones.
    pub fn set_resolved(&self, identity: &Identity, resolved: &[Resolved]) -> Result<(), Error> {
        let record = Record { identity: identity.clone(), resolved: resolved.to_vec() };
        // The old file and the new one are there at the same time for a moment.
        self.budget.reserve_file(MAX.min(512 + 512 * resolved.len() as u64), "job.json")?;
        self.budget.growing(&[&self.larder], "job.json", || write(&self.larder, &record))
    }
}
