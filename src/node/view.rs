//! Presents a volume as an additional image store of podman, buildah and CRI-O.
//!
//! A volume of EROFS images becomes a store through its view. A volume of directories is already a store, and
//! containers use that one. A view would not do for them: containers/storage maps IDs in a store's `overlay`
//! directory without the mounts in it, so a container in a user namespace finds no layers there. A view of
//! directories has the layers but no images, for builds.
//!
//! ```text
//! overlay/<ID>/diff          mount of the layer's image or directory; mounted again for other parents|
//! overlay/<ID>.image/diff    the layer's image, if a fixup image is in <ID>/diff|
//! overlay/<ID>/link          the short name of diff|
//! overlay/<ID>/lower         l/<short name>:… of the layers below diff|
//! overlay/l/<short name>     ../<ID>/diff|
//! overlay-layers/layers.json created from cache.json, like the records of images|
//! overlay-layers/<ID>.tar-split.gz   a symbolic link to the file on the volume|
//! view                       the volume of this view
//! ```
//!
//! Layers have the IDs that podman and buildah would give them, so a build on one of the images finds its
//! layers here. Layers with other IDs would be copied into the build's own store. That copy fails if a layer
//! has a hard link to a file of a lower layer.
//!
//! containers/storage uses the names in `lower` as they are, and does not check their owner. So a layer with
//! a fixup image has two names. They are not merged, because an overlay of both would consume the whiteouts
//! for the layers below. The upper one must be `diff`. If the first name in the `lower` of a build's layer is
//! that of the parent's `diff`, the build compares the layer only with the parent (`isParent`). Otherwise it
//! mounts the parent, which is not possible in a read-only store. Files that are copied out of the store
//! (tar-split) are searched in all of them, topmost first.
//!
//! A view of directories has its own short names. containers/storage resolves a name in the first store that
//! has it, which is the volume. With the same names, a build on a layer of the view would not find its parent
//! there. The names of EROFS images are stable, because layers built on them have these names in their own
//! `lower`.
//!
//! # Atomicity
//!
//! The store is a file system in memory with mounts in it. It is assembled in a private mount namespace and
//! attached in one step, read-only and world-readable. So a crash leaves nothing behind, and no process sees
//! a partial store. It is also removed in one step, after a check that no overlay uses it and no process has
//! a file of it open.
//!
//! # Trust
//!
//! Only `content` is trusted, because its digest was checked. Manifests and configs are checked against their
//! digests, and the layers in `content` against them. No symbolic link on the volume is followed. Only these
//! documents are copied from it.

mod error;
mod tree;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;

pub use error::Error;

use larder_model::chain::{ChainId, short_name};
use larder_model::digest::Digest;
use larder_model::io_error::{Context as _, IoError};
use larder_model::job::LayerFormat;
use larder_model::seal::{CacheManifest, Content, Layer};
use larder_sys::mounts::Mounts;
use larder_sys::{Dir, mount};

/// The file with the volume of a view.
const NOTE: &str = "view";

/// Creates the view of the volume at `volume`, whose seal has `content`, and mounts it over the directory
/// `at`. Does nothing if it is already mounted.
///
/// # Errors
/// [`Error`]; then nothing is mounted.
pub fn make(volume: &Path, content: &Content, at: &Path) -> Result<(), Error> {
    let at = at.canonicalize().context("opening", at.display())?;
    let volume = volume.canonicalize().context("opening the volume", volume.display())?;
    if volume.starts_with(&at) {
        return Err(Error::Inside(at.display().to_string()));
    }
    let root = Dir::open(&volume).context("opening the volume", volume.display())?;
    let note = note(&root, &volume, content)?;
    if is_there(&at)? {
        return match Dir::open(&at).and_then(|dir| dir.read_file(NOTE.as_bytes(), 1 << 16)) {
            Ok(found) if found == note => Ok(()),
            _ => Err(Error::Taken(at.display().to_string())),
        };
    }
    let below = Dir::open(&at).context("opening", at.display())?;
    if mount::is_mount_point(&below).context("examining", at.display())? {
        return Err(Error::Taken(at.display().to_string()));
    }
    // The private namespace ends with the thread.
    let stage = &at;
    let made = thread::scope(|scope| scope.spawn(|| tree::assemble(&volume, content, &note, stage)).join());
    let made = made.map_err(|_| {
        IoError::new("creating", stage.display(), std::io::Error::other("a thread panicked"))
    })??;
    Ok(made.attach(&below).context("mounting over", stage.display())?)
}

