//! Where images come from: registries, or one archive.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::failure::Fail;
use super::order::{Fetching, Order, SourceOrder};
use super::remote::{self, Piped, Remote};
use super::resolve::{self, NothingKnown, ResolvedImage};
use crate::archive::{self, Archive, Input};
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::job::{self, MAX_IMAGES};
use larder_model::manifest::{Descriptor, LayerMediaType};
use larder_model::platform::Platform;
use larder_model::pull_secret::PullSecretName;
use larder_model::reference::ImageReference;
use larder_model::seal::{CacheManifest, Compression};
use larder_model::size::ByteSize;
use larder_registry::{self, BlobStream, ManifestReference, Registry};

/// Manifests, configs and layers by name and digest; cheap to clone.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// What references name.
    Registry(Registry),
    /// The same, fetched by another process.
    Remote(Remote),
    /// An archive, for images of one platform.
    Archive(Arc<Archive>, Platform),
}

/// A source does not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Registry(#[from] larder_registry::Error),
    #[error(transparent)]
    Remote(#[from] remote::Error),
    #[error(transparent)]
    Archive(#[from] Box<archive::Error>),
    /// A document is not as long as its descriptor says.
    #[error("{digest} has {have} bytes, its descriptor says {want}")]
    Size { digest: Digest, have: u64, want: u64 },
    /// The thread that read ended.
    #[error("reading the archive ended: {0}")]
    Ended(String),
}

impl Error {
    pub(super) fn class(&self) -> Class {
        match self {
            Error::Registry(error) => error.class(),
            Error::Remote(error) => error.class(),
            Error::Archive(error) => error.class(),
            Error::Size { .. } => Class::Corrupt,
            Error::Ended(_) => Class::Internal,
        }
    }
}

/// A manifest or index.
#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) digest: Digest,
    /// What the source calls it, where it says so.
    pub(super) media_type: Option<String>,
    pub(super) bytes: Vec<u8>,
}

/// A layer, to be read.
#[derive(Debug)]
pub(super) enum Blob {
    Stream(Box<BlobStream>),
    Piped(Piped),
    File(archive::Blob),
}

impl Source {
    /// A manifest or index of at most `limit` bytes; by digest, it has that one.
    pub(super) async fn manifest(
        &self,
        image: &ImageReference,
        by: ManifestReference<'_>,
        limit: u64,
    ) -> Result<Manifest, Error> {
        let (archive, platform) = match self {
            Source::Registry(registry) => {
                let found = registry.manifest(image, by).await?;
                let (digest, media_type, bytes) = (found.digest, found.media_type, found.bytes.to_vec());
                return Ok(Manifest { digest, media_type, bytes });
            }
            Source::Remote(remote) => return Ok(remote.manifest(image, by).await?),
            Source::Archive(archive, platform) => (archive, platform),
        };
        let (digest, media_type, size) = match by {
            ManifestReference::Digest(digest) => (digest.clone(), None, None),
            ManifestReference::Tag(_) => {
                let entry = archive.find(image, platform).map_err(Box::new)?;
                (entry.digest.clone(), Some(entry.media_type.clone()), Some(entry.size))
            }
        };
        let bytes = document(archive, digest.clone(), limit).await?;
        match size.filter(|size| *size != bytes.len() as u64) {
            Some(want) => Err(Error::Size { digest, have: bytes.len() as u64, want }),
            None => Ok(Manifest { digest, media_type, bytes }),
        }
    }

    /// A small blob whole, its size and digest checked.
    pub(super) async fn blob_bytes(
        &self,
        image: &ImageReference,
        descriptor: &Descriptor,
        limit: u64,
    ) -> Result<Vec<u8>, Error> {
        match self {
            Source::Registry(registry) => Ok(registry.blob_bytes(image, descriptor, limit).await?.to_vec()),
            Source::Remote(remote) => Ok(remote.blob_bytes(image, descriptor, limit).await?),
            Source::Archive(archive, _) => {
                let (digest, want) = (descriptor.digest.clone(), descriptor.size);
                let bytes = document(archive, digest.clone(), limit.min(want)).await?;
                let have = bytes.len() as u64;
                if have == want { Ok(bytes) } else { Err(Error::Size { digest, have, want }) }
            }
        }
    }

