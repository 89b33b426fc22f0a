//! An ext4 from elsewhere is checked whole by e2fsck before the kernel reads it. What parses it is a process without
//! privileges: a user and group of nobody's, no capability, and a device node of its own through which it can only read.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sys::stat::{major, minor};

use super::error::{Context, Error};
use super::image::Format;
use super::tools;
use crate::volume::fingerprint::Fingerprint;
use crate::volume::proofs::{Proof, Proofs};
use larder_sys::Dir;
use larder_sys::{FileType, mount};

/// User and group of the process. No user of a host has this ID, so nobody can interfere with the process.
const NOBODY: u32 = 65_533;

/// Whether a disk is examined.
#[derive(Debug)]
pub(super) enum Examination<'a> {
    /// It is, unless these records say that it was.
    Whole(Option<&'a Proofs>),
    /// It was.
    Done,
}

/// Examines the file system on the block device `device`, which has the file `image` attached, if any.
///
/// # Errors
/// [`Error::Unsafe`] if e2fsck finds faults.
pub(super) fn examine(
    device: &Path,
    image: Option<&File>,
    format: Format,
    shown: &str,
    examination: &Examination<'_>,
) -> Result<(), Error> {
    let Examination::Whole(proofs) = examination else { return Ok(()) };
    // There is no such program for EROFS, whose kernel code was made for images of strangers.
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
    // Its end is the end of the namespace with the node.
    let said = thread::scope(|scope| scope.spawn(|| check(device)).join());
    let said = said.map_err(|_| io::Error::other("a thread ended")).context("examining", shown)??;
    if let Some(said) = said {
        let fault = format!("e2fsck finds faults in its file system ({said})");
        return Err(Error::Unsafe { path: shown.to_owned(), fault });
    }
    if let (Some(proofs), Some(before)) = (proofs, before)
        && print().as_ref() == Some(&before)
        && let Err(error) = proofs.note(&Proof::FileSystem, &before)
    {
        tracing::warn!(%error, "the examination of a disk is not recorded: the next one takes as long");
    }
    Ok(())
}

/// Runs e2fsck in a mount namespace of this thread alone.
fn check(device: &Path) -> Result<Option<String>, Error> {
    let shown = device.display().to_string();
    let number = fs::metadata(device).context("examining", &shown)?.rdev();
    mount::private_namespace().context("making a mount namespace to examine", &shown)?;
    let stage = stage().context("looking for a directory to examine", &shown)?;
    mount::memory_for_devices(&stage)
        .context("mounting a place for a device over", &stage.display().to_string())?;
    let node = node(&stage, number).context("making a device node for", &shown)?;
    tools::examine_as(NOBODY, &node)
}

/// A directory that programs are not found in.
fn stage() -> io::Result<PathBuf> {
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
    std::os::unix::fs::chown(stage.join(NAME), Some(NOBODY), Some(NOBODY))?;
    Ok(stage.join(NAME))
}
