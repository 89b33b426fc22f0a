//! Decompression alone, hashing alone, and both together as in a build.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::stopwatch::Stopwatch;
use crate::builder::cancel::Cancel;
use crate::builder::extraction::Bounded;
use crate::builder::layers::ChangeSet;
use crate::builder::source::{Blob, Source};
use larder_layer::cores::Cores;
use larder_layer::decode::{self, Decoded, Decoder, inflate_only};
use larder_layer::limits::Ratio;
use larder_model::bench_report::{Elapsed, MeasuredLayer};
use larder_model::class::Class;
use larder_model::digest::Algorithm;
use larder_model::event::Failure;
use larder_sha256::{Sha256, update_both};

/// Size of the hashed buffer, bytes. It equals the chunk size of a decoder and fits the cache of a core.
const BUFFER: usize = 256 << 10;

/// Maximum number of bytes that are hashed, which takes about two seconds.
const MAX_HASHED: u64 = 4 << 30;

/// The stored layers of the image.
#[derive(Debug)]
pub(super) struct StoredLayers {
    pub(super) source: Source,
    /// Change sets, largest blob first.
    pub(super) changes: Vec<ChangeSet>,
    pub(super) ratio: Ratio,
    pub(super) cancel: Cancel,
}

impl StoredLayers {
    /// Decompresses the layers in sequence, on one processor.
    pub(super) fn inflate(&self) -> Result<(Vec<MeasuredLayer>, Elapsed), Failure> {
        let mut layers = Vec::new();
        let mut took = Elapsed::default();
        for change in &self.changes {
            let failed = |e: decode::Error| self.fail(change, "decompressing", &e);
            let mut sniffed = Decoder::new(self.open(change)?, Algorithm::Sha256, self.ratio);
            let compression = sniffed.compression().map_err(failed)?;
            let blob = self.open(change)?;
            let watch = Stopwatch::start();
            let started = Instant::now();
            let tar_bytes = inflate_only(blob, self.ratio).map_err(failed)?;
            let inflate_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            let one = watch.took(Duration::ZERO);
            took.wall_seconds += one.wall_seconds;
            took.processor_seconds += one.processor_seconds;
            let (digest, compressed_bytes) = match change.sources.first() {
                Some((_, blob)) => (blob.digest.clone(), blob.size),
                None => continue,
            };
            let entries = None;
            layers.push(MeasuredLayer {
                digest,
                compression,
                compressed_bytes,
                tar_bytes,
                entries,
                inflate_us,
            });
        }
        Ok((layers, took))
    }

    /// Decompresses and hashes all layers, `concurrency` at a time, and verifies both digests of each.
    pub(super) fn decode(&self, concurrency: usize) -> Result<Elapsed, Vec<Failure>> {
        let next = AtomicUsize::new(0);
        let fails = Mutex::new(Vec::new());
        let watch = Stopwatch::start();
        thread::scope(|scope| {
            for _ in 0..concurrency.clamp(1, self.changes.len().max(1)) {
                scope.spawn(|| {
                    while let Some(change) = self.changes.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(fail) = self.verify(change) {
                            self.cancel.stop();
                            fails.lock().unwrap_or_else(PoisonError::into_inner).push(fail);
                        }
                    }
                });
            }
        });
        let took = watch.took(Duration::ZERO);
        let fails = fails.into_inner().unwrap_or_else(PoisonError::into_inner);
        if fails.is_empty() { Ok(took) } else { Err(fails) }
    }

    fn verify(&self, change: &ChangeSet) -> Result<(), Failure> {
        let Some((_, blob)) = change.sources.first() else { return Ok(()) };
        // As in a build: a layer uses more than one processor if others are idle.
        let cores = Cores::of_process();
        let _busy = cores.occupy();
        let decoder = Decoder::new(self.open(change)?, blob.digest.algorithm(), self.ratio);
        let decoded = decoder.ahead().with_cores(cores).finish();
        let Decoded { blob: found, diff_id, .. } = decoded.map_err(|e| self.fail(change, "decoding", &e))?;
        let pairs = [("blob", &blob.digest, &found), ("tar", &change.diff_id, &diff_id)];
        match pairs.into_iter().find(|(_, want, found)| want != found) {
            None => Ok(()),
            Some((what, want, found)) => {
                let message = format!("its {what} has digest {found}, expected {want}");
                Err(fail(change, Class::Corrupt, message))
            }
        }
    }

    fn open(&self, change: &ChangeSet) -> Result<Bounded<crate::archive::Blob>, Failure> {
        let missing = || fail(change, Class::Internal, "it was not stored".to_owned());
        let (image, blob) = change.sources.first().ok_or_else(missing)?;
        match self.source.blob(image, blob, 0).map_err(|e| fail(change, e.class(), e.to_string()))? {
            Blob::File(source) => Ok(Bounded { source, left: blob.size, cancel: self.cancel.clone() }),
            Blob::Stream(_) | Blob::Piped(_) => Err(missing()),
        }
    }

    fn fail(&self, change: &ChangeSet, doing: &str, error: &decode::Error) -> Failure {
        if self.cancel.reason().is_some() {
            return fail(change, Class::Cancelled, "interrupted".to_owned());
        }
        fail(change, error.class(), format!("{doing} the layer: {error}"))
    }
}

fn fail(change: &ChangeSet, class: Class, message: String) -> Failure {
    let layer = change.sources.first().map(|(_, blob)| blob.digest.clone());
    Failure { layer, ..Failure::job(class, message) }
}

/// Computes the sha256 of `bytes` bytes, or of a fraction of them. Also returns that fraction. As in a build,
/// `together` of the bytes belong to two hashes that are computed together.
pub(super) fn hash(bytes: u64, together: u64, cancel: &Cancel) -> Result<(Elapsed, f64), Failure> {
    let buffer = vec![0x5a; BUFFER];
    let some = bytes.min(MAX_HASHED);
    let (mut blob, mut tar) = (Sha256::new(), Sha256::new());
    let mut left = some;
    let watch = Stopwatch::start();
    while left > 0 {
        super::check_cancelled(cancel)?;
        let length = left.min(BUFFER as u64);
        let half = u128::from(length) * u128::from(together) / u128::from(bytes) / 2;
        let (of_blob, of_all) =
            (usize::try_from(half).unwrap_or(0), usize::try_from(length).unwrap_or(BUFFER));
        let (blob_bytes, tar_bytes) = buffer[..of_all].split_at(of_blob.min(of_all));
        update_both(&mut blob, blob_bytes, &mut tar, tar_bytes);
        left -= length;
    }
    std::hint::black_box((blob.finish(), tar.finish()));
    Ok((watch.took(Duration::ZERO), super::fraction(some, bytes)))
}
