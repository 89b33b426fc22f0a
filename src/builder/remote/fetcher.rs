//! The fetcher's end: it holds credentials and sockets, checks the digests of documents, and parses no layer.

use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;

use super::foreign::Foreign;
use super::{Answer, Given, Request, Wanted};
use crate::builder::failure::Fail;
use crate::builder::resolve::MAX_CONFIG;
use crate::builder::wire::{self, Frame};
use larder_model::class::Class;
use larder_model::reference::ImageReference;
use larder_registry::{self, BlobStream, FetchedManifest, ManifestReference, Registry};

/// Maximum number of requests that wait to be looked at.
const MAX_REQUESTS: usize = 16;
/// Maximum number of requests that are answered at once: at most 256 layers (`--concurrency`), and a few documents.
const MAX_IN_FLIGHT: usize = 264;

/// A client of registries for the images of one order.
#[derive(Debug)]
pub struct Fetcher {
    /// The client, or why there is none.
    pub(in crate::builder) registry: Result<Registry, Vec<Fail>>,
    /// The images of the order: nothing is fetched of other repositories.
    pub(in crate::builder) images: Vec<ImageReference>,
}

/// Answers the requests that come from `stream`, until the other end is closed.
///
/// # Errors
/// Threads cannot be started, or the other end does not speak as it should.
pub async fn serve(stream: UnixStream, fetcher: Fetcher) -> io::Result<()> {
    let (answers, writing) = mpsc::sync_channel::<(Answer, Vec<u8>)>(MAX_IN_FLIGHT);
    let (requests, mut asked) = tokio::sync::mpsc::channel::<Frame<Request>>(MAX_REQUESTS);
    let to = stream.try_clone()?;
    thread::Builder::new().name("answers".into()).spawn(move || {
        for (answer, body) in writing {
            if wire::send(&to, &answer, &body, &[]).is_err() {
                break;
            }
        }
        // Nobody may wait for an answer that does not come.
        let _ = to.shutdown(Shutdown::Both);
    })?;
    let reading = tokio::task::spawn_blocking(move || {
        while let Some(frame) = wire::receive(&stream)? {
            if requests.blocking_send(frame).is_err() {
                break;
            }
        }
        Ok(())
    });
    let foreign = Foreign::default();
    let mut layers = tokio::task::JoinSet::new();
    // Small, and few of them: this task does them all.
    let mut documents = FuturesUnordered::new();
    loop {
        let has_room = layers.len() + documents.len() < MAX_IN_FLIGHT;
        let frame = tokio::select! {
            frame = asked.recv(), if has_room => frame,
            Some(()) = documents.next() => continue,
            Some(ended) = layers.join_next() => {
                // An answer is missing then, and the extractor would wait for it.
                ended.map_err(io::Error::other)?;
                continue;
            }
        };
        let Some(Frame { header: Request { id, image, what }, descriptors, .. }) = frame else { break };
        let answers = answers.clone();
        // The extractor may be gone when the answer is there.
        let answer = move |(result, body)| drop(answers.send((Answer { id, result }, body)));
        match (fetcher.client_for(&image), what) {
            (Err(refusal), _) => answer(refusal),
            (Ok(registry), Wanted::Layer { blob, skipped }) => {
                let urls = foreign.of(&blob.digest);
                let stream = registry.blob(&image, &blob.at(urls), skipped);
                layers.spawn(async move { answer(send_layer(stream, descriptors).await) });
            }
            (Ok(registry), what) => {
                let foreign = &foreign;
                documents.push(async move { answer(document(registry, &image, what, foreign).await) })
            }
        }
    }
    drop(documents);
    // What nobody waits for is given up.
    layers.shutdown().await;
    reading.await.map_err(io::Error::other)?
}

/// A document and its bytes, or a failure.
type Answered = (Given, Vec<u8>);

fn failed(class: Class, message: impl Into<String>) -> Answered {
    (Given::Failed { class, message: message.into() }, Vec::new())
}

fn refused(error: &larder_registry::Error) -> Answered {
    failed(error.class(), error.to_string())
}

impl Fetcher {
    /// The client, if there is one.
    pub fn registry(&self) -> Option<Registry> {
        self.registry.as_ref().ok().cloned()
    }

    /// The client, for an image of the order.
    fn client_for(&self, image: &ImageReference) -> Result<&Registry, Answered> {
        let registry = self.registry.as_ref().map_err(|fails| {
            let class = Class::decisive(fails.iter().map(|fail| fail.class)).unwrap_or(Class::Internal);
            let messages: Vec<&str> = fails.iter().map(|fail| fail.message.as_str()).collect();
            failed(class, messages.join("; "))
        })?;
        if self.images.contains(image) {
            Ok(registry)
        } else {
            Err(failed(Class::Denied, format!("{} is not in the order", image.given())))
        }
    }
}

/// Sends all bytes of a layer through the pipe that came with the request.
async fn send_layer(mut stream: BlobStream, descriptors: Vec<OwnedFd>) -> Answered {
    let Ok([pipe]) = <[OwnedFd; 1]>::try_from(descriptors) else {
        return failed(Class::Internal, "a layer was asked for without a pipe");
    };
    let mut pipe = match pipe::Sender::from_owned_fd(pipe) {
        Ok(pipe) => pipe,
        Err(e) => return failed(Class::Internal, format!("the pipe of a layer: {e}")),
    };
    loop {
        match stream.next().await {
            Ok(Some(chunk)) => {
                // The extractor no longer reads: it has failed, and knows why.
                if pipe.write_all(&chunk).await.is_err() {
                    return failed(Class::Cancelled, "nobody reads the layer");
                }
            }
            Ok(None) => return (Given::Sent, Vec::new()),
            Err(e) => return refused(&e),
        }
    }
}

/// A manifest, index or config, whose digest was compared.
async fn document(registry: &Registry, image: &ImageReference, what: Wanted, foreign: &Foreign) -> Answered {
    let found = match &what {
        Wanted::Tag => {
            let tag = image.tag().unwrap_or("latest");
            registry.manifest(image, ManifestReference::Tag(tag)).await
        }
        Wanted::Digest(digest) => registry.manifest(image, ManifestReference::Digest(digest)).await,
        Wanted::Document { blob, limit } => {
            let blob = blob.clone().at(Vec::new());
            let bytes = registry.blob_bytes(image, &blob, (*limit).min(MAX_CONFIG)).await;
            bytes.map(|bytes| FetchedManifest { digest: blob.digest, media_type: None, bytes })
        }
        Wanted::Layer { .. } => return failed(Class::Internal, "a layer goes through a pipe"),
    };
    match found {
        Ok(found) => {
            if matches!(what, Wanted::Tag | Wanted::Digest(_)) {
                foreign.add(&found.bytes, found.media_type.as_deref());
            }
            let given = Given::Document { digest: found.digest, media_type: found.media_type };
            (given, found.bytes.to_vec())
        }
        Err(e) => refused(&e),
    }
}
