//! All inputs of a build, merged from flags, job and configuration.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::supervisor::{Refusal, SupervisorClient};
use super::volume_name::VolumeName;
use crate::archive::Format;
use crate::volume::job::Identity;
use larder_model::class::Class;
use larder_model::credential::Credential;
use larder_model::job::{LayerFormat, NetworkAccess, VolumeKind};
use larder_model::key::{PublicKey, SigningKey};
use larder_model::platform::Platform;
use larder_model::pull_secret::PullSecretName;
use larder_model::reference::ImageReference;
use larder_model::size::ByteSize;
use larder_model::sizing::Sizing;
use larder_model::trust::SealSignature;

/// A build to run or to plan.
#[derive(Clone, Debug)]
pub struct BuildRequest {
    /// Images, in order. Must be non-empty, except for archives, where empty means all images.
    pub images: Vec<ImageReference>,
    /// Directory of the volume, or its device. Empty for a plan without a volume.
    pub volume: PathBuf,
    /// Maximum size of the volume. Zero for a plan without a size, and before it is computed.
    pub size: ByteSize,
    /// `true` if the user did not give the size. A sealed volume can then have another one.
    pub size_is_computed: bool,
    /// Action if the 3x rule is violated.
    pub sizing: Sizing,
    /// Platform of the images.
    pub platform: Platform,
    /// Kind of the volume.
    pub volume_kind: VolumeKind,
    /// Format of the layers on the volume.
    pub layer_format: LayerFormat,
    /// `true` if the user gave the format. Otherwise a volume that was started in another format keeps it.
    pub layer_format_given: bool,
    /// `true` if images have dm-verity hash trees.
    pub verity: bool,
    /// `true` if tar-split files are written.
    pub tar_split: bool,
    /// `true` to record attributes that an unprivileged process cannot write, instead of failing.
    pub rootless: bool,
    /// `true` to verify the sealed volume from its own content.
    pub verify_after: bool,
    /// Maximum number of layers at a time.
    pub concurrency: usize,
    /// The directory in which layers are shared; `None` if they are not.
    pub share: Option<Sharing>,
    /// Time at which the build is cancelled.
    pub deadline: Option<DateTime<Utc>>,
    /// Source of the images.
    pub source: ImageSource,
    /// File with the key that signs the volume.
    pub sign_key: Option<PathBuf>,
    /// The signer of the volume; `None` if it is not signed.
    pub signer: Option<Signer>,
    /// The supervisor of this build; `None` if the build is a single process.
    pub supervisor: Option<SupervisorClient>,
    /// The process that fetches; `None` if this process fetches itself.
    pub fetcher: Option<FetcherConnection>,
    /// The archive from standard input, if there is one.
    pub standard_input: Option<Arc<File>>,
    /// Registry settings and credentials.
    pub registry: RegistryOptions,
}

impl BuildRequest {
    /// Returns the properties that make two jobs the same.
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

/// The signer of a volume. A process that reads layers never has the key itself.
#[derive(Clone, Debug)]
pub enum Signer {
    /// This process signs with the key.
    Key(Arc<SigningKey>),
    /// The supervisor signs; the public key belongs to its key.
    Supervisor(SupervisorClient, PublicKey),
}

impl Signer {
    /// Returns the key that verifies its signatures.
    pub fn public(&self) -> PublicKey {
        match self {
            Signer::Key(key) => key.public(),
            Signer::Supervisor(_, public) => *public,
        }
    }

