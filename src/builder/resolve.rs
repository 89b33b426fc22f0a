//! From references to manifests: which bytes a job stands for. No layer byte moves here.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream;

use super::failure::Fail;
use super::source::{self, Source};
use crate::volume::job::Resolved;
use larder_model::class::Class;
use larder_model::digest::{Digest, Hasher};
use larder_model::manifest::{Document, ImageConfig, Manifest};
use larder_model::platform::Platform;
use larder_model::reference::ImageReference;
use larder_registry::ManifestReference;

/// Largest manifest or index that is read, bytes; what registries accept (OCI distribution spec, "Pushing Manifests").
pub(super) const MAX_MANIFEST: u64 = 4 << 20;

/// Largest config that is read, bytes.
pub(super) const MAX_CONFIG: u64 = 4 << 20;

/// How deep indexes may be nested.
const MAX_DEPTH: usize = 2;

/// References that are resolved at the same time.
const CONCURRENT: usize = 8;

/// An image with all its documents.
#[derive(Clone, Debug)]
pub(super) struct ResolvedImage {
    /// The reference.
    pub(super) reference: ImageReference,
    /// The index it pointed to: digest and bytes.
    pub(super) index: Option<(Digest, Vec<u8>)>,
    /// Digest of the manifest.
    pub(super) manifest_digest: Digest,
    /// Media type of the manifest.
    pub(super) manifest_type: String,
    /// Bytes of the manifest.
    pub(super) manifest_bytes: Vec<u8>,
    /// The manifest.
    pub(super) manifest: Manifest,
    /// Bytes of the config.
    pub(super) config_bytes: Vec<u8>,
    /// The config.
    pub(super) config: ImageConfig,
    /// What it runs on, by its config, else by its index, else what was asked for.
    pub(super) platform: Platform,
}

/// Documents that an earlier run of the job left.
pub(super) trait Known: Send + Sync {
    /// What the reference was resolved to.
    fn resolved(&self, reference: &ImageReference) -> Option<Resolved>;
    /// A document by digest, checked.
    fn document(&self, digest: &Digest, limit: u64) -> Option<Vec<u8>>;
}

/// Nothing is known: the first run of a job, or a plan.
#[derive(Clone, Copy, Debug)]
pub(super) struct NothingKnown;

impl Known for NothingKnown {
    fn resolved(&self, _: &ImageReference) -> Option<Resolved> {
        None
    }

    fn document(&self, _: &Digest, _: u64) -> Option<Vec<u8>> {
        None
    }
}

/// Resolves all references, several at once; the answers are in the order of the references.
pub(super) async fn resolve_all(
    source: &Source,
    references: &[ImageReference],
    platform: &Platform,
    known: Arc<dyn Known>,
) -> Vec<Result<ResolvedImage, Fail>> {
    stream::iter(references)
        .map(|reference| resolve(source, reference, platform, &*known))
        .buffered(CONCURRENT)
        .collect()
        .await
}

