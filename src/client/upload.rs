//! Requests with a body of any size, written by a separate thread while it is sent.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use tokio::sync::mpsc;

use super::error::Error;
use super::{Answer, Client, Request};
use larder_model::class::Class;

/// Size of one chunk, bytes, and maximum number of chunks that wait to be sent.
const CHUNK: usize = 256 << 10;
const AHEAD: usize = 8;

/// The function that writes the body. Its error is returned unchanged.
pub type Writer = Box<dyn FnOnce(&mut (dyn Write + Send)) -> Result<(), Error> + Send>;

/// The body of an upload request.
pub struct Upload {
    /// Length of the body, bytes, if known. The daemon detects an incomplete body by its length, or without
    /// one by the way in which it ends.
    pub length: Option<u64>,
    /// SHA-256 of the body, which a signed request needs before it is sent ([`Client::signs`]).
    pub sha256: Option<[u8; 32]>,
    /// The function that writes the body.
    pub write: Writer,
    /// Number of bytes sent so far, for progress display.
    pub sent: Arc<AtomicU64>,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload").field("length", &self.length).finish_non_exhaustive()
    }
}

impl Client {
    /// Returns `true` if requests are signed, including their bodies.
    pub fn signs(&self) -> bool {
        matches!(self.credentials, super::Credentials::Keys { .. })
    }

    /// Sends a request with a large body and returns its answer.
    ///
    /// # Errors
    /// Returns the error of the writer if it failed, otherwise [`Error`].
    pub async fn upload(&self, request: Request<'_>, upload: Upload) -> Result<Answer, Error> {
        let (sender, mut receiver) = mpsc::channel::<io::Result<Bytes>>(AHEAD);
        let Upload { length, sha256, write, sent } = upload;
        let writing = crate::blocking::spawn(move || {
            let mut out = Chunks { sender, buffer: Vec::with_capacity(CHUNK), sent };
            let error = match write(&mut out) {
                Ok(()) if out.flush().is_ok() => return None,
                Ok(()) => return None,
                Err(error) => error,
            };
            // Without this error, a body that ends early would look complete. If the receiver is gone, the
            // daemon has already answered, and its answer is returned.
            let cut = out.sender.blocking_send(Err(io::Error::other("the body could not be written")));
            cut.is_ok().then_some(error)
        });
        let frames = stream::poll_fn(move |context| {
            receiver.poll_recv(context).map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
        });
        let body = reqwest::Body::wrap(StreamBody::new(frames));
        let answer = async {
            let response = self.send_body(request, body, length, sha256).await?;
            self.body(response).await
        };
        let answer = answer.await;
        match writing.await {
            Ok(Some(error)) => return Err(error),
            Ok(None) => {}
            Err(e) => {
                return Err(Error::Body { class: Class::Internal, message: format!("sending ended: {e}") });
            }
        }
        self.parse(&answer?)
    }
}

/// A writer that sends its data in chunks.
struct Chunks {
    sender: mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
    sent: Arc<AtomicU64>,
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == CHUNK {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK));
        self.sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        self.sender.blocking_send(Ok(chunk.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