    /// Returns the bytes of `cache.json.sig` for those of `cache.json`. Blocks.
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

/// Connection to the process that fetches.
#[derive(Clone, Debug)]
pub struct FetcherConnection {
    /// Connected socket of the fetcher.
    pub stream: Arc<UnixStream>,
    /// Pull secrets without credentials.
    pub absent: Vec<PullSecretName>,
}

/// A directory of volumes whose layers are reused ([`share`](super::share)).
#[derive(Clone, Debug)]
pub struct Sharing {
    /// Path of the directory.
    pub dir: PathBuf,
    /// Name of this build's volume in it.
    pub volume: VolumeName,
}

/// Source of the images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ImageSource {
    /// The registries in the references.
    #[default]
    Registries,
    /// An archive file or directory.
    Archive {
        /// Path of the archive; `-` is standard input.
        path: PathBuf,
        /// Format of the archive; `None` to detect it.
        format: Option<Format>,
        /// `true` if a daemon received it. Then messages do not show its path.
        received: bool,
    },
}

impl ImageSource {
    /// Reports whether images come from an archive.
    pub fn is_archive(&self) -> bool {
        matches!(self, ImageSource::Archive { .. })
    }

    /// Returns the path of the archive if it is a directory. Its files are opened during the build.
    pub fn directory(&self) -> Option<PathBuf> {
        match self {
            ImageSource::Archive { path, .. } if path.is_dir() => Some(path.clone()),
            _ => None,
        }
    }
}

/// Registry settings and credentials of a build.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// Maximum number of connections to one host.
    pub connections_per_host: usize,
    /// Maximum rate of all registries together, bytes per second.
    pub limit_rate: Option<u64>,
    /// Maximum number of retries of a request without progress. `None` for the numbers of the configuration.
    pub retries: Option<u32>,
    /// Credential for the registries of the images, instead of all other credentials.
    pub credential: Option<Credential>,
    /// File with credentials in the format of docker's `config.json`, tried before the directories.
    pub auth_file: Option<PathBuf>,
    /// Directories with a docker `config.json`, in the order in which they are tried.
    pub docker_configs: Vec<PathBuf>,
    /// `true` to use this user's docker config if none is given.
    pub user_docker_config: bool,
    /// Directory of secrets as mounted by Kubernetes: `<namespace>/<name>/.dockerconfigjson` or `.dockercfg`.
    pub secrets_dir: Option<PathBuf>,
    /// Pull secrets to try, in order.
    pub pull_secrets: Vec<PullSecretName>,
    /// Addresses to which connections are allowed.
    pub reach: NetworkAccess,
    /// Minimum rate of each layer, bytes per minute. `None` for no limit.
    pub min_layer_rate: Option<ByteSize>,
    /// Settings that take precedence over those of the configuration.
    pub hosts: HostOverrides,
}

/// Settings of the registries of a build and of their mirrors. They correspond to the keys of
/// `[[registry.host]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostOverrides {
    /// `true` to use verified TLS only. `false` to accept any certificate, and plain HTTP if a server does
    /// not support TLS.
    pub tls_verify: Option<bool>,
    /// Files with additional certificate authorities, PEM.
    pub ca: Vec<PathBuf>,
    /// Mirrors, tried in order before those of the configuration.
    pub mirrors: Vec<MirrorOf>,
}

/// A mirror of one registry or of all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorOf {
    /// Name of the registry; `None` for all registries of the images.
    pub registry: Option<String>,
    /// `[scheme://]host[:port][/path]` of the mirror.
    pub url: String,
}

impl FromStr for MirrorOf {
    type Err = &'static str;

    /// Parses `[registry=]url`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (registry, url) = match text.split_once('=') {
            Some((registry, url)) if !registry.contains('/') => (Some(registry.to_owned()), url),
            _ => (None, text),
        };
        if url.is_empty() || registry.as_ref().is_some_and(String::is_empty) {
            return Err("use [REGISTRY=]URL, for example docker.io=https://mirror.example.com");
        }
        Ok(MirrorOf { registry, url: url.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_is_of_one_registry_or_of_all() {
        let parse = |text: &str| text.parse::<MirrorOf>().map(|mirror| (mirror.registry, mirror.url));
        assert_eq!(parse("http://m.io/a=b").unwrap(), (None, "http://m.io/a=b".to_owned()));
        assert_eq!(parse("r.io:5000=m.io").unwrap(), (Some("r.io:5000".to_owned()), "m.io".to_owned()));
        for text in ["", "=m.io", "r.io="] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
