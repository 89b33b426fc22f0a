//! The source of the images: registries or one archive.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::order::{BuildRequest, FetcherConnection, ImageSource};
use super::remote::{self, Piped, Remote};
use super::resolve::{self, EmptyCache, ResolvedImage};
use crate::archive::{self, Archive, Input};
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::event::Failure;
use larder_model::job::{self, MAX_IMAGES};
use larder_model::manifest::{Descriptor, LayerMediaType};
use larder_model::platform::Platform;
use larder_model::pull_secret::PullSecretName;
use larder_model::reference::ImageReference;
use larder_model::seal::{CacheManifest, Compression};
use larder_model::size::ByteSize;
use larder_registry::{self, BlobStream, ManifestReference, Registry};

/// Access to manifests, configs and layers by name and digest; cheap to clone.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// The registries in the references.
    Registry(Registry),
    /// Registries, through the fetcher process.
    Remote(Remote),
    /// An archive, for images of one platform.
    Archive(Arc<Archive>, Platform),
}

/// A source cannot provide the requested content.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Registry(#[from] larder_registry::Error),
    #[error(transparent)]
    Remote(#[from] remote::Error),
    #[error(transparent)]
    Archive(#[from] Box<archive::Error>),
    /// The size of a document differs from its descriptor.
    #[error("{digest} has {have} bytes, but its descriptor has {want}")]
    Size { digest: Digest, have: u64, want: u64 },
    /// The reading thread panicked.
    #[error("the task that reads the archive failed: {0}")]
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

/// A manifest or index from the source.
#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) digest: Digest,
    /// Media type, if the source provides one.
    pub(super) media_type: Option<String>,
    pub(super) bytes: Vec<u8>,
}

/// An opened layer blob.
#[derive(Debug)]
pub(super) enum Blob {
    Stream(Box<BlobStream>),
    Piped(Piped),
    File(archive::Blob),
}

impl Source {
    /// Reads a manifest or index of at most `limit` bytes. If requested by digest, its digest is verified.
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

    /// Reads a small blob and verifies its size and digest.
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

    /// Opens a layer's blob, whose size is that of its descriptor. The caller verifies its digest. The first
    /// `skipped` hosts are not tried, because their data had another digest.
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

/// A source whose files are open but whose untrusted content has not been read yet.
#[derive(Debug)]
pub(super) enum Opened {
    /// An error of the client is reported only when the client is needed: a sealed volume needs none.
    Registry(Result<(Registry, Vec<PullSecretName>), Vec<Failure>>),
    Remote(FetcherConnection),
    Archive(Result<Input, Failure>, Option<archive::Format>),
}

/// A source that is ready for requests.
#[derive(Debug)]
pub(super) enum ReadySource {
    Registry(Result<(Registry, Vec<PullSecretName>), Vec<Failure>>),
    Remote(Remote, Vec<PullSecretName>),
    /// An archive, and the order's images resolved in it.
    Archive(Source, Vec<ResolvedImage>),
}

impl Opened {
    /// Returns the registry client, if there is one.
    pub(super) fn registry(&self) -> Option<Registry> {
        match self {
            Opened::Registry(Ok((registry, _))) => Some(registry.clone()),
            Opened::Registry(Err(_)) | Opened::Remote(..) | Opened::Archive(..) => None,
        }
    }

    /// Opens the archive of the order; `None` if it has no archive.
    pub(super) fn archive(order: &BuildRequest) -> Option<Self> {
        let ImageSource::Archive { path, format, received } = &order.source else { return None };
        let opened = match &order.standard_input {
            Some(file) => Input::kept(file),
            None if *received => Input::received(path),
            None => Input::open(path),
        };
        let opened = opened.map_err(|e| Failure::job(e.class(), e.to_string()));
        Some(Opened::Archive(opened, *format))
    }

    /// Prepares the source. An archive is indexed: if the order has no images, it gets all images of the
    /// archive, and if it has no size, it gets a generous one.
    pub(super) async fn prepare(self, order: &mut BuildRequest) -> Result<ReadySource, Vec<Failure>> {
        let (input, format) = match self {
            Opened::Registry(client) => return Ok(ReadySource::Registry(client)),
            Opened::Remote(FetcherConnection { stream, absent }) => {
                let remote = stream.try_clone().and_then(Remote::new);
                let remote = remote.map_err(|e| {
                    vec![Failure::job(Class::Internal, format!("connecting to the fetcher process: {e}"))]
                })?;
                return Ok(ReadySource::Remote(remote, absent));
            }
            Opened::Archive(input, format) => (input.map_err(|fail| vec![fail])?, format),
        };
        let fail = |e: archive::Error| vec![Failure::job(e.class(), e.to_string())];
        let indexed = tokio::task::spawn_blocking(move || Archive::index(input, format)).await;
        let ended =
            |e| vec![Failure::job(Class::Internal, format!("the task that indexes the archive failed: {e}"))];
        let archive = indexed.map_err(ended)?.map_err(fail)?;
        if order.images.is_empty() {
            order.images = archive.names();
            match order.images.len() {
                0 => return Err(fail(archive.unnamed())),
                have if have > MAX_IMAGES => {
                    let message = format!(
                        "the archive contains {have} images, but a volume can have at most {MAX_IMAGES}: choose some with --image"
                    );
                    return Err(vec![Failure::job(Class::Invalid, message)]);
                }
                _ => {}
            }
        }
        let source = Source::Archive(Arc::new(archive), order.platform.clone());
        let cache = Arc::new(EmptyCache);
        let resolved = resolve::resolve_all(&source, &order.images, &order.platform, cache).await;
        let (images, fails): (Vec<_>, Vec<_>) = resolved.into_iter().partition(Result::is_ok);
        let fails: Vec<Failure> = fails.into_iter().filter_map(Result::err).collect();
        if !fails.is_empty() {
            return Err(fails);
        }
        let images: Vec<ResolvedImage> = images.into_iter().filter_map(Result::ok).collect();
        if order.size == ByteSize(0) {
            order.size = default_size(&images);
        }
        Ok(ReadySource::Archive(source, images))
    }
}

/// Returns the default volume size if none was given. It satisfies the 3x rule. A compressed layer fits
/// unless it decompresses to more than ten times its size.
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

impl ReadySource {
    /// Checks that a sealed volume contains the order's images. The names of an archive's images do not
    /// identify their content.
    pub(super) fn check_sealed(
        &self,
        order: &BuildRequest,
        sealed: &CacheManifest,
    ) -> Result<(), Vec<Failure>> {
        let ReadySource::Archive(_, images) = self else { return Ok(()) };
        let same = |image: &ResolvedImage| {
            let mut sealed = sealed.content.images.iter();
            sealed.any(|there| {
                there.name == image.reference.to_string() && there.config == image.manifest.config.digest
            })
        };
        let Some(other) = images.iter().find(|image| !same(image)) else { return Ok(()) };
        let message = format!(
            "{} is sealed with another image of the same name as in the archive: give another volume",
            order.volume.display()
        );
        Err(vec![Failure::image(&other.reference, Class::Conflict, message)])
    }

    /// Returns the source and the pull secrets without credentials.
    pub(super) fn source(self) -> Result<(Source, Vec<PullSecretName>), Vec<Failure>> {
        match self {
            ReadySource::Registry(client) => {
                client.map(|(registry, absent)| (Source::Registry(registry), absent))
            }
            ReadySource::Remote(remote, absent) => Ok((Source::Remote(remote), absent)),
            ReadySource::Archive(source, _) => Ok((source, Vec::new())),
        }
    }
}

/// Converts the source in a job.
impl From<job::Source> for ImageSource {
    fn from(source: job::Source) -> Self {
        let archive =
            |path: PathBuf, format| ImageSource::Archive { path, format: Some(format), received: false };
        match source {
            job::Source::OciLayout(path) => archive(path, archive::Format::OciLayout),
            job::Source::OciArchive(path) => archive(path, archive::Format::OciArchive),
            job::Source::DockerArchive(path) => archive(path, archive::Format::DockerArchive),
            job::Source::Received(path) => ImageSource::Archive { path, format: None, received: true },
        }
    }
}
