//! Verifies a volume before it is attached. The result is recorded, and stays valid until a file of the
//! volume changes ([`volume::proofs`](crate::volume::proofs)).

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::error::Error;
use crate::verify::apart::verify_apart;
use crate::volume::disk;
use crate::volume::fingerprint::Fingerprint;
use crate::volume::proofs::{Proof, Proofs};
use larder_model::digest::Digest;
use larder_model::trust::Trust;
use larder_sys::{Dir, loop_device};

/// A sealed volume, and where to read it.
#[derive(Debug)]
pub(super) struct Readable<'a> {
    /// Directory, image file or block device.
    pub(super) volume: &'a Path,
    /// Mount point, private to this process or public.
    pub(super) at: &'a Path,
    /// Digest of its `cache.json`.
    pub(super) cache: &'a Digest,
}

/// Reads and verifies every layer and every file that consumers read, unless a valid result is recorded.
///
/// # Errors
/// The first difference from `cache.json`.
pub(super) fn verify_once(readable: &Readable<'_>, trust: &Trust, proofs: &Proofs) -> Result<(), Error> {
    let proof = Proof::Layers(readable.cache);
    let before = fingerprint(readable);
    if let Some(print) = &before {
        if proofs.has(&proof, print) {
            tracing::debug!(cache = %readable.cache, "the volume was verified before and is unchanged");
            return Ok(());
        }
        print.settle();
    }
    verify_apart(readable.at, trust)?;
    if let Some(print) = before
        && fingerprint(readable).as_ref() == Some(&print)
        && let Err(error) = proofs.note(&proof, &print)
    {
        tracing::warn!(%error, "cannot record the verification; the next attach verifies again");
    }
    Ok(())
}

/// Computes the fingerprint of the volume; `None` if it could change unnoticed.
fn fingerprint(readable: &Readable<'_>) -> Option<Fingerprint> {
    let taken = match disk::image_of(readable.volume) {
        Ok(Some(image)) if is_on(&image, readable.at).unwrap_or(false) => Fingerprint::of_file(&image),
        Ok(None) if readable.volume.is_dir() => {
            Dir::open(readable.at).and_then(|dir| Fingerprint::of_directory(&dir))
        }
        Ok(_) => Ok(None),
        Err(error) => Err(error),
    };
    taken.unwrap_or_else(|error| {
        tracing::debug!(%error, "the volume has no fingerprint");
        None
    })
}

/// Reports whether `at` is a mount of the image `file` through a loop device.
fn is_on(file: &File, at: &Path) -> io::Result<bool> {
    let device = Dir::open(at)?.stat_self()?.identity.0;
    let attached = loop_device::attached(file)?;
    Ok(attached.iter().any(|found| std::fs::metadata(&found.path).is_ok_and(|facts| facts.rdev() == device)))
}
