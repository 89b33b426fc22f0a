//! The directory from which containerd's own EROFS snapshotter takes layers. It is a layer content cache
//! (containerd 2.4, plugins/snapshots/erofs), in which each layer is a link to an attached volume.
//!
//! ```text
//! sha256/<2 digits>/<diff ID>.erofs            /icv/erofs/sha256/<2 digits>/<diff ID>.erofs
//! sha256/<2 digits>/<diff ID>.erofs.dmverity   the same with .dmverity, where the kernel has dm-verity
//! ```
//!
//! containerd stores absolute paths into the cache while it has the layer, and does not resolve them again.
//! So the directory stays when volumes are attached and detached, and each link points to the volume that was
//! attached last. An older volume can be detached once its containers have ended.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{fs, io};

use crate::caches::attachments::{Attachment, AttachmentError, Attachments};
use crate::volume::{layout, seal};
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::io_error::{Context as _, FileRole, IoError};
use larder_model::job::LayerFormat;
use larder_model::runtime::Containerd;
use larder_model::seal::Content;
use larder_sys::lock::DirLock;
use larder_sys::{Dir, dir};

/// The default directory of containerd's EROFS snapshotter.
pub const CONTAINERD: &str = "/var/lib/containerd/io.containerd.snapshotter.v1.erofs";
/// The mode of the directories.
const MODE: u32 = 0o755;
/// Maximum time to wait for another process that changes the directory.
const PATIENCE: Duration = Duration::from_secs(30);

/// The content cache cannot be updated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The records cannot be read.
    #[error(transparent)]
    Records(#[from] AttachmentError),
    /// Another process holds the lock for too long.
    #[error("another process has been changing {} for {} s: try again", .0.display(), PATIENCE.as_secs())]
    Busy(PathBuf),
}

impl Error {
    /// Returns the error class, which determines the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Io(error) => error.class(FileRole::Own),
            Error::Records(e) => e.class(),
            Error::Busy(_) => Class::Busy,
        }
    }
}

/// A volume whose layers are linked.
#[derive(Debug)]
struct Source {
    /// The mount point of the volume.
    at: PathBuf,
    /// Content of the volume. `None` if it is not mounted now; its links then stay.
    content: Option<Content>,
}

/// Reports whether containerd's own EROFS snapshotter uses the layers of an attached volume.
pub fn has(record: &Attachment) -> bool {
    !record.leaving
        && record.containerd.as_ref().is_some_and(|containerd| containerd.snapshotter == Containerd::EROFS)
}

/// Updates the directory at `path`, so that it has a link for each layer of the volumes in `records` that are
/// attached for it. If several volumes have a layer, the link points to the one that was attached last. Files
/// of hash trees are also linked if `verity` is set. Without volumes, the directory is removed.
///
/// # Errors
/// [`Error`]; a repeated call resumes.
pub fn update(path: &Path, records: &Attachments, verity: bool) -> Result<(), Error> {
    if !path.exists() && !records.list()?.iter().any(has) {
        return Ok(());
    }
    dir::create_all(path, MODE).context("creating", path.display())?;
    let root = Dir::open(path).context("opening", path.display())?;
    let _lock = lock(&root, path)?;
    let sources = sources(records)?;
    let wanted = wanted(&sources, verity);
    let stays = |target: &[u8]| {
        let target = Path::new(OsStr::from_bytes(target));
        sources.iter().any(|source| source.content.is_none() && target.starts_with(&source.at))
    };
    prune(&root, Path::new(""), &wanted, &stays).context("removing links in", path.display())?;
    for (name, target) in &wanted {
        link(&root, name, target).context("linking in", path.display())?;
    }
    if sources.is_empty() {
        // This fails if another attach is already using the directory.
        let _ = fs::remove_dir(path);
    }
    Ok(())
}

/// Returns the volumes, the last attached last. Call this under the lock, so that the second of two processes
/// sees the records of the first.
fn sources(records: &Attachments) -> Result<Vec<Source>, Error> {
    let mut records = records.list()?;
    records.retain(has);
    records.sort_by(|a, b| (a.since, &a.at).cmp(&(b.since, &b.at)));
    let sources = records.into_iter().map(|record| {
        let content = seal::read(&record.at).ok().map(|sealed| sealed.content);
        Source { at: record.at, content }
    });
    Ok(sources.collect())
}

fn lock(root: &Dir, path: &Path) -> Result<DirLock, Error> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(lock) = DirLock::try_exclusive(root).context("locking", path.display())? {
            return Ok(lock);
        }
        if Instant::now() > end {
            return Err(Error::Busy(path.to_owned()));
        }
        sleep(Duration::from_millis(20));
    }
}

