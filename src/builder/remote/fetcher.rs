//! The fetcher's end of the connection. It has credentials and sockets, verifies the digests of documents,
//! and parses no layer.

use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::{io, thread};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;

use super::foreign::Foreign;
use super::{Request, RequestKind, Response, ResponseKind};
use crate::builder::wire::{self, Frame};
use larder_model::class::Class;
use larder_model::event::Failure;
use larder_model::manifest;
use larder_model::reference::ImageReference;
use larder_registry::{self, BlobStream, FetchedManifest, ManifestReference, Registry};

/// Maximum number of requests in the queue.
const MAX_REQUESTS: usize = 16;
/// Maximum number of concurrent requests: at most 256 layers (`--concurrency`), and a few documents.
const MAX_IN_FLIGHT: usize = 264;

/// A registry client for the images of one order.
#[derive(Debug)]
pub struct Fetcher {
    /// The client, or the reasons why it cannot be created.
    pub(in crate::builder) registry: Result<Registry, Vec<Failure>>,
    /// Images of the order. Other repositories cannot be fetched.
    pub(in crate::builder) images: Vec<ImageReference>,
}

/// Serves the requests from `stream` until the other end closes it.
///
/// # Errors
/// Threads cannot be started, or the other end violates the protocol.
pub async fn serve(stream: UnixStream, fetcher: Fetcher) -> io::Result<()> {
    let (responses, writing) = mpsc::sync_channel::<(Response, Vec<u8>)>(MAX_IN_FLIGHT);
    let (requests, mut incoming) = tokio::sync::mpsc::channel::<Frame<Request>>(MAX_REQUESTS);
    let to = stream.try_clone()?;
    thread::Builder::new().name("responses".into()).spawn(move || {
        for (response, body) in writing {
            if wire::send(&to, &response, &body, &[]).is_err() {
                break;
            }
        }
        // No request must wait for a response that cannot be sent.
        let _ = to.shutdown(Shutdown::Both);
    })?;
    let reading = crate::blocking::spawn(move || {
        while let Some(frame) = wire::receive(&stream)? {
            if requests.blocking_send(frame).is_err() {
                break;
            }
        }
        Ok(())
    });
    let foreign = Foreign::default();
    let mut layers = tokio::task::JoinSet::new();
    // Documents are small and few, so this task fetches them all.
    let mut documents = FuturesUnordered::new();
    loop {
        let has_room = layers.len() + documents.len() < MAX_IN_FLIGHT;
        let frame = tokio::select! {
            frame = incoming.recv(), if has_room => frame,
            Some(()) = documents.next() => continue,
            Some(ended) = layers.join_next() => {
                // Its response is missing, and the extractor would wait for it.
                ended.map_err(io::Error::other)?;
                continue;
            }
        };
        let Some(Frame { header: Request { id, image, what }, descriptors, .. }) = frame else { break };
        let responses = responses.clone();
        // The extractor might be gone when the response is ready.
        let respond = move |(result, body)| drop(responses.send((Response { id, result }, body)));
        match (fetcher.client_for(&image), what) {
            (Err(refusal), _) => respond(refusal),
            (Ok(registry), RequestKind::Layer { blob, skipped }) => {
                let urls = foreign.of(&blob.digest);
                let stream = registry.blob(&image, &blob.at(urls), skipped);
                layers.spawn(async move { respond(send_layer(stream, descriptors).await) });
            }
            (Ok(registry), what) => {
                let foreign = &foreign;
                documents.push(async move { respond(document(registry, &image, what, foreign).await) })
            }
        }
    }
    drop(documents);
    // Abort transfers that the extractor no longer waits for.
    layers.shutdown().await;
    reading.await.map_err(io::Error::other)?
}

/// A response kind and the body of its frame.
type ResponseParts = (ResponseKind, Vec<u8>);

fn failed(class: Class, message: impl Into<String>) -> ResponseParts {
    (ResponseKind::Failed { class, message: message.into(), explanation: None }, Vec::new())
}

fn refused(error: &larder_registry::Error) -> ResponseParts {
    let explanation = Some(Box::new(error.explanation()));
    (ResponseKind::Failed { class: error.class(), message: error.to_string(), explanation }, Vec::new())
}

impl Fetcher {
    /// Returns the registry client, if there is one.
    pub fn registry(&self) -> Option<Registry> {
        self.registry.as_ref().ok().cloned()
    }

    /// Returns the client for an image of the order. Fails for other images.
    fn client_for(&self, image: &ImageReference) -> Result<&Registry, ResponseParts> {
        let registry = self.registry.as_ref().map_err(|fails| {
            let class = Class::decisive(fails.iter().map(|fail| fail.class)).unwrap_or(Class::Internal);
            let messages: Vec<&str> = fails.iter().map(|fail| fail.message.as_str()).collect();
            failed(class, messages.join("; "))
        })?;
        if self.images.contains(image) {
            Ok(registry)
        } else {
            Err(failed(Class::Denied, format!("{} is not an image of this build", image.given())))
        }
    }
}

/// Sends all bytes of a layer through the pipe that came with the request.
async fn send_layer(mut stream: BlobStream, descriptors: Vec<OwnedFd>) -> ResponseParts {
    let Ok([pipe]) = <[OwnedFd; 1]>::try_from(descriptors) else {
        return failed(Class::Internal, "a layer was requested without a pipe");
    };
    let mut pipe = match pipe::Sender::from_owned_fd(pipe) {
        Ok(pipe) => pipe,
        Err(e) => return failed(Class::Internal, format!("the pipe of a layer: {e}")),
    };
    loop {
        match stream.next().await {
            Ok(Some(chunk)) => {
                // The extractor no longer reads because it failed. It reports its own error.
                if pipe.write_all(&chunk).await.is_err() {
                    return failed(Class::Cancelled, "the extractor closed the pipe");
                }
            }
            Ok(None) => return (ResponseKind::Sent, Vec::new()),
            Err(e) => return refused(&e),
        }
    }
}

/// Fetches a manifest, index or config. The registry client verifies its digest.
async fn document(
    registry: &Registry,
    image: &ImageReference,
    what: RequestKind,
    foreign: &Foreign,
) -> ResponseParts {
    let found = match &what {
        RequestKind::Tag => {
            let tag = image.tag().unwrap_or("latest");
            registry.manifest(image, ManifestReference::Tag(tag)).await
        }
        RequestKind::Digest(digest) => registry.manifest(image, ManifestReference::Digest(digest)).await,
        RequestKind::Document { blob, limit } => {
            let blob = blob.clone().at(Vec::new());
            let bytes = registry.blob_bytes(image, &blob, (*limit).min(manifest::MAX_BYTES as u64)).await;
            bytes.map(|bytes| FetchedManifest { digest: blob.digest, media_type: None, bytes })
        }
        RequestKind::Layer { .. } => return failed(Class::Internal, "layers are sent only through pipes"),
    };
    match found {
        Ok(found) => {
            if matches!(what, RequestKind::Tag | RequestKind::Digest(_)) {
                foreign.add(&found.bytes, found.media_type.as_deref());
            }
            let given = ResponseKind::Document { digest: found.digest, media_type: found.media_type };
            (given, found.bytes.to_vec())
        }
        Err(e) => refused(&e),
    }
}
