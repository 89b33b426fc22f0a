//! The build job: the machine-readable description of one build.
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
use super::size::{ByteSize, VolumeSize};
use super::sizing::Sizing;

/// The version of the job format that this build reads and writes.
pub const VERSION: u32 = 1;

/// Maximum number of images in one job.
pub const MAX_IMAGES: usize = 256;

/// A build job. An absent field has the default of the command-line flag or the configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// Version of the job format, [`VERSION`].
    #[serde(default = "version")]
    pub version: u32,
    /// References of the images, in order. With a source, an empty list means all images of the source.
    #[serde(default)]
    pub images: Vec<ImageReference>,
    /// Archive that contains the images; `None` if registries do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// Maximum size of the volume at any time, as a number of bytes or a string with a unit, or `auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<VolumeSize>,
    /// Action if the volume is smaller than the 3x rule requires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sizing: Option<Sizing>,
    /// Platform of the images; defaults to the platform of this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Kind of volume to build on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_kind: Option<VolumeKind>,
    /// Format of the layers on the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_format: Option<LayerFormat>,
    /// `true` if each layer image has a dm-verity hash tree; only with the format `erofs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verity: Option<bool>,
    /// Pull secrets, in the order in which they are tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pull_secrets: Vec<PullSecretName>,
    /// Time at which the build stops (RFC 3339). The volume stays resumable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<DateTime<Utc>>,
    /// File to which the result is written as one JSON line under 4 KiB, on success and on failure. In a pod,
    /// this is its termination message file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_file: Option<PathBuf>,
    /// `true` if tar-split files are written, which `verify` and export require.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tar_split: Option<bool>,
    /// Addresses to which the builder can connect.
    #[serde(default, skip_serializing_if = "NetworkAccess::is_any")]
    pub reach: NetworkAccess,
    /// Minimum bytes per minute that a registry must send of each layer that is fetched. A slower build fails
    /// as transient. `None` disables the limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_layer_rate: Option<ByteSize>,
}

fn version() -> u32 {
    VERSION
}

/// The addresses to which a builder can connect. Link-local and metadata addresses always require
/// `registry.allow`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkAccess {
    /// All other addresses, because the user who starts the build can reach them anyway.
    #[default]
    Any,
    /// All except this host and the addresses in `registry.deny`, unless `registry.allow` includes them. A
    /// daemon sets this for each tenant except the administrator.
    Tenant,
}

impl NetworkAccess {
    /// Reports whether this is the default, which is omitted from a job.
    fn is_any(&self) -> bool {
        *self == NetworkAccess::Any
    }
}

/// An archive of images, as in `{"oci-archive": "/path"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// An OCI image layout: a directory.
    OciLayout(PathBuf),
    /// A tar of an OCI image layout.
    OciArchive(PathBuf),
    /// A tar that `docker save` writes.
    DockerArchive(PathBuf),
    /// An OCI or docker archive that a daemon received from a tenant. Messages call it `the archive`, because
    /// its path is internal to the host.
    Received(PathBuf),
}

/// The storage of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum VolumeKind {
    /// A directory; Larder counts bytes to enforce the size limit.
    #[default]
    Directory,
    /// An image file with an ext4 file system, in a directory; the kernel enforces the size limit.
    Disk,
    /// A file system that is already mounted, empty or from an earlier run.
    Mounted,
    /// A block device that Larder formats.
    Block,
}

impl VolumeKind {
    /// Reports whether the builder formats, mounts and checks the file system.
    pub fn is_disk(self) -> bool {
        matches!(self, VolumeKind::Disk | VolumeKind::Block)
    }
}

/// The format of layers on the volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LayerFormat {
    /// One directory per layer, in overlayfs format.
    #[default]
    Overlay,
    /// One EROFS image per layer; requires no privileges.
    Erofs,
}

impl LayerFormat {
    /// Returns the name in jobs and on the command line.
    pub fn word(self) -> &'static str {
        match self {
            LayerFormat::Overlay => "overlay",
            LayerFormat::Erofs => "erofs",
        }
    }
}

/// The error for a job that cannot be executed as written.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The job is not JSON or has the wrong structure.
    #[error("reading the job: {0}")]
    Malformed(serde_json::Error),
    /// The job has a format version that this build does not support.
    #[error("the job has version {given}, but this larder reads version {VERSION}: use a matching larder")]
    Version {
        /// Version in the job.
        given: u32,
    },
    /// The number of images is 0 or more than [`MAX_IMAGES`].
    #[error("the job has {given} images: want 1 to {MAX_IMAGES}")]
    Images {
        /// Number of images in the job.
        given: usize,
    },
}

impl Job {
    /// Parses a job and checks its version and number of images.
    ///
    /// # Errors
    /// Returns [`JobError`] if the job is malformed, or if its version or number of images is not accepted.
    pub fn parse(json: &[u8]) -> Result<Self, JobError> {
        #[derive(Deserialize)]
        struct Versioned {
            #[serde(default = "version")]
            version: u32,
        }
        let Versioned { version } = serde_json::from_slice(json).map_err(JobError::Malformed)?;
        if version != VERSION {
            return Err(JobError::Version { given: version });
        }
        let job: Job = serde_json::from_slice(json).map_err(JobError::Malformed)?;
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
        assert_eq!(
            (job.size, job.reach),
            (Some(VolumeSize::Given(ByteSize(20 << 30))), NetworkAccess::Tenant)
        );
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
