//! A large blob as an ordered stream. It starts as one request, and is split into parts on several
//! connections while its consumer waits for the network.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::{Receiver, UnboundedReceiver, channel, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::error::{Error, Fault};
use super::extent::Extent;
use super::fetch::Fetch;
use super::source::{Blob, Source};
use super::width::Width;

const MIB: u64 = 1 << 20;
/// Size of a part if no connection to the host was measured yet, in bytes.
const FIRST_PART: u64 = 4 * MIB;
/// Maximum size of a part, in bytes.
const MAX_PART: u64 = 8 * MIB;
/// Size of a part that needs no memory, in bytes. While other blobs use the whole budget, a blob consists of
/// these, so the pause between two requests must be short in comparison.
const DIRECT_PART: u64 = 2 * MAX_PART;
/// Number of chunks of the first part that wait for the consumer.
const CHUNKS: usize = 4;

/// Limits for fetching a blob by several ranges at once.
#[derive(Clone, Debug)]
pub struct Ranges {
    /// Maximum number of concurrent ranges of one blob; 1 fetches it as one stream.
    pub parallel: usize,
    /// Minimum size of a blob that is fetched by several ranges, in bytes. Smaller blobs are one stream.
    pub min_size: u64,
    /// Memory limit for parts that arrive before their turn, in bytes, over all blobs.
    pub memory: u64,
}

impl Default for Ranges {
    /// At most 8 ranges from 32 MiB, with 32 MiB of memory.
    fn default() -> Self {
        Ranges { parallel: 8, min_size: 32 * MIB, memory: 32 * MIB }
    }
}

impl Ranges {
    /// Returns the memory budget of a process, with one permit per MiB.
    pub(crate) fn budget(&self) -> Arc<Semaphore> {
        let permits = usize::try_from(self.memory / MIB).unwrap_or(usize::MAX);
        Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)))
    }

    /// Returns the maximum number of parts of a blob of `size` bytes.
    fn parallel_for(&self, size: u64) -> usize {
        if size < self.min_size { 1 } else { self.parallel.max(1) }
    }

    /// Returns the size of the next part: half a second of one connection of `rate` bytes per second, in
    /// whole MiB, and at most the share of `parallel` parts in the memory.
    fn part_size(&self, rate: Option<f64>, parallel: usize) -> u64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
        let wanted = rate.map_or(FIRST_PART, |rate| (rate / 2.0).min(MAX_PART as f64) as u64);
        let share = self.memory / u64::try_from(parallel).unwrap_or(u64::MAX).max(1);
        (wanted.min(share) / MIB).max(1) * MIB
    }
}

/// The bytes of one blob in order: exactly the size in its descriptor, or an error. The consumer must verify
/// their digest.
#[derive(Debug)]
pub struct BlobStream {
    blob: Result<Arc<Blob>, Option<Error>>,
    /// Parts that are being fetched, in order.
    parts: VecDeque<Part>,
    /// First byte that no part covers yet.
    planned: u64,
    /// Number of parts so far.
    started: usize,
    width: Width,
    /// `true` if the budget of memory allowed no further part.
    is_full: bool,
}

/// A part of a blob, which a task fetches.
#[derive(Debug)]
struct Part {
    chunks: Chunks,
    extent: Arc<Extent>,
    task: JoinHandle<()>,
}

type Chunk = Result<Bytes, Error>;

/// Chunks that wait for the consumer.
#[derive(Debug)]
enum Chunks {
    /// Few: the fetch waits for the consumer.
    Few(Receiver<Chunk>),
    /// All chunks of the part. Its permit of the budget bounds their memory.
    All { chunks: UnboundedReceiver<Chunk>, _memory: OwnedSemaphorePermit },
}

impl Chunks {
    async fn next(&mut self) -> Option<Chunk> {
        match self {
            Chunks::Few(chunks) => chunks.recv().await,
            Chunks::All { chunks, .. } => chunks.recv().await,
        }
    }
}

impl Part {
    /// Reports whether all bytes were received.
    fn is_complete(&self) -> bool {
        let (at, end) = self.extent.get();
        at == end
    }

