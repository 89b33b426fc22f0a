//! The source of an order, from opened files to a source that is ready for requests.

use super::order::{BuildRequest, FetcherConnection, ImageSource};
use super::remote::Remote;
use super::resolve::{self, EmptyCache, ResolvedImage};
use super::source::Source;
use crate::archive::{self, Archive, Input};
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::event::Failure;
use larder_model::job::{self, MAX_IMAGES};
use larder_model::manifest::LayerMediaType;
use larder_model::pull_secret::PullSecretName;
use larder_model::seal::{CacheManifest, Compression};
use larder_model::size::ByteSize;
use larder_registry::{self, Registry};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

/// A source whose files are open but whose untrusted content has not been read yet.
#[derive(Debug)]
pub(super) enum OpenedSource {
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

impl OpenedSource {
    /// Returns the registry client, if there is one.
    pub(super) fn registry(&self) -> Option<Registry> {
        match self {
            OpenedSource::Registry(Ok((registry, _))) => Some(registry.clone()),
            OpenedSource::Registry(Err(_)) | OpenedSource::Remote(..) | OpenedSource::Archive(..) => None,
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
        Some(OpenedSource::Archive(opened, *format))
    }

    /// Prepares the source. An archive is indexed: if the order has no images, it gets all images of the
    /// archive, and if it has no size, it gets a generous one.
    pub(super) async fn prepare(self, order: &mut BuildRequest) -> Result<ReadySource, Vec<Failure>> {
        let (input, format) = match self {
            OpenedSource::Registry(client) => return Ok(ReadySource::Registry(client)),
            OpenedSource::Remote(FetcherConnection { stream, absent }) => {
                let remote = stream.try_clone().and_then(Remote::new);
                let remote = remote.map_err(|e| {
                    vec![Failure::job(Class::Internal, format!("connecting to the fetcher process: {e}"))]
                })?;
                return Ok(ReadySource::Remote(remote, absent));
            }
            OpenedSource::Archive(input, format) => (input.map_err(|fail| vec![fail])?, format),
        };
        let fail = |e: archive::Error| vec![Failure::job(e.class(), e.to_string())];
        let indexed = crate::blocking::spawn(move || Archive::index(input, format)).await;
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