async fn resolve(
    source: &Source,
    reference: &ImageReference,
    platform: &Platform,
    known: &dyn Known,
) -> Result<ResolvedImage, Fail> {
    let fail = |class: Class, message: String| Fail::image(reference, class, message);
    let source = Asked { source, reference, known };
    let earlier = known.resolved(reference);
    let start = match (&earlier, reference.digest(), reference.tag()) {
        (Some(earlier), ..) => Start::Digest(earlier.index.as_ref().unwrap_or(&earlier.manifest)),
        (None, Some(digest), _) => Start::Digest(digest),
        (None, None, Some(tag)) => Start::Tag(tag),
        (None, None, None) => Start::Tag("latest"),
    };
    let mut document = source.manifest(start).await?;
    let mut index = None;
    // What the image is for, if every index on the way has said so.
    let mut promised = None;
    let mut unnamed = false;
    for _ in 0..=MAX_DEPTH {
        let parsed = Document::parse(&document.bytes, document.media_type.as_deref())
            .map_err(|e| fail(e.class(), format!("reading the manifest {}: {e}", document.digest)))?;
        let list = match parsed {
            Document::Index(list) => list,
            Document::Image(manifest) => {
                let promised = promised.filter(|_| !unnamed);
                return source.finish(document, manifest, index, promised, platform).await;
            }
        };
        let chosen = list
            .choose(platform)
            .map_err(|e| fail(e.class(), format!("in the index {}: {e}", document.digest)))?;
        unnamed |= chosen.platform.is_none();
        promised = chosen.platform.clone();
        let (digest, size) = (chosen.digest.clone(), chosen.size);
        if index.is_none() {
            index = Some((document.digest, document.bytes));
        }
        document = source.manifest(Start::Digest(&digest)).await?;
        if document.bytes.len() as u64 != size {
            let have = document.bytes.len();
            let message = format!("the manifest {digest} has {have} bytes, its index promises {size}");
            return Err(fail(Class::Corrupt, message));
        }
    }
    Err(fail(Class::Invalid, format!("its indexes are nested more than {MAX_DEPTH} deep")))
}

#[derive(Clone, Copy)]
enum Start<'a> {
    Tag(&'a str),
    Digest(&'a Digest),
}

struct Asked<'a> {
    source: &'a Source,
    reference: &'a ImageReference,
    known: &'a dyn Known,
}

impl Asked<'_> {
    async fn manifest(&self, start: Start<'_>) -> Result<source::Manifest, Fail> {
        let by = match start {
            Start::Digest(digest) => {
                if let Some(bytes) = self.known.document(digest, MAX_MANIFEST) {
                    return Ok(source::Manifest { digest: digest.clone(), media_type: None, bytes });
                }
                ManifestReference::Digest(digest)
            }
            Start::Tag(tag) => ManifestReference::Tag(tag),
        };
        let fetched = self.source.manifest(self.reference, by, MAX_MANIFEST).await;
        fetched.map_err(|e| Fail::image(self.reference, e.class(), format!("fetching the manifest: {e}")))
    }

    async fn finish(
        &self,
        document: source::Manifest,
        manifest: Manifest,
        index: Option<(Digest, Vec<u8>)>,
        promised: Option<Platform>,
        wanted: &Platform,
    ) -> Result<ResolvedImage, Fail> {
        let fail = |class: Class, message: String| Fail::image(self.reference, class, message);
        let descriptor = &manifest.config;
        let config_bytes = match self.known.document(&descriptor.digest, MAX_CONFIG) {
            Some(bytes) => bytes,
            None => {
                let bytes = self.source.blob_bytes(self.reference, descriptor, MAX_CONFIG).await;
                bytes.map_err(|e| fail(e.class(), format!("fetching the config: {e}")))?
            }
        };
        debug_assert_eq!(Hasher::digest_of(descriptor.digest.algorithm(), &config_bytes), descriptor.digest);
        let config = ImageConfig::parse(&config_bytes)
            .and_then(|config| config.check_layers(&manifest).map(|()| config))
            .map_err(|e| fail(e.class(), format!("reading the config {}: {e}", descriptor.digest)))?;
        // Where no index has said what the image is for, its config does.
        if promised.is_none()
            && let Some(platform) = config.platform.as_ref().filter(|own| wanted.preference(own).is_none())
        {
            let message = format!(
                "the image is for {platform}, not for {wanted}: give --platform {platform} or another tag"
            );
            return Err(fail(Class::NotFound, message));
        }
        let platform = config.platform.clone().or(promised).unwrap_or_else(|| wanted.clone());
        Ok(ResolvedImage {
            reference: self.reference.clone(),
            index,
            manifest_digest: document.digest,
            manifest_type: manifest.media_type.clone(),
            manifest_bytes: document.bytes,
            manifest,
            config_bytes,
            config,
            platform,
        })
    }
}