    /// A layer's blob, of the size that its descriptor says. Its digest is the reader's to check. The first `skipped` hosts are
    /// not asked: their bytes had another one.
    pub(super) fn blob(
        &self,
        image: &ImageReference,
        descriptor: &Descriptor,
        skipped: usize,
    ) -> Result<Blob, Error> {
        match self {
            Source::Registry(registry) => {
                Ok(Blob::Stream(Box::new(registry.blob(image, descriptor, skipped))))
            }
            Source::Remote(remote) => Ok(Blob::Piped(remote.layer(image, descriptor, skipped)?)),
            Source::Archive(archive, _) => {
                let blob = archive.blob(&descriptor.digest).map_err(Box::new)?;
                let (have, want) = (blob.size(), descriptor.size);
                if have == want {
                    return Ok(Blob::File(blob));
                }
                Err(Error::Size { digest: descriptor.digest.clone(), have, want })
            }
        }
    }
}

async fn document(archive: &Arc<Archive>, digest: Digest, limit: u64) -> Result<Vec<u8>, Error> {
    let archive = Arc::clone(archive);
    let read = tokio::task::spawn_blocking(move || archive.document(&digest, limit));
    let read = read.await.map_err(|e| Error::Ended(e.to_string()))?;
    Ok(read.map_err(Box::new)?)
}

/// A source of which all files were opened, and nothing of a stranger's was read.
#[derive(Debug)]
pub(super) enum Opened {
    /// A fault of the client is told when it is needed: a sealed volume needs none.
    Registry(Result<(Registry, Vec<PullSecretName>), Vec<Fail>>),
    Remote(Fetching),
    Archive(Result<Input, Fail>, Option<archive::Format>),
}

/// A source that is ready to be asked.
#[derive(Debug)]
pub(super) enum Ready {
    Registry(Result<(Registry, Vec<PullSecretName>), Vec<Fail>>),
    Remote(Remote, Vec<PullSecretName>),
    /// An archive, and what the images of the order are in it.
    Archive(Source, Vec<ResolvedImage>),
}

impl Opened {
    /// The client of registries, where there is one.
    pub(super) fn registry(&self) -> Option<Registry> {
        match self {
            Opened::Registry(Ok((registry, _))) => Some(registry.clone()),
            Opened::Registry(Err(_)) | Opened::Remote(..) | Opened::Archive(..) => None,
        }
    }

    /// Opens the archive that the order names, if it names one.
    pub(super) fn archive(order: &Order) -> Option<Self> {
        let SourceOrder::Archive { path, format, received } = &order.source else { return None };
        let opened = match &order.standard_input {
            Some(file) => Input::kept(file),
            None if *received => Input::received(path),
            None => Input::open(path),
        };
        let opened = opened.map_err(|e| Fail::job(e.class(), e.to_string()));
        Some(Opened::Archive(opened, *format))
    }

