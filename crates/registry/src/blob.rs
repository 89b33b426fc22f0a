//! A large blob as an ordered stream, by one connection or by several ranges at once.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::error::Error;
use super::fetch::{Blob, Fetch};

/// When a blob is fetched by several ranges at once.
#[derive(Clone, Debug)]
pub struct Ranges {
    /// Ranges of one blob at once; 1 fetches it as one stream.
    pub parallel: usize,
    /// Blobs smaller than this are one stream, bytes.
    pub min_size: u64,
    /// Size of a range, bytes.
    pub part_size: u64,
    /// Memory for parts that arrive before their turn, all blobs together, bytes.
    pub memory: u64,
}

impl Default for Ranges {
    /// One stream; where more are asked for: from 64 MiB, in parts of 8 MiB, 32 MiB of memory.
    fn default() -> Self {
        Ranges { parallel: 1, min_size: 64 << 20, part_size: 8 << 20, memory: 32 << 20 }
    }
}

impl Ranges {
    /// The budget of a process, as parts.
    pub(crate) fn budget(&self) -> Arc<Semaphore> {
        let parts = usize::try_from(self.memory / self.part_size.max(1)).unwrap_or(usize::MAX);
        Arc::new(Semaphore::new(parts.min(Semaphore::MAX_PERMITS)))
    }

    fn apply(&self, size: u64) -> bool {
        self.parallel > 1 && self.part_size > 0 && size >= self.min_size && size > self.part_size
    }
}

/// The bytes of one blob in order: exactly as many as its descriptor says, or an error. Their digest is the consumer's to check.
#[derive(Debug)]
pub struct BlobStream {
    blob: Result<Arc<Blob>, Option<Error>>,
    /// The stretch that is delivered now, straight from its connection.
    head: Option<Fetch>,
    /// Parts behind it that are fetched ahead, in order.
    ahead: VecDeque<Part>,
    /// The first byte that no part covers yet.
    planned: u64,
    /// Parts are cut only once the server has honoured a range.
    ranged: bool,
}

/// A part fetched ahead. Its memory is bounded by its size, for which it holds a share of the budget.
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

    /// The next bytes, never empty; none after the last. After an error only the end follows.
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

    /// The next stretch, delivered as it arrives, so that a blob moves on even when others hold the whole budget.
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
