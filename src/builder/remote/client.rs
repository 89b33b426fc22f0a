//! The extractor's end of the connection to the fetcher.

use std::collections::HashMap;
use std::fs::File;
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{io, thread};

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use tokio::sync::oneshot;

use super::{Request, RequestKind, Response, ResponseKind};
use crate::builder::wire;
use larder_model::class::Class;
use larder_model::digest::{Digest, Hasher};
use larder_model::event::Explanation;
use larder_model::manifest::Descriptor;
use larder_model::reference::ImageReference;
use larder_registry::{FetchedManifest, ManifestReference};

/// Size of the pipe for a layer, bytes: the maximum for an unprivileged process (pipe(7),
/// /proc/sys/fs/pipe-max-size).
const PIPE_SIZE: usize = 1 << 20;

/// A request to the fetcher failed.
#[derive(Debug, thiserror::Error)]
pub(in crate::builder) enum Error {
    /// The fetcher reported an error.
    #[error("{message}")]
    Failed {
        /// Class of the reported error.
        class: Class,
        /// Description of the error.
        message: String,
        /// The parts of the description.
        explanation: Option<Box<Explanation>>,
    },
    /// The fetcher has exited, or violates the protocol.
    #[error("the fetcher process has exited")]
    Ended,
    /// The request cannot be sent.
    #[error("sending a request to the fetcher process: {0}")]
    Io(io::Error),
}

impl Error {
    pub(in crate::builder) fn class(&self) -> Class {
        match self {
            Error::Failed { class, .. } => *class,
            Error::Ended | Error::Io(_) => Class::Internal,
        }
    }
}

impl Error {
    /// Returns the parts of the message, if it is that of a registry.
    pub(in crate::builder) fn explanation(&self) -> Option<Explanation> {
        match self {
            Error::Failed { explanation, .. } => explanation.as_deref().cloned(),
            Error::Ended | Error::Io(_) => None,
        }
    }
}

/// A layer from the fetcher, and the result of its transfer.
#[derive(Debug)]
pub(in crate::builder) struct Piped {
    /// The reading end of the pipe.
    pub(in crate::builder) pipe: File,
    /// Result of the transfer, which follows the last byte.
    pub(in crate::builder) end: End,
}

/// Result of the transfer of a layer; it must be checked at the end of the pipe.
#[derive(Debug)]
pub(in crate::builder) struct End(oneshot::Receiver<ResponseParts>);

impl End {
    /// Waits for the result. Blocks.
    ///
    /// # Errors
    /// The transfer failed, or the fetcher exited. In both cases the received data is incomplete.
    pub(in crate::builder) fn wait(self) -> Result<(), Error> {
        match self.0.blocking_recv() {
            Ok((ResponseKind::Sent, _)) => Ok(()),
            Ok((ResponseKind::Failed { class, message, explanation }, _)) => {
                Err(Error::Failed { class, message, explanation })
            }
            Ok((ResponseKind::Document { .. }, _)) | Err(_) => Err(Error::Ended),
        }
    }
}

/// Result of a request, and the body of its frame.
type ResponseParts = (ResponseKind, Vec<u8>);
type PendingRequests = HashMap<u64, oneshot::Sender<ResponseParts>>;
type Waiting = Mutex<PendingRequests>;