/// Checks that podman and CRI-O can read the manifests and configs of a volume. One unreadable image would
/// remove the images of all stores from their lists.
///
/// # Errors
/// [`Error::Documents`] for the first such image.
pub fn check(volume: &Path, content: &Content) -> Result<(), Error> {
    let root = Dir::open(volume).context("opening the volume", volume.display())?;
    tree::documents(&root, content).map(drop)
}

/// Reports whether a view is mounted at `at`.
///
/// # Errors
/// [`Error`]: the directory or the mount cannot be read.
pub fn is_there(at: &Path) -> Result<bool, Error> {
    let Some(at) = canonical(at)? else { return Ok(false) };
    Ok(mount::is_larder_view(&at).context("examining", at.display())? == Some(true))
}

/// Returns the canonical path of the directory, or `None` if it does not exist.
fn canonical(at: &Path) -> Result<Option<PathBuf>, Error> {
    match at.canonicalize() {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        found => Ok(found.map(Some).context("opening", at.display())?),
    }
}

/// Unmounts the view at `at`. Does nothing if nothing is mounted.
///
/// # Errors
/// [`Error`]: it is in use, or something else is mounted there; then nothing has changed.
pub fn remove(at: &Path) -> Result<(), Error> {
    let Some(at) = canonical(at)? else { return Ok(()) };
    match mount::is_larder_view(&at).context("examining", at.display())? {
        None => return Ok(()),
        Some(false) => return Err(Error::NotOurs(at.display().to_string())),
        Some(true) => {}
    }
    let busy = |who: String| Error::Busy { at: at.display().to_string(), who };
    let mounts = Mounts::read().context("reading the mounts for", at.display())?;
    if let Some(overlay) = mounts.overlay_on(&at) {
        return Err(busy(format!("the overlay at {} uses it", overlay.display())));
    }
    for point in mounts.points_in(&at) {
        if !mount::is_idle(point).context("examining", point.display())? {
            return Err(busy(format!("a process has a file below {} open", point.display())));
        }
    }
    Ok(mount::unmount_tree(&at).context("unmounting", at.display())?)
}

/// Returns the note of a view. A view of another volume, or of the same volume at another path, has another
/// note.
fn note(root: &Dir, volume: &Path, content: &Content) -> Result<Vec<u8>, Error> {
    let digest = CacheManifest::new(content.clone()).map_err(Error::Json)?.digest;
    let (device, inode) = root.stat_self().context("examining", volume.display())?.identity;
    Ok(format!("{digest} {device}:{inode} {}\n", volume.display()).into_bytes())
}

/// Returns the layer IDs that podman and buildah use (containers/image, `storage_dest.go`).
fn ids(layers: &[Layer]) -> HashMap<&ChainId, String> {
    let mut ids: HashMap<&ChainId, String> = HashMap::new();
    for layer in layers {
        let diff_id = layer.diff_id.hex();
        let id = match layer.parent.as_ref().and_then(|parent| ids.get(parent)) {
            None => diff_id.to_owned(),
            Some(parent) => Digest::sha256(format!("{parent}+{diff_id}").as_bytes()).hex().to_owned(),
        };
        ids.insert(&layer.chain_id, id);
    }
    ids
}

/// Returns the IDs of the layers in the image stores of a volume: in its view, and in the volume itself if it
/// is a store.
pub fn layer_ids(content: &Content) -> impl Iterator<Item = String> {
    let direct = content.layer_format == LayerFormat::Overlay;
    let chains = content.layers.iter().filter(move |_| direct).map(|layer| layer.chain_id.hex().to_owned());
    ids(&content.layers).into_values().chain(chains)
}

/// Returns the trees of a layer, topmost first: the short name, and the suffix after the ID in the directory
/// name.
fn names(layer: &Layer) -> Vec<(String, &'static str)> {
    let hex = layer.chain_id.hex();
    match layer.image.as_ref().is_some_and(|image| image.fixup_size.is_some()) {
        false if layer.image.is_none() => vec![(short_name(&format!("{hex}.view")), "")],
        false => vec![(layer.chain_id.link(), "")],
        true => {
            vec![(short_name(&format!("{hex}.fixup")), ""), (short_name(&format!("{hex}.image")), ".image")]
        }
    }
}

/// Returns for each layer its short names, followed by those of the layers below it.
fn stacks(layers: &[Layer]) -> HashMap<&ChainId, Vec<String>> {
    let mut stacks: HashMap<&ChainId, Vec<String>> = HashMap::new();
    for layer in layers {
        let mut stack: Vec<String> = names(layer).into_iter().map(|(short, _)| short).collect();
        stack.extend(
            layer.parent.as_ref().and_then(|parent| stacks.get(parent)).into_iter().flatten().cloned(),
        );
        stacks.insert(&layer.chain_id, stack);
    }
    stacks
}
