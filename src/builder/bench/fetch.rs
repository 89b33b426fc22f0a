//! The network alone: fetches every distinct layer once to a file, with the concurrency of a build.
//!
//! Nothing is hashed here: the data is verified when it is used. Each layer has a separate thread that writes
//! its file. So the network does not wait for it, and the processor time for writing can be separated from
//! that for receiving.

use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::layout;
use crate::builder::cancel::Cancel;
use crate::builder::layers::ChangeSet;
use crate::builder::source::{Blob, Source};
use larder_model::class::Class;
use larder_model::event::Failure;
use larder_model::io_error::{FileRole, class};
use larder_model::manifest::Descriptor;
use larder_model::reference::ImageReference;
use larder_sys::{Dir, process};

/// Chunks between socket and file: some MiB, as between socket and decoder in a build.
const CHUNKS: usize = 8;

/// Fetches the layers into the layout. Returns the processor time of writing.
pub(super) async fn layers(
    source: &Source,
    changes: &[ChangeSet],
    layout: &Dir,
    concurrency: usize,
    cancel: &Cancel,
) -> Result<Duration, Vec<Failure>> {
    let slots = Arc::new(Semaphore::new(concurrency.max(1)));
    let writing = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    let mut fails = Vec::new();
    for (image, blob) in changes.iter().filter_map(|change| change.sources.first()) {
        // Acquired before the task starts: tasks start in any order, and the largest layer must be first.
        let slot = Arc::clone(&slots).acquire_owned().await;
        if cancel.reason().is_some() {
            break;
        }
        let file = match create(layout, blob) {
            Ok(file) => file,
            Err(fail) => {
                cancel.stop();
                fails.push(fail);
                break;
            }
        };
        let (source, image, blob) = (source.clone(), image.clone(), blob.clone());
        let (writing, cancel) = (Arc::clone(&writing), cancel.clone());
        tasks.spawn(async move {
            let _slot = slot;
            one(&source, &image, &blob, file, &writing, &cancel).await.inspect_err(|_| cancel.stop())
        });
    }
    // Wait for all tasks, also after a failure, so that none writes to a file that is being removed.
    while let Some(joined) = tasks.join_next().await {
        let ended =
            |e| Err(Failure::job(Class::Internal, format!("the task that fetches a layer failed: {e}")));
        fails.extend(joined.unwrap_or_else(ended).err());
    }
    if fails.is_empty() {
        super::check_cancelled(cancel).map_err(|fail| vec![fail])?;
        return Ok(Duration::from_nanos(writing.load(Ordering::Relaxed)));
    }
    Err(fails)
}

fn create(layout: &Dir, blob: &Descriptor) -> Result<File, Failure> {
    let created = layout::blobs(layout, &blob.digest)?.create_file(blob.digest.hex().as_bytes(), 0o600);
    created.map_err(|e| fail(blob, layout::class(&e), &format!("creating a file for it: {e}")))
}

async fn one(
    source: &Source,
    image: &ImageReference,
    blob: &Descriptor,
    file: File,
    writing: &Arc<AtomicU64>,
    cancel: &Cancel,
) -> Result<(), Failure> {
    let stream = source.blob(image, blob, 0).map_err(|e| fail(blob, e.class(), &e.to_string()))?;
    let Blob::Stream(mut stream) = stream else {
        return Err(fail(blob, Class::Internal, "it is already in a file"));
    };
    let (sender, receiver) = mpsc::channel(CHUNKS);
    let writer = crate::blocking::spawn({
        let writing = Arc::clone(writing);
        move || write(file, receiver, &writing)
    });
    let fetched = loop {
        let next = tokio::select! {
            next = stream.next() => next,
            () = cancel.cancelled() => break Err(fail(blob, Class::Cancelled, "interrupted")),
        };
        match next {
            Ok(Some(chunk)) => {
                // A closed channel means that writing failed; that error is returned.
                if sender.send(chunk).await.is_err() {
                    break Ok(());
                }
            }
            Ok(None) => break Ok(()),
            Err(e) => break Err(fail(blob, e.class(), &format!("fetching the layer: {e}"))),
        }
    };
    drop(sender);
    let written = writer
        .await
        .map_err(|e| fail(blob, Class::Internal, &format!("the task that writes it failed: {e}")))?;
    fetched?;
    written.map_err(|e| fail(blob, class(&e, FileRole::Own), &format!("writing it to its file: {e}")))
}

fn write(mut file: File, mut chunks: mpsc::Receiver<Bytes>, writing: &AtomicU64) -> std::io::Result<()> {
    while let Some(chunk) = chunks.blocking_recv() {
        let before = process::thread_processor_time();
        file.write_all(&chunk)?;
        let took = process::thread_processor_time().saturating_sub(before);
        writing.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
    Ok(())
}

fn fail(blob: &Descriptor, class: Class, message: &str) -> Failure {
    Failure::layer(&blob.digest, class, message)
}