/// The fetcher of this build; clones share the connection.
#[derive(Clone, Debug)]
pub(in crate::builder) struct Remote(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    stream: UnixStream,
    sending: Mutex<()>,
    next: AtomicU64,
    waiting: Arc<Waiting>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // This ends the thread that reads, and the fetcher.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Remote {
    /// Connects to the fetcher at the other end of `stream`. Starts a thread, so the process must be confined
    /// before.
    ///
    /// # Errors
    /// The descriptor cannot be duplicated, or the thread cannot be started.
    pub(in crate::builder) fn new(stream: UnixStream) -> io::Result<Self> {
        let waiting = Arc::new(Waiting::default());
        let (responses, pending) = (stream.try_clone()?, Arc::clone(&waiting));
        thread::Builder::new()
            .name("responses".into())
            .spawn(move || read_responses(&responses, &pending))?;
        Ok(Remote(Arc::new(Inner { stream, sending: Mutex::default(), next: AtomicU64::new(0), waiting })))
    }

    /// Requests a manifest or index by the image's tag, or by a digest, which is verified here.
    pub(in crate::builder) async fn manifest(
        &self,
        image: &ImageReference,
        by: ManifestReference<'_>,
    ) -> Result<FetchedManifest, Error> {
        let (what, digest) = match by {
            ManifestReference::Tag(_) => (RequestKind::Tag, None),
            ManifestReference::Digest(digest) => (RequestKind::Digest(digest.clone()), Some(digest)),
        };
        self.document(image, what, digest).await
    }

    /// Requests a small blob of at most `limit` bytes. Its digest is verified here.
    pub(in crate::builder) async fn blob_bytes(
        &self,
        image: &ImageReference,
        descriptor: &Descriptor,
        limit: u64,
    ) -> Result<Vec<u8>, Error> {
        let what = RequestKind::Document { blob: descriptor.into(), limit };
        Ok(self.document(image, what, Some(&descriptor.digest)).await?.bytes.to_vec())
    }

    /// Requests a document and verifies that it has the digest `wanted`, if given. The fetcher handles
    /// untrusted input, so its own check is not relied on.
    async fn document(
        &self,
        image: &ImageReference,
        what: RequestKind,
        wanted: Option<&Digest>,
    ) -> Result<FetchedManifest, Error> {
        match self.request(image, what, &[])?.await {
            Ok((ResponseKind::Document { digest, media_type }, bytes)) => {
                let wanted = wanted.unwrap_or(&digest);
                let found = Hasher::digest_of(wanted.algorithm(), &bytes);
                if found != *wanted {
                    let message = format!("the document has digest {found}, expected {wanted}");
                    return Err(Error::Failed { class: Class::Corrupt, message, explanation: None });
                }
                Ok(FetchedManifest { digest: found, media_type, bytes: bytes.into() })
            }
            Ok((ResponseKind::Failed { class, message, explanation }, _)) => {
                Err(Error::Failed { class, message, explanation })
            }
            Ok((ResponseKind::Sent, _)) | Err(_) => Err(Error::Ended),
        }
    }

    /// Requests a layer, which the fetcher sends through a pipe. Either all bytes of the descriptor arrive,
    /// or fewer and an error at the end.
    pub(in crate::builder) fn layer(
        &self,
        image: &ImageReference,
        descriptor: &Descriptor,
        skipped: usize,
    ) -> Result<Piped, Error> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| Error::Io(e.into()))?;
        // The kernel limits the pipes of a user who has many of them, so failure is ignored.
        let _ = fcntl_setpipe_size(&writer, PIPE_SIZE);
        let end =
            self.request(image, RequestKind::Layer { blob: descriptor.into(), skipped }, &[writer.as_fd()])?;
        Ok(Piped { pipe: File::from(reader), end: End(end) })
    }

    /// Closes the connection. Transfers that wait for a registry also end.
    pub(in crate::builder) fn abort(&self) {
        let _ = self.0.stream.shutdown(Shutdown::Both);
    }

    fn request(
        &self,
        image: &ImageReference,
        what: RequestKind,
        descriptors: &[std::os::fd::BorrowedFd<'_>],
    ) -> Result<oneshot::Receiver<ResponseParts>, Error> {
        let inner = &*self.0;
        let id = inner.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        lock(&inner.waiting).insert(id, sender);
        let request = Request { id, image: image.clone(), what };
        let sent = {
            let _turn = inner.sending.lock().unwrap_or_else(PoisonError::into_inner);
            wire::send(&inner.stream, &request, &[], descriptors)
        };
        if let Err(e) = sent {
            lock(&inner.waiting).remove(&id);
            return Err(if e.kind() == io::ErrorKind::BrokenPipe { Error::Ended } else { Error::Io(e) });
        }
        Ok(receiver)
    }
}

/// Dispatches responses until the connection ends. All pending requests then fail.
fn read_responses(stream: &UnixStream, waiting: &Waiting) {
    loop {
        match wire::receive::<Response>(stream) {
            Ok(Some(frame)) => {
                if let Some(pending) = lock(waiting).remove(&frame.header.id) {
                    // The receiver of an abandoned request is already dropped.
                    let _ = pending.send((frame.header.result, frame.body));
                }
            }
            Ok(None) => break,
            Err(error) => {
                tracing::debug!(%error, "cannot read the responses of the fetcher");
                break;
            }
        }
    }
    // Requests that are sent from now on fail at once.
    let _ = stream.shutdown(Shutdown::Both);
    lock(waiting).clear();
}

fn lock(waiting: &Waiting) -> MutexGuard<'_, PendingRequests> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}
