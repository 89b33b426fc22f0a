//! Resolves references to manifests, and so determines the blobs of a job. No layer data is read here.

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};

use super::source::{self, Source};
use crate::volume::job::Resolved;
use larder_model::class::Class;
use larder_model::digest::{Digest, Hasher};
use larder_model::event::Failure;
use larder_model::manifest::{self, Document, ImageConfig, Manifest};
use larder_model::platform::Platform;
use larder_model::reference::ImageReference;
use larder_registry::{FetchedManifest, ManifestReference};

/// Maximum size of a manifest, index or config, bytes.
const MAX_DOCUMENT: u64 = manifest::MAX_BYTES as u64;

/// Maximum nesting of indexes.
const MAX_DEPTH: usize = 2;

/// Number of references that are resolved at the same time.
const MAX_CONCURRENT: usize = 8;

/// An image with all its documents.
#[derive(Clone, Debug)]
pub(super) struct ResolvedImage {
    /// The reference of the image.
    pub(super) reference: ImageReference,
    /// Digest and bytes of the index that the reference points to.
    pub(super) index: Option<(Digest, Vec<u8>)>,
    /// Digest of the manifest.
    pub(super) manifest_digest: Digest,
    /// Media type of the manifest.
    pub(super) manifest_type: String,
    /// Bytes of the manifest.
    pub(super) manifest_bytes: Vec<u8>,
    /// The manifest in its parsed form.
    pub(super) manifest: Manifest,
    /// Bytes of the config.
    pub(super) config_bytes: Vec<u8>,
    /// The config in its parsed form.
    pub(super) config: ImageConfig,
    /// Platform from the config, or else from the index, or else the requested one.
    pub(super) platform: Platform,
}

/// Documents from an earlier run of the job.
pub(super) trait DocumentCache: Send + Sync {
    /// Returns the earlier result for a reference.
    fn resolved(&self, reference: &ImageReference) -> Option<Resolved>;
    /// Returns a document with verified digest.
    fn document(&self, digest: &Digest, limit: u64) -> Option<Vec<u8>>;
}

/// A cache without documents, for the first run of a job, or a plan.
#[derive(Clone, Copy, Debug)]
pub(super) struct EmptyCache;

impl DocumentCache for EmptyCache {
    fn resolved(&self, _: &ImageReference) -> Option<Resolved> {
        None
    }

    fn document(&self, _: &Digest, _: u64) -> Option<Vec<u8>> {
        None
    }
}

/// Resolves all references, several at a time. The results are in the order of the references.
pub(super) async fn resolve_all(
    source: &Source,
    references: &[ImageReference],
    platform: &Platform,
    cache: Arc<dyn DocumentCache>,
) -> Vec<Result<ResolvedImage, Failure>> {
    stream::iter(references)
        .map(|reference| resolve(source, reference, platform, &*cache))
        .buffered(MAX_CONCURRENT)
        .collect()
        .await
}

async fn resolve(
    source: &Source,
    reference: &ImageReference,
    platform: &Platform,
    cache: &dyn DocumentCache,
) -> Result<ResolvedImage, Failure> {
    let fail = |class: Class, message: String| Failure::image(reference, class, message);
    let source = Resolver { source, reference, cache };
    let earlier = cache.resolved(reference);
    let start = match (&earlier, reference.digest(), reference.tag()) {
        (Some(earlier), ..) => Start::Digest(earlier.index.as_ref().unwrap_or(&earlier.manifest)),
        (None, Some(digest), _) => Start::Digest(digest),
        (None, None, Some(tag)) => Start::Tag(tag),
        (None, None, None) => Start::Tag("latest"),
    };
    let mut document = source.manifest(start).await?;
    let mut index = None;
    // The platform of the image, if every index on the way has one.
    let mut platform_of_index = None;
    let mut unnamed = false;
    for _ in 0..=MAX_DEPTH {
        let parsed = Document::parse(&document.bytes, document.media_type.as_deref())
            .map_err(|e| fail(e.class(), format!("reading the manifest {}: {e}", document.digest)))?;
        let list = match parsed {
            Document::Index(list) => list,
            Document::Image(manifest) => {
                let platform_of_index = platform_of_index.filter(|_| !unnamed);
                return source.finish(document, manifest, index, platform_of_index, platform).await;
            }
        };
        let chosen = list
            .choose(platform)
            .map_err(|e| fail(e.class(), format!("in the index {}: {e}", document.digest)))?;
        unnamed |= chosen.platform.is_none();
        platform_of_index = chosen.platform.clone();
        let (digest, size) = (chosen.digest.clone(), chosen.size);
        if index.is_none() {
            index = Some((document.digest, document.bytes.to_vec()));
        }
        document = source.manifest(Start::Digest(&digest)).await?;
        if document.bytes.len() as u64 != size {
            let have = document.bytes.len();
            let message = format!("the manifest {digest} has {have} bytes, but its index lists {size}");
            return Err(fail(Class::Corrupt, message));
        }
    }
    Err(fail(Class::Invalid, format!("its indexes have more than {MAX_DEPTH} levels")))
}

