//! The extractor's end.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use tokio::sync::oneshot;

use super::{Answer, Given, Request, Wanted};
use crate::builder::source::Manifest;
use crate::builder::wire;
use larder_model::class::Class;
use larder_model::digest::{Digest, Hasher};
use larder_model::manifest::Descriptor;
use larder_model::reference::ImageReference;
use larder_registry::ManifestReference;

/// Size of the pipe of a layer, bytes: the maximum for a process without privileges (pipe(7), /proc/sys/fs/pipe-max-size).
const PIPE: usize = 1 << 20;

/// The fetcher did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub(in crate::builder) enum Error {
    /// It says why.
    #[error("{message}")]
    Failed {
        /// Class of its error.
        class: Class,
        /// What happened.
        message: String,
    },
    /// It has ended, or does not speak as it should.
    #[error("the process that fetches has ended")]
    Ended,
    /// The request cannot be sent.
    #[error("asking the process that fetches: {0}")]
    Io(#[from] io::Error),
}

impl Error {
    pub(in crate::builder) fn class(&self) -> Class {
        match self {
            Error::Failed { class, .. } => *class,
            Error::Ended | Error::Io(_) => Class::Internal,
        }
    }
}

/// The bytes of a layer, and how their transfer ended.
#[derive(Debug)]
pub(in crate::builder) struct Piped {
    /// The reading end of the pipe.
    pub(in crate::builder) pipe: File,
    /// Answered after the last byte.
    pub(in crate::builder) end: End,
}

/// How the transfer of a layer ended; to be asked for at the end of its pipe.
#[derive(Debug)]
pub(in crate::builder) struct End(oneshot::Receiver<Gift>);

impl End {
    /// Waits for the answer. Blocks.
    ///
    /// # Errors
    /// The transfer failed, or the fetcher is gone: the bytes that arrived are not all.
    pub(in crate::builder) fn wait(self) -> Result<(), Error> {
        match self.0.blocking_recv() {
            Ok((Given::Sent, _)) => Ok(()),
            Ok((Given::Failed { class, message }, _)) => Err(Error::Failed { class, message }),
            Ok((Given::Document { .. }, _)) | Err(_) => Err(Error::Ended),
        }
    }
}

/// What the fetcher gave, and the body of its frame.
type Gift = (Given, Vec<u8>);
type Asked = HashMap<u64, oneshot::Sender<Gift>>;
type Waiting = Mutex<Asked>;

/// The fetcher of this build; clones share it.
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
        // The thread that reads ends by it, and the fetcher too.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Remote {
    /// The fetcher at the other end of `stream`. Starts a thread, so a process is confined before it calls this.
    ///
    /// # Errors
    /// The descriptor or the thread cannot be had.
    pub(in crate::builder) fn new(stream: UnixStream) -> io::Result<Self> {
        let waiting = Arc::new(Waiting::default());
        let (answers, asked) = (stream.try_clone()?, Arc::clone(&waiting));
        thread::Builder::new().name("answers".into()).spawn(move || hear(&answers, &asked))?;
        Ok(Remote(Arc::new(Inner { stream, sending: Mutex::default(), next: AtomicU64::new(0), waiting })))
    }

    /// A manifest or index, by the tag of the image or by its digest, which is compared here.
    pub(in crate::builder) async fn manifest(
        &self,
        image: &ImageReference,
        by: ManifestReference<'_>,
    ) -> Result<Manifest, Error> {
        let (what, digest) = match by {
            ManifestReference::Tag(_) => (Wanted::Tag, None),
            ManifestReference::Digest(digest) => (Wanted::Digest(digest.clone()), Some(digest)),
        };
        self.document(image, what, digest).await
    }

    /// A small blob of at most `limit` bytes, whose digest is compared here.
    pub(in crate::builder) async fn blob_bytes(
        &self,
        image: &ImageReference,
        descriptor: &Descriptor,
        limit: u64,
    ) -> Result<Vec<u8>, Error> {
        let what = Wanted::Document { blob: descriptor.into(), limit };
        Ok(self.document(image, what, Some(&descriptor.digest)).await?.bytes)
    }

    /// A document, which has the digest `wanted` if there is one. The fetcher speaks with strangers, so its word is not enough.
    async fn document(
        &self,
        image: &ImageReference,
        what: Wanted,
        wanted: Option<&Digest>,
    ) -> Result<Manifest, Error> {
        match self.ask(image, what, &[])?.await {
            Ok((Given::Document { digest, media_type }, bytes)) => {
                let wanted = wanted.unwrap_or(&digest);
                let found = Hasher::digest_of(wanted.algorithm(), &bytes);
                if found != *wanted {
                    let message = format!("the bytes have digest {found}, they should have {wanted}");
                    return Err(Error::Failed { class: Class::Corrupt, message });
                }
                Ok(Manifest { digest: found, media_type, bytes })
            }
            Ok((Given::Failed { class, message }, _)) => Err(Error::Failed { class, message }),
            Ok((Given::Sent, _)) | Err(_) => Err(Error::Ended),
        }
    }

    /// A layer, whose bytes the fetcher sends through a pipe: as many as the descriptor says, or fewer and an error at the end.
    pub(in crate::builder) fn layer(
        &self,
        image: &ImageReference,
        descriptor: &Descriptor,
        skipped: usize,
    ) -> Result<Piped, Error> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
        // A user with many pipes gets small ones.
        let _ = fcntl_setpipe_size(&writer, PIPE);
        let end = self.ask(image, Wanted::Layer { blob: descriptor.into(), skipped }, &[writer.as_fd()])?;
        Ok(Piped { pipe: File::from(reader), end: End(end) })
    }

    /// Ends the connection: transfers that wait for a registry end as well.
    pub(in crate::builder) fn abort(&self) {
        let _ = self.0.stream.shutdown(Shutdown::Both);
    }

    fn ask(
        &self,
        image: &ImageReference,
        what: Wanted,
        descriptors: &[std::os::fd::BorrowedFd<'_>],
    ) -> Result<oneshot::Receiver<Gift>, Error> {
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

/// Passes answers on until the connection ends. Whoever waits then sees that nothing comes any more.
fn hear(stream: &UnixStream, waiting: &Waiting) {
    loop {
        match wire::receive::<Answer>(stream) {
            Ok(Some(frame)) => {
                if let Some(asked) = lock(waiting).remove(&frame.header.id) {
                    // A request that was given up has nobody waiting.
                    let _ = asked.send((frame.header.result, frame.body));
                }
            }
            Ok(None) => break,
            Err(error) => {
                tracing::debug!(%error, "reading answers of the fetcher");
                break;
            }
        }
    }
    // Requests that are sent from now on fail at once.
    let _ = stream.shutdown(Shutdown::Both);
    lock(waiting).clear();
}

fn lock(waiting: &Waiting) -> MutexGuard<'_, Asked> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}
