//! A large blob as an ordered stream, over one connection or by several ranges at once.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::error::Error;
use super::fetch::{Blob, Fetch};

/// Limits for fetching a blob by several ranges at once.
#[derive(Clone, Debug)]
pub struct Ranges {
    /// Maximum number of concurrent ranges of one blob; 1 fetches it as one stream.
    pub parallel: usize,
    /// Minimum size of a blob fetched by ranges, in bytes. Smaller blobs are one stream.
    pub min_size: u64,
    /// Size of one range, in bytes.
    pub part_size: u64,
    /// Memory limit for parts that arrive before their turn, in bytes, over all blobs.
    pub memory: u64,
}

impl Default for Ranges {
    /// One stream. If `parallel` is raised: from 64 MiB, in parts of 8 MiB, with 32 MiB of memory.
    fn default() -> Self {
        Ranges { parallel: 1, min_size: 64 << 20, part_size: 8 << 20, memory: 32 << 20 }
    }
}

impl Ranges {
    /// Returns the memory budget of a process, with one permit per part.
    pub(crate) fn budget(&self) -> Arc<Semaphore> {
        let parts = usize::try_from(self.memory / self.part_size.max(1)).unwrap_or(usize::MAX);
        Arc::new(Semaphore::new(parts.min(Semaphore::MAX_PERMITS)))
    }

    fn apply(&self, size: u64) -> bool {
        self.parallel > 1 && self.part_size > 0 && size >= self.min_size && size > self.part_size
    }
}

/// The bytes of one blob in order: exactly the size in its descriptor, or an error. The consumer must verify
/// their digest.
#[derive(Debug)]
pub struct BlobStream {
    blob: Result<Arc<Blob>, Option<Error>>,
    /// Part that is delivered now, directly from its connection.
    head: Option<Fetch>,
    /// Later parts that are fetched ahead, in order.
    ahead: VecDeque<Part>,
    /// First byte that no part covers yet.
    planned: u64,
    /// `true` once the server has honoured a range. Only then is the blob split into parts.
    ranged: bool,
}

/// A part that is fetched ahead. Its permit of the budget bounds its memory.
#[derive(Debug)]
struct Part {
    chunks: UnboundedReceiver<Result<Bytes, Error>>,
    task: JoinHandle<()>,
    _memory: OwnedSemaphorePermit,
}

impl Drop for Part {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl BlobStream {
    pub(crate) fn new(blob: Result<Blob, Error>) -> Self {
        BlobStream {
            blob: blob.map(Arc::new).map_err(Some),
            head: None,
            ahead: VecDeque::new(),
            planned: 0,
            ranged: false,
        }
    }

    /// Returns the next bytes, never empty, or `None` after the last. After an error it returns `None`.
    ///
    /// # Errors
    /// [`Error`] if no host delivers the blob completely.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let blob = match &mut self.blob {
            Ok(blob) => Arc::clone(blob),
            Err(error) => return error.take().map_or(Ok(None), Err),
        };
        let next = self.advance(&blob).await;
        if next.is_err() {
            self.blob = Err(None);
            self.head = None;
            self.ahead.clear();
        }
        next
    }

    async fn advance(&mut self, blob: &Arc<Blob>) -> Result<Option<Bytes>, Error> {
        loop {
            if self.ranged {
                self.fetch_ahead(blob);
            }
            if let Some(head) = &mut self.head {
                if let Some(chunk) = head.next().await? {
                    return Ok(Some(chunk));
                }
                self.head = None;
            } else if let Some(part) = self.ahead.front_mut() {
                if let Some(chunk) = part.chunks.recv().await {
                    return chunk.map(Some);
                }
                self.ahead.pop_front();
            } else if self.planned < blob.size {
                self.head = Some(self.start(blob).await?);
            } else {
                return Ok(None);
            }
        }
    }

    /// Starts the next part. It is delivered as it arrives, so a blob makes progress even if other blobs use
    /// the whole budget.
    async fn start(&mut self, blob: &Arc<Blob>) -> Result<Fetch, Error> {
        let ranges = &blob.inner.options.ranges;
        if !ranges.apply(blob.size) {
            self.planned = blob.size;
            return Ok(Fetch::new(Arc::clone(blob), 0, blob.size));
        }
        let end = blob.size.min(self.planned + ranges.part_size);
        let mut fetch = Fetch::new(Arc::clone(blob), self.planned, end);
        fetch.open().await?;
        self.ranged = fetch.ranged() == Some(true);
        if !self.ranged {
            fetch.extend(blob.size);
        }
        self.planned = fetch.end();
        Ok(fetch)
    }

    fn fetch_ahead(&mut self, blob: &Arc<Blob>) {
        let ranges = &blob.inner.options.ranges;
        while self.planned < blob.size && self.ahead.len() + 1 < ranges.parallel {
            let Ok(memory) = Arc::clone(&blob.inner.memory).try_acquire_owned() else {
                return;
            };
            let end = blob.size.min(self.planned + ranges.part_size);
            let mut fetch = Fetch::new(Arc::clone(blob), self.planned, end);
            self.planned = end;
            let (sender, chunks) = unbounded_channel();
            let task = tokio::spawn(async move {
                while let Some(chunk) = fetch.next().await.transpose() {
                    let failed = chunk.is_err();
                    if sender.send(chunk).is_err() || failed {
                        return;
                    }
                }
            });
            self.ahead.push_back(Part { chunks, task, _memory: memory });
        }
    }
}
