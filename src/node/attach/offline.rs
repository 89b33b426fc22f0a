//! Checks without containerd whether it needs a volume, from the kernel's mounts and Larder's own files.
//!
//! containerd has a layer of a volume only if Larder's snapshotter, or containerd's own EROFS snapshotter,
//! has a link to it. A running container that uses Larder's snapshotter has an overlay mount whose upper
//! directory is below that of the snapshotter.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::Host;
use super::error::Error;
use crate::caches::attachments::Attachment;
use crate::node::content_cache;
use larder_model::io_error::Context as _;
use larder_sys::mounts::Mounts;

/// Returns `true` if it is certain that containerd does not need the volume of `record`: no running container
/// and no image does.
pub(super) fn is_unused(record: &Attachment, host: &Host) -> Result<bool, Error> {
    let mounts = Mounts::read().context("looking for containers on", record.at.display())?;
    // Mounts contain the path of the directory without symbolic links. It does not exist if the snapshotter
    // never ran.
    let snapshots = host.snapshots.canonicalize().unwrap_or_else(|_| host.snapshots.clone());
    if record.preloaded || mounts.overlay_over(&snapshots).is_some() {
        return Ok(false);
    }
    let links = targets(&snapshots.join("l")).context("listing", snapshots.display())?;
    // The link of an image has the form `<device>:<inode> <volume>`.
    let names = |target: &PathBuf| {
        let of_image = target.as_os_str().as_bytes().splitn(2, |byte| *byte == b' ').nth(1);
        target.starts_with(&record.at)
            || of_image.is_some_and(|path| Path::new(OsStr::from_bytes(path)).starts_with(&record.at))
    };
    // A layer that a newer volume also has can still link to this volume.
    let leads_here = |layer: &PathBuf| {
        layer.starts_with(&record.at)
            || fs::read_link(layer).is_ok_and(|target| target.starts_with(&record.at))
    };
    let uses_erofs = content_cache::has(record)
        && content_cache::linked(&host.path(content_cache::CONTAINERD))
            .context("listing the snapshots of containerd for", record.at.display())?
            .iter()
            .any(leads_here);
    Ok(!links.iter().any(names) && !uses_erofs)
}

/// Returns the targets of the symbolic links in a directory.
fn targets(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let links = entries.map(|entry| Ok(fs::read_link(entry?.path()).ok()));
    links.filter_map(Result::transpose).collect()
}
