//! The source of the images: registries or one archive.

use std::sync::Arc;

use super::remote::{self, Piped, Remote};
use crate::archive::{self, Archive};
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::event::Explanation;
use larder_model::manifest::Descriptor;
use larder_model::platform::Platform;
use larder_model::reference::ImageReference;
use larder_registry::{self, BlobStream, FetchedManifest, ManifestReference, Registry};

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

impl Error {
    /// Returns the parts of the message, if it is that of a registry.
    pub(super) fn explanation(&self) -> Option<Explanation> {
        match self {
            Error::Registry(error) => Some(error.explanation()),
            Error::Remote(error) => error.explanation(),
            Error::Archive(_) | Error::Size { .. } | Error::Ended(_) => None,
        }
    }
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
    ) -> Result<FetchedManifest, Error> {
        let (archive, platform) = match self {
            Source::Registry(registry) => {
                return Ok(registry.manifest(image, by).await?);
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
            None => Ok(FetchedManifest { digest, media_type, bytes: bytes.into() }),
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
    let read = crate::blocking::spawn(move || archive.document(&digest, limit));
    let read = read.await.map_err(|e| Error::Ended(e.to_string()))?;
    Ok(read.map_err(Box::new)?)
}
