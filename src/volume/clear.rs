//! Removal of the content of a volume, so that another job can use it.

use std::io;
use std::path::Path;

use super::error::Error;
use super::lease::Lease;
use super::lock::lock;
use super::{disk, layout};
use larder_model::io_error::Context as _;
use larder_model::job::VolumeKind;
use larder_sys::mounts::{Mounts, Use};
use larder_sys::{Dir, remove};

/// Names of Larder in the directory of a volume of any kind. The seal comes first, so that an interrupted
/// removal does not leave a sealed volume without its layers.
const CONTENT: [&[u8]; 14] = [
    layout::CACHE,
    layout::SIGNATURE,
    layout::SIGNATURE_UNFINISHED,
    b"cache.json.tmp",
    disk::DESCRIPTION,
    b"image.json.tmp",
    disk::IMAGE,
    layout::OVERLAY,
    layout::LAYERS,
    layout::IMAGES,
    layout::EROFS,
    layout::OCI,
    layout::SNAPSHOTS,
    layout::PREFETCH.as_bytes(),
];

/// Empties the volume at `path`, whatever job it belongs to. A directory that is not a volume is not changed,
/// and files that Larder did not create are kept.
///
/// # Errors
/// [`Error::Locked`] if a build is using the volume, [`Error::InUse`] if it is attached, mounted or read, and
/// those of the file system.
pub fn start_over(path: &Path, kind: VolumeKind) -> Result<(), Error> {
    let shown = path.display().to_string();
    let root = match Dir::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.context("opening the volume", &shown)?,
    };
    let larder = match root.open_dir(layout::LARDER) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.context("opening", ".larder")?,
    };
    let locked = lock(&larder).context("locking", &shown)?;
    let _locked = locked.ok_or_else(|| Error::Locked { path: shown.clone() })?;
    let in_use = |how: &str| Error::InUse { path: shown.clone(), how: how.to_owned() };
    let _lease = Lease::exclusive(&root)?.ok_or_else(|| in_use("a process is reading it"))?;
    // Checked under the lease, because `attach` takes one before it mounts anything.
    if let Some(how) = use_of(path, kind).context("examining the mounts of", &shown)? {
        return Err(in_use(&how));
    }
    clear(&root, &larder)
}

/// Returns how a volume is used. For kind `mounted`, the file system on `path` itself is no other use.
fn use_of(path: &Path, kind: VolumeKind) -> io::Result<Option<String>> {
    let path = path.canonicalize()?;
    let own = (kind == VolumeKind::Mounted).then(|| Use::Covered(path.clone()));
    let mounts = Mounts::read()?;
    let used = mounts.uses_of(&path).find(|used| Some(used) != own.as_ref());
    Ok(used.map(|used| used.to_string()))
}

/// Removes the layers, the journal and the job of a volume. The caller holds its lock.
pub(super) fn clear(root: &Dir, larder: &Dir) -> Result<(), Error> {
    let name = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
    remove::tree(root, layout::CACHE).context("removing", "cache.json")?;
    root.sync().context("flushing", "the directory of the volume")?;
    // Without the journal, the layers that are still there count as leftovers.
    for file in [layout::JOURNAL, disk::IMAGE, layout::STAGING] {
        remove::tree(larder, file).context("removing", name(file))?;
    }
    larder.sync().context("flushing", ".larder")?;
    for entry in CONTENT {
        remove::tree(root, entry).context("removing", name(entry))?;
    }
    Ok(remove::tree(larder, layout::JOB).context("removing", "job.json")?)
}
