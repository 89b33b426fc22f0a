//! Registry access through another process: the extractor has no network and no credentials, so it sends
//! requests to the fetcher.
//!
//! ```text
//! extractor ──► fetcher   manifest | document | layer + the writing end of a pipe
//! fetcher ──► extractor   document + bytes | sent | failed
//!                         layer data goes through its pipe, and `sent` follows the last byte
//! ```
//! Responses can come in any order; the ID identifies the request.

mod client;
mod fetcher;
mod foreign;

use serde::{Deserialize, Serialize};

use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::event::Explanation;
use larder_model::manifest::Descriptor;
use larder_model::reference::ImageReference;

pub(super) use client::{End, Error, Piped, Remote};
pub use fetcher::{Fetcher, serve};

/// A request of the extractor.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    id: u64,
    image: ImageReference,
    what: RequestKind,
}

/// The requested content of a repository.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RequestKind {
    /// The manifest or index of the image's tag.
    Tag,
    /// The manifest or index with this digest.
    Digest(Digest),
    /// A small blob of at most `limit` bytes.
    Document { blob: Blob, limit: u64 },
    /// A layer, through the pipe that comes with the request. The first `skipped` hosts are not tried.
    Layer { blob: Blob, skipped: usize },
}

/// The part of a descriptor that is needed to fetch a blob. The fetcher adds foreign locations ([`foreign`]).
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
    /// Returns the descriptor of a blob that can also be fetched from `urls`.
    fn at(self, urls: Vec<String>) -> Descriptor {
        let Blob { media_type, digest, size } = self;
        Descriptor { media_type, digest, size, urls, platform: None }
    }
}

/// A response of the fetcher.
#[derive(Debug, Serialize, Deserialize)]
struct Response {
    id: u64,
    result: ResponseKind,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ResponseKind {
    /// The document is the body of the frame.
    Document { digest: Digest, media_type: Option<String> },
    /// All bytes of the layer are in the pipe.
    Sent,
    /// The request failed.
    Failed { class: Class, message: String, explanation: Option<Box<Explanation>> },
}
