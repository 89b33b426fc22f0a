//! Before the kernel reads a foreign ext4, e2fsck checks all of it in an unprivileged process. That process
//! has an unused user and group ID, no capability, and a private device node that it can only read.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::{io, thread};

use nix::sys::stat::{major, minor};

use super::error::Error;
use super::image::Format;
use super::tools;
use crate::volume::fingerprint::Fingerprint;
use crate::volume::proofs::{Proof, Proofs};
use larder_model::io_error::Context as _;
use larder_sys::{Dir, FileType, mount};

/// User and group of the process. No user of the host has this ID, so no other process can interfere.
const UNPRIVILEGED_ID: u32 = 65_533;

/// Policy for examining a disk.
#[derive(Debug)]
pub(super) enum Examination<'a> {
    /// The disk is examined, unless these records show an earlier examination.
    Whole(Option<&'a Proofs>),
    /// The disk was already examined.
    Done,
}

/// Examines the file system on the block device `device`, to which the file `image` is attached, if any.
///
/// # Errors
/// [`Error::Unsafe`] if e2fsck finds errors.
pub(super) fn examine(
    device: &Path,
    image: Option<&File>,
    format: Format,
    shown: &str,
    examination: &Examination<'_>,
) -> Result<(), Error> {
    let Examination::Whole(proofs) = examination else { return Ok(()) };
    // There is no checker for EROFS, whose kernel code was designed for untrusted images.
    if format == Format::Erofs {
        return Ok(());
    }
    let print = || image.and_then(|image| Fingerprint::of_file(image).ok().flatten());
    let before = print();
    if let (Some(proofs), Some(print)) = (proofs, &before)
        && proofs.has(&Proof::FileSystem, print)
    {
        return Ok(());
    }
    if let Some(print) = &before {
        print.settle();
    }
    // The end of the thread removes the namespace with the node.
    let messages = thread::scope(|scope| scope.spawn(|| check(device)).join());
    let messages = messages
        .map_err(|_| io::Error::other("the examining thread panicked"))
        .context("examining", shown)??;
    if let Some(messages) = messages {
        let fault = format!("e2fsck found errors in its file system ({messages})");
        return Err(Error::Unsafe { path: shown.to_owned(), fault });
    }
    if let (Some(proofs), Some(before)) = (proofs, before)
        && print().as_ref() == Some(&before)
        && let Err(error) = proofs.note(&Proof::FileSystem, &before)
    {
        tracing::warn!(%error, "cannot record the examination of a disk; it will be repeated next time");
    }
    Ok(())
}

/// Runs e2fsck in a mount namespace of this thread.
fn check(device: &Path) -> Result<Option<String>, Error> {
    let shown = device.display().to_string();
    let number = fs::metadata(device).context("examining", &shown)?.rdev();
    mount::private_namespace().context("making a mount namespace to examine", &shown)?;
    let stage = staging_dir().context("finding a directory to examine", &shown)?;
    mount::memory_for_devices(&stage).context("mounting a tmpfs for a device over", stage.display())?;
    let node = node(&stage, number).context("making a device node for", &shown)?;
    tools::examine_as(UNPRIVILEGED_ID, &node)
}

/// Returns a directory that can be mounted over without hiding programs.
fn staging_dir() -> io::Result<PathBuf> {
    let mut known = [std::env::temp_dir(), "/tmp".into(), "/run".into(), "/mnt".into()].into_iter();
    known.find(|path| path.is_dir()).ok_or_else(|| io::ErrorKind::NotFound.into())
}

#[expect(clippy::cast_possible_truncation, reason = "major and minor numbers fit 32 bits")]
fn node(stage: &Path, number: u64) -> io::Result<PathBuf> {
    const NAME: &str = "disk";
    let dir = Dir::open(stage)?;
    let numbers = (major(number) as u32, minor(number) as u32);
    dir.make_node(NAME.as_bytes(), FileType::BlockDevice, 0o400, numbers)?;
    dir.set_mode(NAME.as_bytes(), 0o400)?;
    std::os::unix::fs::chown(stage.join(NAME), Some(UNPRIVILEGED_ID), Some(UNPRIVILEGED_ID))?;
    Ok(stage.join(NAME))
}