/// Returns the names in the directory and their targets.
fn wanted(sources: &[Source], verity: bool) -> BTreeMap<PathBuf, PathBuf> {
    let mut wanted = BTreeMap::new();
    for source in sources {
        let images = source.content.iter().filter(|content| content.layer_format == LayerFormat::Erofs);
        for layer in images.flat_map(|content| &content.layers) {
            let ([algorithm, prefix], name) = layout::image(&layer.diff_id);
            let image = Path::new(&algorithm).join(prefix).join(name);
            let below = source.at.join(OsStr::from_bytes(layout::EROFS));
            let tree = with(&image, layout::VERITY);
            // The hash tree of another volume does not belong to this image.
            wanted.remove(&tree);
            if verity && layer.image.as_ref().is_some_and(|image| image.verity.is_some()) {
                wanted.insert(tree.clone(), below.join(&tree));
            }
            wanted.insert(image.clone(), below.join(&image));
        }
    }
    wanted
}

fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Removes the entries that are neither `wanted` nor links that `stays` accepts, and then empty directories.
fn prune(
    dir: &Dir,
    at: &Path,
    wanted: &BTreeMap<PathBuf, PathBuf>,
    stays: &impl Fn(&[u8]) -> bool,
) -> io::Result<()> {
    for name in dir.names()? {
        let path = at.join(OsStr::from_bytes(&name));
        if dir.try_stat(&name)?.is_some_and(|stat| stat.is_dir()) {
            prune(&dir.open_dir(&name)?, &path, wanted, stays)?;
            match dir.remove_dir(&name) {
                Err(e) if e.kind() != io::ErrorKind::DirectoryNotEmpty => return Err(e),
                _ => {}
            }
        } else if !wanted.contains_key(&path) && !dir.read_link(&name).is_ok_and(|target| stays(&target)) {
            dir.unlink(&name)?;
        }
    }
    Ok(())
}

/// Makes `name` a link to `target`, atomically.
fn link(root: &Dir, name: &Path, target: &Path) -> io::Result<()> {
    let mut dir = root.try_clone()?;
    for part in name.parent().into_iter().flat_map(Path::components) {
        dir = dir.ensure_dir(part.as_os_str().as_bytes(), MODE)?;
    }
    let name = name.file_name().unwrap_or_default().as_bytes();
    let target = target.as_os_str().as_bytes();
    if dir.read_link(name).is_ok_and(|found| found == target) {
        return Ok(());
    }
    let new = [name, b".new"].concat();
    let _ = dir.unlink(&new);
    dir.symlink(target, &new)?;
    dir.rename(&new, &dir, name)
}

/// Returns the layers whose links point to the volume at `at`, whether or not it is mounted.
///
/// # Errors
/// The directory cannot be read. A missing directory is not an error.
pub fn layers_of(path: &Path, at: &Path) -> Result<Vec<Digest>, Error> {
    let read = || -> io::Result<Vec<Digest>> {
        let root = match Dir::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            root => root?,
        };
        let mut found = Vec::new();
        for algorithm in root.names()? {
            let below = root.open_dir(&algorithm)?;
            for prefix in below.names()? {
                let links = below.open_dir(&prefix)?;
                for name in links.names()? {
                    let leads_there = links
                        .read_link(&name)
                        .is_ok_and(|target| Path::new(OsStr::from_bytes(&target)).starts_with(at));
                    let layer = name.strip_suffix(b".erofs").filter(|_| leads_there);
                    let digest = layer.map(|hex| [&algorithm[..], b":", hex].concat());
                    found.extend(digest.and_then(|text| String::from_utf8(text).ok()?.parse().ok()));
                }
            }
        }
        Ok(found)
    };
    Ok(read().context("reading links in", path.display())?)
}

/// Returns the targets of the layer links in containerd's snapshotter directory `root`.
///
/// # Errors
/// The directory cannot be read. A missing directory is not an error.
pub fn linked(root: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(root.join("snapshots")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let links = entries.map(|entry| Ok(fs::read_link(entry?.path().join("layer.erofs")).ok()));
    links.filter_map(Result::transpose).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_volume_that_is_not_mounted_has_its_layers_by_name() {
        let cache = tempfile::tempdir().unwrap();
        let digests = [Digest::sha256(b"one"), Digest::sha256(b"two")];
        for (digest, at) in digests.iter().zip(["/icv", "/icv2"]) {
            let ([algorithm, prefix], name) = layout::image(digest);
            let image = Path::new(&algorithm).join(prefix).join(name);
            fs::create_dir_all(cache.path().join(&image).parent().unwrap()).unwrap();
            for path in [image.clone(), with(&image, layout::VERITY)] {
                symlink(Path::new(at).join("erofs").join(&path), cache.path().join(&path)).unwrap();
            }
        }
        let of = |at: &str| layers_of(cache.path(), Path::new(at)).unwrap();
        assert_eq!((of("/icv"), of("/icv2")), (vec![digests[0].clone()], vec![digests[1].clone()]));
        assert!(of("/ic").is_empty());
        assert!(layers_of(&cache.path().join("none"), Path::new("/icv")).unwrap().is_empty());
    }
}
