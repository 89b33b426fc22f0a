//! The job of a volume, and the digests to which its references were resolved. A tag that moves between two
//! runs of one job must not mix two images on one volume.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::Error;
use super::journal::{self, Trust};
use super::{Volume, layout};
use larder_model::digest::Digest;
use larder_model::io_error::Context as _;
use larder_model::job::LayerFormat;
use larder_model::platform::Platform;
use larder_model::reference::ImageReference;
use larder_sys::{Dir, atomic};

/// Maximum size of the file, in bytes.
const MAX: u64 = 4 << 20;

/// Properties that identify a job. The size, credentials and limits can change between runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Image references in normal form, in order.
    pub images: Vec<String>,
    /// Platform of the images.
    pub platform: Platform,
    /// Format of the layers.
    pub layer_format: LayerFormat,
    /// `true` if images have hash trees.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub verity: bool,
    /// `true` if tar-split files are kept.
    pub tar_split: bool,
    /// `true` if losses of an unprivileged build are allowed.
    pub rootless: bool,
}

impl Identity {
    /// Returns the sha256 of the identity as compact JSON.
    pub fn digest(&self) -> Digest {
        // Serialization of strings and booleans cannot fail.
        Digest::sha256(&serde_json::to_vec(self).unwrap_or_default())
    }

    /// Returns the first difference between this job, to which a volume belongs, and `wanted`, for the
    /// message of an error.
    pub(super) fn difference(&self, wanted: &Identity) -> String {
        let with = |given: bool| if given { "with" } else { "without" };
        if self.images != wanted.images {
            format!("images: {}", self.images.join(", "))
        } else if self.platform != wanted.platform {
            format!("platform {}, not {}", self.platform, wanted.platform)
        } else if self.layer_format != wanted.layer_format {
            format!("layer format {}, not {}", self.layer_format.word(), wanted.layer_format.word())
        } else if self.verity != wanted.verity {
            format!("{} --verity, not {}", with(self.verity), with(wanted.verity))
        } else if self.tar_split != wanted.tar_split {
            format!("{} --no-tar-split, not {}", with(!self.tar_split), with(!wanted.tar_split))
        } else {
            format!("{} --rootless, not {}", with(self.rootless), with(wanted.rootless))
        }
    }
}

/// One reference and the digests that it is resolved to on this volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// The reference as given in the job.
    pub reference: ImageReference,
    /// Digest of the index to which the reference pointed, if any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub index: Option<Digest>,
    /// Digest of the image manifest.
    pub manifest: Digest,
}

/// The content of `.larder/job.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) identity: Identity,
    #[serde(default)]
    pub(super) resolved: Vec<Resolved>,
}

/// Reads the record; `None` if the volume has none yet.
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
    Ok(atomic::write(larder, layout::JOB, &bytes, 0o600).context("writing", "job.json")?)
}

/// Returns the format of the layers of the volume at `path`; `None` if there is no volume, it has no layers,
/// or its record cannot be read.
pub fn format_at(path: &Path) -> Option<LayerFormat> {
    let root = Dir::open(path).ok()?;
    let larder = root.open_dir(layout::LARDER).ok()?;
    let is_sealed = root.try_stat(layout::CACHE).ok()?.is_some();
    if !is_sealed && !journal::has_layers(&larder, Trust::ThisBoot).ok()? {
        return None;
    }
    Some(read(&larder).ok()??.identity.layer_format)
}

impl Volume {
    /// Returns the digests to which an earlier run of this job resolved the references; empty in the first
    /// run.
    ///
    /// # Errors
    /// Those of reading `.larder/job.json`.
    pub fn resolved(&self) -> Result<Vec<Resolved>, Error> {
        Ok(read(&self.larder)?.map(|record| record.resolved).unwrap_or_default())
    }

    /// Records the digests of the references for this run and later ones.
    ///
    /// # Errors
    /// [`Error::Full`], and those of writing `.larder/job.json`.
    pub fn set_resolved(&self, identity: &Identity, resolved: &[Resolved]) -> Result<(), Error> {
        let record = Record { identity: identity.clone(), resolved: resolved.to_vec() };
        // For a moment the old file and the new one exist together.
        self.budget.reserve_file(MAX.min(512 + 512 * resolved.len() as u64), "job.json")?;
        self.budget.with_growth(&[&self.larder], "job.json", || write(&self.larder, &record))
    }
}
