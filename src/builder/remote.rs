//! Registries by way of another process: the extractor has no network and no credentials, so it asks the fetcher.
//!
//! ```text
//! extractor ──► fetcher   manifest | document | layer + the writing end of a pipe
//! fetcher ──► extractor   document + bytes | sent | failed
//!                         the bytes of a layer go through its pipe, and `sent` follows its last byte
//! ```
//! Both sides answer in any order; an ID says which request is meant.

mod client;
mod fetcher;
mod foreign;

use serde::{Deserialize, Serialize};

use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::manifest::Descriptor;
use larder_model::reference::ImageReference;

pub(super) use client::{End, Error, Piped, Remote};
pub use fetcher::{Fetcher, serve};

/// A request of the extractor.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    id: u64,
    image: ImageReference,
    what: Wanted,
}

/// What is wanted of a repository.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Wanted {
    /// The manifest or index that the tag of the image names.
    Tag,
    /// The same by its digest.
    Digest(Digest),
    /// A small blob of at most `limit` bytes.
    Document { blob: Blob, limit: u64 },
    /// A layer, through the pipe that comes with the request, and from none of the first `skipped` hosts.
    Layer { blob: Blob, skipped: usize },
}

/// The part of a descriptor by which a blob is fetched. Foreign locations are left to the fetcher ([`foreign`]).
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Blob {
    media_type: String,
    digest: Digest,
    size: u64,
}

impl From<&Descriptor> for Blob {
    fn from(descriptor: &Descriptor) -> Self {
        let Descriptor { media_type, digest, size, .. } = descriptor.clone();
        Blob { media_type, digest, size }
    }
}

impl Blob {
    /// The descriptor of a blob that can also be fetched from `urls`.
    fn at(self, urls: Vec<String>) -> Descriptor {
        let Blob { media_type, digest, size } = self;
        Descriptor { media_type, digest, size, urls, platform: None }
    }
}

/// An answer of the fetcher.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    id: u64,
    result: Given,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Given {
    /// The body of the frame is the document.
    Document { digest: Digest, media_type: Option<String> },
    /// All bytes of the layer are in the pipe.
    Sent,
    /// The request failed.
    Failed { class: Class, message: String },
}