    /// Reports whether the fetch waits for the consumer.
    fn is_direct(&self) -> bool {
        matches!(self.chunks, Chunks::Few(_))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl BlobStream {
    pub(crate) fn new(blob: Result<Blob, Error>) -> Self {
        let max = blob.as_ref().map_or(1, |blob| blob.inner.options.ranges.parallel_for(blob.size));
        BlobStream {
            blob: blob.map(Arc::new).map_err(Some),
            parts: VecDeque::new(),
            planned: 0,
            started: 0,
            width: Width::new(max, Instant::now()),
            is_full: false,
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
            self.parts.clear();
        }
        next
    }

    async fn advance(&mut self, blob: &Arc<Blob>) -> Result<Option<Bytes>, Error> {
        loop {
            self.plan(blob);
            let Some(front) = self.parts.front_mut() else {
                if self.planned == blob.size {
                    return Ok(None);
                }
                self.start_alone(blob);
                continue;
            };
            let waiting = Instant::now();
            let next = timeout(self.width.rest(waiting), front.chunks.next()).await;
            let now = Instant::now();
            self.width.waited(now, now - waiting, blob.received(), self.is_full);
            match next {
                Err(_) => {}
                Ok(Some(Ok(chunk))) => return Ok(Some(chunk)),
                Ok(Some(Err(error))) => self.fail_front(error)?,
                Ok(None) => self.end_front(blob)?,
            }
        }
    }

    /// Removes the first part, which has no more bytes.
    fn end_front(&mut self, blob: &Blob) -> Result<(), Error> {
        match self.parts.pop_front() {
            Some(part) if !part.is_complete() => {
                let host = blob.sources.last().map(Source::host).unwrap_or_default();
                let fault = Fault::transient("the transfer was aborted");
                Err(Error::request(blob.what.clone(), &host, fault))
            }
            _ => Ok(()),
        }
    }

    /// Removes the first part, which failed. If its source does not honour ranges, the rest of the blob is
    /// fetched as one stream. All other errors are returned.
    fn fail_front(&mut self, error: Error) -> Result<(), Error> {
        let front = self.parts.pop_front().filter(|part| !part.is_direct());
        match (front, &error) {
            (Some(front), Error::Request { fault: Fault::Range(_), .. }) => {
                self.parts.clear();
                self.planned = front.extent.get().0;
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// Starts parts up to the chosen number of connections.
    fn plan(&mut self, blob: &Arc<Blob>) {
        self.is_full = false;
        if blob.lacks_ranges() {
            return self.merge(blob);
        }
        let ranges = &blob.inner.options.ranges;
        let width = self.width.get();
        if width == 1 || self.parts.is_empty() {
            return;
        }
        let size = ranges.part_size(blob.sources.first().and_then(|source| source.peers.median()), width);
        while self.planned < blob.size || self.is_one_stream() {
            let running = self.parts.iter().filter(|part| !part.is_complete()).count();
            let Some(permits) = u32::try_from(size / MIB).ok().filter(|_| running < width) else { return };
            let Ok(memory) = Arc::clone(&blob.inner.memory).try_acquire_many_owned(permits) else {
                self.is_full = true;
                return;
            };
            if self.planned == blob.size && !self.split(size) {
                return;
            }
            self.start_ahead(blob, blob.size.min(self.planned + size), memory);
        }
    }

    /// Reports whether the only part is the rest of the blob.
    fn is_one_stream(&self) -> bool {
        self.parts.len() == 1 && self.parts.front().is_some_and(Part::is_direct)
    }

    /// Shortens the only part, the rest of the blob, so that other parts can follow. Returns `false` if
    /// little of it is left.
    fn split(&mut self, size: u64) -> bool {
        let end = self.parts.front().and_then(|part| part.extent.shorten(size));
        self.planned = end.unwrap_or(self.planned);
        end.is_some()
    }

    /// Drops all parts behind the first. A first part that is still running becomes the rest of the blob.
    fn merge(&mut self, blob: &Blob) {
        if self.parts.len() < 2 {
            return;
        }
        self.parts.truncate(1);
        let Some(front) = self.parts.front() else { return };
        let is_rest = front.is_direct() && front.extent.extend(blob.size);
        self.planned = if is_rest { blob.size } else { front.extent.get().1 };
    }

    /// Starts a part that the consumer reads as it arrives, so a blob makes progress even if other blobs use
    /// the whole budget.
    fn start_alone(&mut self, blob: &Arc<Blob>) {
        let is_split = self.width.get() > 1 && !blob.lacks_ranges();
        let end = if is_split { blob.size.min(self.planned + DIRECT_PART) } else { blob.size };
        let extent = Extent::new(self.planned, end);
        let mut fetch = Fetch::new(Arc::clone(blob), Arc::clone(&extent), self.started);
        let (sender, chunks) = channel(CHUNKS);
        let task = tokio::spawn(async move {
            while let Some(chunk) = fetch.next().await.transpose() {
                let failed = chunk.is_err();
                if sender.send(chunk).await.is_err() || failed {
                    return;
                }
            }
        });
        self.push(Part { chunks: Chunks::Few(chunks), extent, task }, end);
    }

    /// Starts a part that arrives before its turn.
    fn start_ahead(&mut self, blob: &Arc<Blob>, end: u64, memory: OwnedSemaphorePermit) {
        let extent = Extent::new(self.planned, end);
        let mut fetch = Fetch::ahead(Arc::clone(blob), Arc::clone(&extent), self.started);
        let (sender, chunks) = unbounded_channel();
        let task = tokio::spawn(async move {
            while let Some(chunk) = fetch.next().await.transpose() {
                let failed = chunk.is_err();
                if sender.send(chunk).is_err() || failed {
                    return;
                }
            }
        });
        self.push(Part { chunks: Chunks::All { chunks, _memory: memory }, extent, task }, end);
    }

    fn push(&mut self, part: Part, end: u64) {
        self.parts.push_back(part);
        self.started += 1;
        self.planned = end;
    }
}