#[derive(Clone, Copy)]
enum Start<'a> {
    Tag(&'a str),
    Digest(&'a Digest),
}

struct Resolver<'a> {
    source: &'a Source,
    reference: &'a ImageReference,
    cache: &'a dyn DocumentCache,
}

impl Resolver<'_> {
    async fn manifest(&self, start: Start<'_>) -> Result<FetchedManifest, Failure> {
        let by = match start {
            Start::Digest(digest) => {
                if let Some(bytes) = self.cache.document(digest, MAX_DOCUMENT) {
                    return Ok(FetchedManifest {
                        digest: digest.clone(),
                        media_type: None,
                        bytes: bytes.into(),
                    });
                }
                ManifestReference::Digest(digest)
            }
            Start::Tag(tag) => ManifestReference::Tag(tag),
        };
        let fetched = self.source.manifest(self.reference, by, MAX_DOCUMENT).await;
        fetched.map_err(|e| self.failed("fetching the manifest", &e))
    }

    fn failed(&self, operation: &str, error: &source::Error) -> Failure {
        let explanation = error.explanation();
        // The message of a registry names the operation and the image.
        let message = match explanation {
            Some(_) => error.to_string(),
            None => format!("{operation}: {error}"),
        };
        Failure::image(self.reference, error.class(), message).explained(operation, explanation)
    }

    async fn finish(
        &self,
        document: FetchedManifest,
        manifest: Manifest,
        index: Option<(Digest, Vec<u8>)>,
        platform_of_index: Option<Platform>,
        wanted: &Platform,
    ) -> Result<ResolvedImage, Failure> {
        let fail = |class: Class, message: String| Failure::image(self.reference, class, message);
        let descriptor = &manifest.config;
        let config_bytes = match self.cache.document(&descriptor.digest, MAX_DOCUMENT) {
            Some(bytes) => bytes,
            None => {
                let bytes = self.source.blob_bytes(self.reference, descriptor, MAX_DOCUMENT).await;
                bytes.map_err(|e| self.failed("fetching the config", &e))?
            }
        };
        debug_assert_eq!(Hasher::digest_of(descriptor.digest.algorithm(), &config_bytes), descriptor.digest);
        let config = ImageConfig::parse(&config_bytes)
            .and_then(|config| config.check_layers(&manifest).map(|()| config))
            .map_err(|e| fail(e.class(), format!("reading the config {}: {e}", descriptor.digest)))?;
        // If no index has a platform, use that of the config.
        if platform_of_index.is_none()
            && let Some(platform) = config.platform.as_ref().filter(|own| wanted.preference(own).is_none())
        {
            let message = format!(
                "the image is for {platform}, not {wanted}: give --platform {platform} or another tag"
            );
            return Err(fail(Class::NotFound, message));
        }
        let platform = config.platform.clone().or(platform_of_index).unwrap_or_else(|| wanted.clone());
        Ok(ResolvedImage {
            reference: self.reference.clone(),
            index,
            manifest_digest: document.digest,
            manifest_type: manifest.media_type.clone(),
            manifest_bytes: document.bytes.to_vec(),
            manifest,
            config_bytes,
            config,
            platform,
        })
    }
}
