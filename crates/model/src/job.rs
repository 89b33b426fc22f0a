//! The build job: the machine-readable order for one image cache.
//!
//! ```json
//! {
//!   "version": 1,
//!   "images": ["nginx:1.27"],
//!   "size": "20GiB",
//!   "pull_secrets": ["team-a:registry"],
//!   "deadline": "2026-11-23T18:00:00Z",
//!   "result_file": "/dev/termination-log"
//! }
//! ```

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::platform::Platform;
use super::pull_secret::PullSecretName;
use super::reference::ImageReference;
use super::size::ByteSize;
use super::sizing::Sizing;

/// The version of the format that this build reads and writes.
pub const VERSION: u32 = 1;

/// Most images one job may hold.
pub const MAX_IMAGES: usize = 256;

/// One order. Fields that are absent take the flag's or the configuration's default.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// Format version, [`VERSION`].
    #[serde(default = "version")]
    pub version: u32,
    /// References of the images, in order. With a source they may be left out, which means all that it has.
    #[serde(default)]
    pub images: Vec<ImageReference>,
    /// Where images come from instead of registries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// Most bytes the volume may occupy at any instant; a number of bytes or a string with a unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// What to do when the 3x rule does not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sizing: Option<Sizing>,
    /// Platform of the images; this host's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Kind of volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_kind: Option<VolumeKind>,
    /// Form in which layers lie on the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_format: Option<LayerFormat>,
    /// Whether each image of a layer has a dm-verity hash tree; only with the format `erofs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verity: Option<bool>,
    /// Pull secrets, in the order in which they are tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pull_secrets: Vec<PullSecretName>,
    /// When the build gives up (RFC 3339). The volume stays resumable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<DateTime<Utc>>,
    /// Where the result is written as one JSON line under 4 KiB, on success and on failure (a pod: its termination
    /// message file).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_file: Option<PathBuf>,
    /// Whether tar-split files are written, without which `verify` and export cannot work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tar_split: Option<bool>,
    /// Which addresses the builder may connect to.
    #[serde(default, skip_serializing_if = "Reach::is_any")]
    pub reach: Reach,
    /// Bytes per minute that a registry must send of each layer that is fetched. A build that gets less fails as
    /// transient. `None` waits for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_layer_rate: Option<ByteSize>,
}

fn version() -> u32 {
    VERSION
}

/// Which addresses a builder may connect to. Link-local and metadata addresses need `registry.allow` in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// All others: the person who gives the order can reach them anyway.
    #[default]
    Any,
    /// Neither this host nor what `registry.deny` names, unless `registry.allow` names it. A daemon sets it for each
    /// tenant but the administrator.
    Tenant,
}

impl Reach {
    /// Whether this is the default, which a job leaves out.
    fn is_any(&self) -> bool {
        *self == Reach::Any
    }
}

/// An archive of images, as in `{"oci-archive": "/path"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// An OCI image layout: a directory.
    OciLayout(PathBuf),
    /// A tar of one.
    OciArchive(PathBuf),
    /// What `docker save` writes.
    DockerArchive(PathBuf),
    /// One of the two tars, as a daemon received it for a tenant. Messages call it `the archive`: its path is the host's own.
    Received(PathBuf),
}

/// What holds the volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum VolumeKind {
    /// A directory; the cap is counted.
    #[default]
    Directory,
    /// An image file with an ext4 in a directory; the kernel holds the cap.
    Disk,
    /// A file system that is mounted already, empty or of an earlier run.
    Mounted,
    /// A block device, formatted for this.
    Block,
}

impl VolumeKind {
    /// Whether the builder formats, mounts and checks it.
    pub fn is_disk(self) -> bool {
        matches!(self, VolumeKind::Disk | VolumeKind::Block)
    }
}

/// Form in which layers lie on the volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LayerFormat {
    /// A directory per layer in overlayfs form.
    #[default]
    Overlay,
    /// An EROFS image per layer; takes no privilege.
    Erofs,
}

impl LayerFormat {
    /// The word for it in jobs and on the command line.
    pub fn word(self) -> &'static str {
        match self {
            LayerFormat::Overlay => "overlay",
            LayerFormat::Erofs => "erofs",
        }
    }
}

/// A job cannot be carried out as written.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// Not JSON, or not of this shape.
    #[error("reading the job: {0}")]
    Malformed(#[from] serde_json::Error),
    /// A version of the format that this build does not know.
    #[error("the job has version {given}, this larder reads version {VERSION}: use a matching larder")]
    Version {
        /// Version found.
        given: u32,
    },
    /// No image, or more than [`MAX_IMAGES`].
    #[error("the job names {given} images: want 1 to {MAX_IMAGES}")]
    Images {
        /// Number found.
        given: usize,
    },
}

impl Job {
    /// Reads a job and checks its version and number of images.
    pub fn parse(json: &[u8]) -> Result<Self, JobError> {
        #[derive(Deserialize)]
        struct Versioned {
            #[serde(default = "version")]
            version: u32,
        }
        let Versioned { version } = serde_json::from_slice(json)?;
        if version != VERSION {
            return Err(JobError::Version { given: version });
        }
        let job: Job = serde_json::from_slice(json)?;
        let least = if job.source.is_some() { 0 } else { 1 };
        if !(least..=MAX_IMAGES).contains(&job.images.len()) {
            return Err(JobError::Images { given: job.images.len() });
        }
        Ok(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smallest_and_fullest() {
        let job = Job::parse(br#"{"images":["nginx"]}"#).unwrap();
        assert_eq!(job.images[0].to_string(), "docker.io/library/nginx:latest");
        let full = br#"{"version":1,"images":["a:1"],"size":"20GiB","sizing":"warn","platform":"linux/arm64",
            "volume_kind":"directory","layer_format":"overlay","pull_secrets":["ns:name"],
            "deadline":"2026-11-23T18:00:00Z","result_file":"/dev/termination-log","tar_split":true,
            "reach":"tenant","min_layer_rate":"256KiB"}"#;
        let job = Job::parse(full).unwrap();
        assert_eq!((job.size, job.reach), (Some(ByteSize(20 << 30)), Reach::Tenant));
        let archive = Job::parse(br#"{"source":{"docker-archive":"/a.tar"}}"#).unwrap();
        assert_eq!(archive.source, Some(Source::DockerArchive("/a.tar".into())));
        assert!(archive.images.is_empty());
        let again = serde_json::to_vec(&job).unwrap();
        assert_eq!(Job::parse(&again).unwrap().images, job.images);
    }

    #[test]
    fn refused() {
        for bad in [
            &br#"{}"#[..],
            br#"{"images":[]}"#,
            br#"{"images":["a"],"sise":1}"#,
            br#"{"version":2,"images":["a"]}"#,
            br#"{"images":["A B"]}"#,
            br#"{"source":{"zip":"/a"}}"#,
            br#"{"images":["a"],"size":-1}"#,
            br#"{"images":["a"],"reach":"all"}"#,
            br#"{"images":["a"],"pull_secrets":["x"]}"#,
            b"[",
        ] {
            assert!(Job::parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
