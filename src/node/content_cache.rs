//! The one directory from which containerd's own EROFS snapshotter takes layers: a layer content cache (containerd 2.4,
//! plugins/snapshots/erofs), in which each layer is a link to an attached volume that has it.
//!
//! ```text
//! sha256/<2 digits>/<diff ID>.erofs            /icv/erofs/sha256/<2 digits>/<diff ID>.erofs
//! sha256/<2 digits>/<diff ID>.erofs.dmverity   the same with .dmverity, where the kernel has dm-verity
//! ```
//!
//! containerd keeps absolute paths into the cache for as long as it has the layer, and does not look again. So the directory
//! stays when volumes come and go, and each link leads to the volume that was attached last: an older volume can be detached when
//! its containers ended.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::caches::attachments::{Attachment, AttachmentError, Attachments};
use crate::volume::{layout, seal};
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::job::LayerFormat;
use larder_model::runtime::Containerd;
use larder_model::seal::Content;
use larder_sys::lock::DirLock;
use larder_sys::{Dir, dir};

/// Where containerd has the snapshots of its EROFS snapshotter, unless it is configured otherwise.
pub const CONTAINERD: &str = "/var/lib/containerd/io.containerd.snapshotter.v1.erofs";
/// Mode of the directories.
const MODE: u32 = 0o755;
/// How long another process can take to change the directory.
const PATIENCE: Duration = Duration::from_secs(30);

/// The directory cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The records cannot be read.
    #[error(transparent)]
    Records(#[from] AttachmentError),
    /// Another process changes it for too long.
    #[error("another process has been changing {} for {} s: try again", .0.display(), PATIENCE.as_secs())]
    Busy(PathBuf),
}

impl Error {
    /// The class, which decides about the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Io { source, .. } => larder_layer::error::io_class(source),
            Error::Records(e) => e.class(),
            Error::Busy(_) => Class::Busy,
        }
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { doing, path, source }
}

/// A volume whose layers are linked.
#[derive(Debug)]
struct Source {
    /// Where it is mounted.
    at: PathBuf,
    /// What it holds; none where it is not mounted now: its links stay as they are.
    content: Option<Content>,
}

/// Whether containerd's own EROFS snapshotter takes the layers of an attached volume.
pub fn has(record: &Attachment) -> bool {
    !record.leaving
        && record.containerd.as_ref().is_some_and(|containerd| containerd.snapshotter == Containerd::EROFS)
}

/// Makes the directory at `path` hold a link for each layer of the volumes that `records` say are there for it; of several with a
/// layer, that of the volume that was attached last. Files of hash trees are linked if `verity`. Without volumes there is no
/// directory.
///
/// # Errors
/// [`Error`]; the same again goes on where it ended.
pub fn update(path: &Path, records: &Attachments, verity: bool) -> Result<(), Error> {
    if !path.exists() && !records.list()?.iter().any(has) {
        return Ok(());
    }
    dir::create_all(path, MODE).map_err(failed("creating", path))?;
    let root = Dir::open(path).map_err(failed("opening", path))?;
    let _lock = lock(&root, path)?;
    let sources = sources(records)?;
    let wanted = wanted(&sources, verity);
    let stays = |target: &[u8]| {
        let target = Path::new(OsStr::from_bytes(target));
        sources.iter().any(|source| source.content.is_none() && target.starts_with(&source.at))
    };
    prune(&root, Path::new(""), &wanted, &stays).map_err(failed("removing links in", path))?;
    for (name, target) in &wanted {
        link(&root, name, target).map_err(failed("linking in", path))?;
    }
    if sources.is_empty() {
        // Another attach can be about to use it.
        let _ = fs::remove_dir(path);
    }
    Ok(())
}

/// The volumes, attached last last. Read under the lock, so that of two processes the second sees what the first one noted.
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
        if let Some(lock) = DirLock::try_exclusive(root).map_err(failed("locking", path))? {
            return Ok(lock);
        }
        if Instant::now() > end {
            return Err(Error::Busy(path.to_owned()));
        }
        sleep(Duration::from_millis(20));
    }
}

/// Names in the directory, and where they lead.
fn wanted(sources: &[Source], verity: bool) -> BTreeMap<PathBuf, PathBuf> {
    let mut wanted = BTreeMap::new();
    for source in sources {
        let images = source.content.iter().filter(|content| content.layer_format == LayerFormat::Erofs);
        for layer in images.flat_map(|content| &content.layers) {
            let ([algorithm, prefix], name) = layout::image(&layer.diff_id);
            let image = Path::new(&algorithm).join(prefix).join(name);
            let below = source.at.join(OsStr::from_bytes(layout::EROFS));
            let tree = with(&image, layout::VERITY);
            // That of another volume is not this image's.
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

/// Removes what is neither `wanted` nor a link that `stays`, and directories that are empty then.
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

/// Makes `name` a link to `target` in one step.
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

/// The layers whose links lead to the volume at `at`, whether or not it is mounted.
///
/// # Errors
/// The directory cannot be read; that there is none is no error.
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
    read().map_err(failed("reading links in", path))
}

/// Where the layers lead that containerd has linked in the snapshotter's directory `root`.
///
/// # Errors
/// The directory cannot be read; that there is none is no error.
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
