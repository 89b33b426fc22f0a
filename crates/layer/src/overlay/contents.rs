//! Writes the content of new files on a second thread, while the first one creates their names.
//!
//! ```text
//! tar ──► names, in order: openat, mkdirat, linkat … ──► batches of open files ──► write, fchown, fchmod, futimens, close
//!                    ▲                                                                   │
//!                    └───────────────────────── empty batches ◄──────────────────────────┘
//! ```
//! All names are created in tar order by the one thread that reads the tar, so their meaning does not depend
//! on another thread. An inode can receive its content at any time; code that examines an existing inode
//! waits first.

use std::fs::File;
use std::io::{self, Write as _};
use std::mem;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{Builder, Scope};

use super::super::error::{Context, Error};
use super::super::metadata::Metadata;
use super::attributes::{Rights, Writer};

/// Maximum size of a file that is passed to the other thread, bytes. For larger files, writing takes longer
/// than creating the name, and passing them on would only add a copy.
pub(super) const MAX_FILE_BYTES: u64 = 128 << 10;

/// Content in a batch at which it is full, bytes. The last file may exceed it.
const BATCH_BYTES: usize = 256 << 10;

/// Maximum number of files in a batch; each file keeps one descriptor open.
const BATCH_FILES: usize = 32;

/// Number of batches of a layer, including the one being filled: about 1.5 MiB and 128 open files.
const BATCHES: usize = 4;

/// Files that exist, but are still empty.
#[derive(Debug, Default)]
struct Batch {
    files: Vec<NewFile>,
    /// The contents and paths of `files`.
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct NewFile {
    file: File,
    metadata: Metadata,
    content: Range<usize>,
    path: Range<usize>,
}

/// The handle of the content thread, used by the thread that creates names.
#[derive(Debug)]
pub(super) struct Contents {
    full: Sender<Batch>,
    done: Receiver<Result<Batch, Error>>,
    filling: Batch,
    empty: Vec<Batch>,
    /// Number of batches passed to the other thread and not returned yet.
    in_flight: usize,
}

impl Contents {
    /// Starts the thread; returns `None` if the system cannot start one.
    pub(super) fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        rights: Rights,
        written: &'scope AtomicU64,
    ) -> Option<Self> {
        let (full, to_write) = mpsc::channel::<Batch>();
        let (back, done) = mpsc::channel();
        let work = move || {
            for batch in to_write {
                let result = batch.write(rights, written);
                let failed = result.is_err();
                if back.send(result).is_err() || failed {
                    break;
                }
            }
        };
        Builder::new().name("contents".into()).spawn_scoped(scope, work).ok()?;
        let empty = (1..BATCHES).map(|_| Batch::default()).collect();
        Some(Contents { full, done, filling: Batch::default(), empty, in_flight: 0 })
    }

    /// Returns the buffer to which the content of the next file is appended.
    pub(super) fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.filling.bytes
    }

    /// Adds a file whose content is in [`bytes`](Self::bytes) from `start` on.
    pub(super) fn add(
        &mut self,
        file: File,
        start: usize,
        path: &[u8],
        metadata: &Metadata,
    ) -> Result<(), Error> {
        let Batch { files, bytes } = &mut self.filling;
        let content = start..bytes.len();
        bytes.extend_from_slice(path);
        let path = content.end..bytes.len();
        files.push(NewFile { file, metadata: metadata.clone(), content, path });
        if files.len() < BATCH_FILES && bytes.len() < BATCH_BYTES { Ok(()) } else { self.submit() }
    }

    /// Waits until all files passed on are complete. An error belongs to a member before the current one.
    pub(super) fn wait(&mut self) -> Result<(), Error> {
        self.submit()?;
        while self.in_flight > 0 {
            let batch = self.receive()?;
            self.empty.push(batch);
        }
        Ok(())
    }

    fn submit(&mut self) -> Result<(), Error> {
        if self.filling.files.is_empty() {
            return Ok(());
        }
        let empty = match self.empty.pop() {
            Some(empty) => empty,
            None => self.receive()?,
        };
        self.in_flight += 1;
        // A thread that has ended has sent its error.
        match self.full.send(mem::replace(&mut self.filling, empty)) {
            Ok(()) => Ok(()),
            Err(_) => self.receive().map(drop),
        }
    }

    fn receive(&mut self) -> Result<Batch, Error> {
        self.in_flight -= 1;
        let ended =
            || Error::io("writing", b"", io::Error::other("the content thread has ended unexpectedly"));
        self.done.recv().map_err(|_| ended()).flatten().inspect_err(|_| {
            self.in_flight = 0;
            self.filling = Batch::default();
        })
    }
}

impl Batch {
    fn write(mut self, rights: Rights, written: &AtomicU64) -> Result<Self, Error> {
        // Files whose metadata could be lost are not passed on.
        let mut lost = Vec::new();
        for NewFile { mut file, metadata, content, path } in self.files.drain(..) {
            let (content, path) = (&self.bytes[content], &self.bytes[path]);
            file.write_all(content).context("writing", path)?;
            written.fetch_add(content.len() as u64, Ordering::Relaxed);
            Writer { rights, lost: &mut lost }.new_file(&file, path, &metadata)?;
        }
        self.bytes.clear();
        Ok(self)
    }
}