    /// Looks into an archive. An order that names no images gets all that are in it, and one without a size
    /// a generous one.
    pub(super) async fn settle(self, order: &mut Order) -> Result<Ready, Vec<Fail>> {
        let (input, format) = match self {
            Opened::Registry(client) => return Ok(Ready::Registry(client)),
            Opened::Remote(Fetching { stream, absent }) => {
                let remote = stream.try_clone().and_then(Remote::new);
                let remote = remote.map_err(|e| {
                    vec![Fail::job(Class::Internal, format!("reaching the process that fetches: {e}"))]
                })?;
                return Ok(Ready::Remote(remote, absent));
            }
            Opened::Archive(input, format) => (input.map_err(|fail| vec![fail])?, format),
        };
        let fail = |e: archive::Error| vec![Fail::job(e.class(), e.to_string())];
        let indexed = tokio::task::spawn_blocking(move || Archive::index(input, format)).await;
        let ended = |e| vec![Fail::job(Class::Internal, format!("looking into the archive ended: {e}"))];
        let archive = indexed.map_err(ended)?.map_err(fail)?;
        if order.images.is_empty() {
            order.images = archive.names();
            match order.images.len() {
                0 => return Err(fail(archive.unnamed())),
                have if have > MAX_IMAGES => {
                    let message = format!(
                        "the archive has {have} images, a volume {MAX_IMAGES}: choose some with --image"
                    );
                    return Err(vec![Fail::job(Class::Invalid, message)]);
                }
                _ => {}
            }
        }
        let source = Source::Archive(Arc::new(archive), order.platform.clone());
        let known = Arc::new(NothingKnown);
        let resolved = resolve::resolve_all(&source, &order.images, &order.platform, known).await;
        let (images, fails): (Vec<_>, Vec<_>) = resolved.into_iter().partition(Result::is_ok);
        let fails: Vec<Fail> = fails.into_iter().filter_map(Result::err).collect();
        if !fails.is_empty() {
            return Err(fails);
        }
        let images: Vec<ResolvedImage> = images.into_iter().filter_map(Result::ok).collect();
        if order.size == ByteSize(0) {
            order.size = default_size(&images);
        }
        Ok(Ready::Archive(source, images))
    }
}

/// A cap for who did not ask for one. The 3x rule is met, and a layer that is compressed finds room unless it inflates to
/// more than ten times its size.
fn default_size(images: &[ResolvedImage]) -> ByteSize {
    const METADATA: u64 = 16 << 20;
    let mut sizes: HashMap<&Digest, u64> = HashMap::new();
    for layer in images.iter().flat_map(|image| &image.manifest.layers) {
        let media_type = layer.media_type.parse::<LayerMediaType>();
        let plain = media_type.is_ok_and(|media_type| media_type.compression == Compression::None);
        let factor = if plain { 3 } else { 10 };
        sizes.insert(&layer.digest, layer.size.saturating_mul(factor));
    }
    ByteSize(sizes.values().fold(METADATA, |sum, size| sum.saturating_add(*size)))
}

impl Ready {
    /// Whether a sealed volume has what the order asks for: the names of an archive's images do not say which images they
    /// are.
    pub(super) fn check_sealed(&self, order: &Order, sealed: &CacheManifest) -> Result<(), Vec<Fail>> {
        let Ready::Archive(_, images) = self else { return Ok(()) };
        let same = |image: &ResolvedImage| {
            let mut sealed = sealed.content.images.iter();
            sealed.any(|there| {
                there.name == image.reference.to_string() && there.config == image.manifest.config.digest
            })
        };
        let Some(other) = images.iter().find(|image| !same(image)) else { return Ok(()) };
        let message = format!(
            "{} is sealed with another image of that name than the archive has: give another volume",
            order.volume.display()
        );
        Err(vec![Fail::image(&other.reference, Class::Conflict, message)])
    }

    /// What to ask, and the pull secrets that gave no credential.
    pub(super) fn source(self) -> Result<(Source, Vec<PullSecretName>), Vec<Fail>> {
        match self {
            Ready::Registry(client) => client.map(|(registry, absent)| (Source::Registry(registry), absent)),
            Ready::Remote(remote, absent) => Ok((Source::Remote(remote), absent)),
            Ready::Archive(source, _) => Ok((source, Vec::new())),
        }
    }
}

/// The source that a job names.
impl From<job::Source> for SourceOrder {
    fn from(source: job::Source) -> Self {
        let archive =
            |path: PathBuf, format| SourceOrder::Archive { path, format: Some(format), received: false };
        match source {
            job::Source::OciLayout(path) => archive(path, archive::Format::OciLayout),
            job::Source::OciArchive(path) => archive(path, archive::Format::OciArchive),
            job::Source::DockerArchive(path) => archive(path, archive::Format::DockerArchive),
            job::Source::Received(path) => SourceOrder::Archive { path, format: None, received: true },
        }
    }
}
