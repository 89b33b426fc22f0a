//! The network alone: every distinct layer once, as many at a time as a build has, to files.
//!
//! Nothing is hashed: what comes is checked when it is used. Writing to files is a thread's own for each layer, so that the
//! network does not wait for it, and its processors' time can be told from that of receiving.

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
use crate::builder::failure::Fail;
use crate::builder::layers::Change;
use crate::builder::source::{Blob, Source};
use larder_layer::error::io_class;
use larder_model::class::Class;
use larder_model::manifest::Descriptor;
use larder_model::reference::ImageReference;
use larder_sys::{Dir, process};

/// Chunks between socket and file: some MiB, as a build has them between socket and decoder.
const CHUNKS: usize = 8;

/// Fetches the layers into the layout; answers the processors' time that writing took.
pub(super) async fn layers(
    source: &Source,
    changes: &[Change],
    layout: &Dir,
    concurrency: usize,
    cancel: &Cancel,
) -> Result<Duration, Vec<Fail>> {
    let slots = Arc::new(Semaphore::new(concurrency.max(1)));
    let writing = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    let mut fails = Vec::new();
    for (image, blob) in changes.iter().filter_map(|change| change.sources.first()) {
        // Before the task, for tasks begin in any order and the largest layer is to be the first.
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
    // Each is waited for, also after the first failure: what is removed at the end is written to by nobody then.
    while let Some(joined) = tasks.join_next().await {
        let ended = |e| Err(Fail::job(Class::Internal, format!("fetching a layer ended: {e}")));
        fails.extend(joined.unwrap_or_else(ended).err());
    }
    if fails.is_empty() {
        super::go_on(cancel).map_err(|fail| vec![fail])?;
        return Ok(Duration::from_nanos(writing.load(Ordering::Relaxed)));
    }
    Err(fails)
}

fn create(layout: &Dir, blob: &Descriptor) -> Result<File, Fail> {
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
) -> Result<(), Fail> {
    let stream = source.blob(image, blob, 0).map_err(|e| fail(blob, e.class(), &e.to_string()))?;
    let Blob::Stream(mut stream) = stream else {
        return Err(fail(blob, Class::Internal, "it is in a file already"));
    };
    let (sender, receiver) = mpsc::channel(CHUNKS);
    let writer = tokio::task::spawn_blocking({
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
                // A closed channel means that writing has failed; that error is the one to tell.
                if sender.send(chunk).await.is_err() {
                    break Ok(());
                }
            }
            Ok(None) => break Ok(()),
            Err(e) => break Err(fail(blob, e.class(), &format!("fetching the layer: {e}"))),
        }
    };
    drop(sender);
    let written = writer.await.map_err(|e| fail(blob, Class::Internal, &format!("writing it ended: {e}")))?;
    fetched?;
    written.map_err(|e| fail(blob, io_class(&e), &format!("writing it to its file: {e}")))
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

fn fail(blob: &Descriptor, class: Class, message: &str) -> Fail {
    Fail { class, images: Vec::new(), layer: Some(blob.digest.clone()), message: message.to_owned() }
}
