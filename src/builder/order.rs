//! Everything a build needs, after flags, job and configuration were merged.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::keeper::{Keeper, Refusal};
use super::share::VolumeName;
use crate::archive::Format;
use crate::volume::job::Identity;
use larder_model::class::Class;
use larder_model::job::{LayerFormat, Reach, VolumeKind};
use larder_model::key::{PublicKey, SigningKey};
use larder_model::platform::Platform;
use larder_model::pull_secret::PullSecretName;
use larder_model::reference::ImageReference;
use larder_model::size::ByteSize;
use larder_model::sizing::Sizing;
use larder_model::trust::SealSignature;

/// One build to carry out, or to plan.
#[derive(Clone, Debug)]
pub struct Order {
    /// Images, in order; at least one, but from an archive none stands for all.
    pub images: Vec<ImageReference>,
    /// Directory of the volume, or its device. Empty in a plan that was given none.
    pub volume: PathBuf,
    /// Most bytes the volume may occupy. Zero in a plan that was given none, and in an import, where it is chosen.
    pub size: ByteSize,
    /// What happens when the 3x rule does not hold.
    pub sizing: Sizing,
    /// Platform of the images.
    pub platform: Platform,
    /// What holds the volume.
    pub volume_kind: VolumeKind,
    /// Form in which layers lie on it.
    pub layer_format: LayerFormat,
    /// Whether somebody asked for that form; else a volume that was begun in another one keeps it.
    pub layer_format_given: bool,
    /// Whether images have dm-verity hash trees.
    pub verity: bool,
    /// Whether tar-split files are written.
    pub tar_split: bool,
    /// Whether what an unprivileged process cannot keep is recorded instead of refused.
    pub rootless: bool,
    /// Whether the sealed volume is verified from its own bytes.
    pub verify_after: bool,
    /// Most layers at once.
    pub concurrency: usize,
    /// With whom layers are shared.
    pub share: Option<Sharing>,
    /// When the build gives up.
    pub deadline: Option<DateTime<Utc>>,
    /// Where images come from.
    pub source: SourceOrder,
    /// The file of the key by which the volume is to be signed.
    pub sign_key: Option<PathBuf>,
    /// Who signs by it.
    pub signer: Option<Signer>,
    /// The supervisor of this build; `None` if the build is all one process.
    pub keeper: Option<Keeper>,
    /// The process that fetches; `None` if this process fetches itself.
    pub fetcher: Option<Fetching>,
    /// The archive that came on standard input, if one did.
    pub standard_input: Option<Arc<File>>,
    /// How registries are asked.
    pub registry: RegistryOrder,
}

impl Order {
    /// What makes this job the same as another.
    pub fn identity(&self) -> Identity {
        Identity {
            images: self.images.iter().map(ToString::to_string).collect(),
            platform: self.platform.clone(),
            layer_format: self.layer_format,
            verity: self.verity,
            tar_split: self.tar_split,
            rootless: self.rootless,
        }
    }
}

/// Who signs a volume. The key itself is never in a process that reads layers.
#[derive(Clone, Debug)]
pub enum Signer {
    /// This process.
    Key(Arc<SigningKey>),
    /// The supervisor, by the key with this public half.
    Supervisor(Keeper, PublicKey),
}

impl Signer {
    /// The key by which a signature is verified.
    pub fn public(&self) -> PublicKey {
        match self {
            Signer::Key(key) => key.public(),
            Signer::Supervisor(_, public) => *public,
        }
    }

    /// The bytes of `cache.json.sig` for these of `cache.json`. Blocks.
    ///
    /// # Errors
    /// The supervisor refuses.
    pub(super) fn sign(&self, cache_json: &[u8]) -> Result<Vec<u8>, Refusal> {
        match self {
            Signer::Key(key) => SealSignature::new(cache_json, key)
                .to_json()
                .map_err(|e| Refusal::new(Class::Internal, format!("writing the signature: {e}"))),
            Signer::Supervisor(supervisor, _) => supervisor.sign(cache_json),
        }
    }
}

/// How another process that fetches is reached.
#[derive(Clone, Debug)]
pub struct Fetching {
    /// The connection to it.
    pub stream: Arc<UnixStream>,
    /// Pull secrets that gave no credential.
    pub absent: Vec<PullSecretName>,
}

/// A directory of volumes whose layers are reused ([`share`](super::share)).
#[derive(Clone, Debug)]
pub struct Sharing {
    /// The directory.
    pub dir: PathBuf,
    /// The volume of this build in it.
    pub volume: VolumeName,
}

/// Where images come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SourceOrder {
    /// The registries that references name.
    #[default]
    Registries,
    /// An archive.
    Archive {
        /// Where; `-` is standard input.
        path: PathBuf,
        /// What it is; without one that is found out.
        format: Option<Format>,
        /// Whether a daemon received it: then its path is not told.
        received: bool,
    },
}

impl SourceOrder {
    /// Whether images come from an archive.
    pub fn is_archive(&self) -> bool {
        matches!(self, SourceOrder::Archive { .. })
    }

    /// The archive, where it is a directory: its files are opened while the build goes on.
    pub fn directory(&self) -> Option<PathBuf> {
        match self {
            SourceOrder::Archive { path, .. } if path.is_dir() => Some(path.clone()),
            _ => None,
        }
    }
}

/// How registries are asked, and as whom.
#[derive(Clone, Debug)]
pub struct RegistryOrder {
    /// Most connections to one host.
    pub connections_per_host: usize,
    /// Most bytes per second from all registries together.
    pub limit_rate: Option<u64>,
    /// Directories that hold a docker `config.json`, in the order in which they are tried.
    pub docker_configs: Vec<PathBuf>,
    /// Whether this user's docker config is tried when none is named.
    pub user_docker_config: bool,
    /// Directory of secrets as Kubernetes writes them: `<namespace>/<name>/.dockerconfigjson` or `.dockercfg`.
    pub secrets_dir: Option<PathBuf>,
    /// Which of these secrets are tried, in order.
    pub pull_secrets: Vec<PullSecretName>,
    /// Which addresses may be connected to.
    pub reach: Reach,
    /// Bytes per minute that a registry must send of each layer. `None` waits for ever.
    pub min_layer_rate: Option<ByteSize>,
}
