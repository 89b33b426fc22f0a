//! What a volume lacks as an additional image store of podman, buildah and CRI-O.
//!
//! A volume of EROFS images becomes a store by its view. A volume of directories is a store as it is, and containers use that one:
//! containers/storage maps IDs of a store's `overlay` directory without the mounts in it, so that a container in a user
//! namespace finds no layers in a view. A view of directories has the layers without images, for builds.
//!
//! ```text
//! overlay/<ID>/diff          the image or directory of the layer, mounted; a second time where an image is on other parents, too
//! overlay/<ID>.image/diff    the same where an image is laid over it, which is the diff then
//! overlay/<ID>/link          the short name of diff
//! overlay/<ID>/lower         l/<short name>:… of what is below diff
//! overlay/l/<short name>     ../<ID>/diff
//! overlay-layers/layers.json made again from cache.json, as are the records of images
//! overlay-layers/<ID>.tar-split.gz   a symbolic link to the file on the volume
//! view                       of which volume this is the view
//! ```
//!
//! Layers have the IDs that podman and buildah would give them: a build on one of the images finds its layers there. Those of
//! other names it would copy into its own store, and fail where one has a hard link to a file of a lower layer.
//!
//! containers/storage takes the names in `lower` as they are, and does not ask whose they are. So a layer of two images is two
//! names, and they are not merged beforehand: an overlay of both would swallow the whiteouts that are meant for what lies
//! below. The upper one has to be `diff`: a build compares its layer with the parent alone where the first name in its `lower` is
//! that of the parent's `diff`, and mounts the parent otherwise, for which there is no place in a store that is read-only
//! (`isParent`). What is copied out of the store (tar-split) is looked for in all of them, topmost first.
//!
//! A view of directories has short names of its own: containers/storage takes a name from the first store that has it, which is the
//! volume, and a build on a layer of the view would not find its parent there. Names of EROFS images stay, since what was built on
//! them has these names in its own `lower`.
//!
//! # All at once
//!
//! The store is a file system in memory with mounts in it. It is put together in a mount namespace of its own and attached
//! in one step, read-only and for everybody to read, so that a crash leaves nothing and nobody sees a half of it. It goes out of
//! sight in one step, too, after it was seen that no overlay stands on it and nobody has a file of it open.
//!
//! # What is believed
//!
//! `content`, whose digest was checked. Manifests and configs are held against their digests, and what `content` says of layers
//! against them. No path of the volume is followed through links; nothing of it is copied but those documents.

mod error;
mod tree;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;

pub use error::Error;

use error::io;
use larder_model::chain::{ChainId, short_name};
use larder_model::digest::Digest;
use larder_model::job::LayerFormat;
use larder_model::seal::{CacheManifest, Content, Layer};
use larder_sys::Dir;
use larder_sys::mount;
use larder_sys::mounts::Mounts;

/// The file that says of which volume a view is.
const NOTE: &str = "view";

/// Makes the view of the volume at `volume`, whose seal has `content`, and mounts it over the directory `at`. Does nothing
/// where it is already.
///
/// # Errors
/// [`Error`]; then nothing is mounted.
pub fn make(volume: &Path, content: &Content, at: &Path) -> Result<(), Error> {
    let at = at.canonicalize().map_err(io("opening", at))?;
    let volume = volume.canonicalize().map_err(io("opening the volume", volume))?;
    if volume.starts_with(&at) {
        return Err(Error::Inside(at.display().to_string()));
    }
    let root = Dir::open(&volume).map_err(io("opening the volume", &volume))?;
    let note = note(&root, &volume, content)?;
    if is_there(&at)? {
        return match Dir::open(&at).and_then(|dir| dir.read_file(NOTE.as_bytes(), 1 << 16)) {
            Ok(found) if found == note => Ok(()),
            _ => Err(Error::Taken(at.display().to_string())),
        };
    }
    let below = Dir::open(&at).map_err(io("opening", &at))?;
    if mount::is_mount_point(&below).map_err(io("examining", &at))? {
        return Err(Error::Taken(at.display().to_string()));
    }
    // Its end is the end of the namespace.
    let stage = &at;
    let made = thread::scope(|scope| scope.spawn(|| tree::assemble(&volume, content, &note, stage)).join());
    let made = made.map_err(|_| io("making", stage)(std::io::Error::other("a thread ended")))??;
    made.attach(&below).map_err(io("mounting over", stage))
}

/// Checks that podman and CRI-O can read the manifests and configs of a volume: one that they cannot takes the other images of all
/// stores out of their lists.
///
/// # Errors
/// [`Error::Documents`] for the first such image.
pub fn check(volume: &Path, content: &Content) -> Result<(), Error> {
    let root = Dir::open(volume).map_err(io("opening the volume", volume))?;
    tree::documents(&root, content).map(drop)
}

/// Whether a view is mounted at `at`.
///
/// # Errors
/// [`Error`]: the directory, or what is mounted, cannot be read.
pub fn is_there(at: &Path) -> Result<bool, Error> {
    let Some(at) = place(at)? else { return Ok(false) };
    Ok(mount::is_larder_view(&at).map_err(io("examining", &at))? == Some(true))
}

/// The directory without symbolic links, where there is one.
fn place(at: &Path) -> Result<Option<PathBuf>, Error> {
    match at.canonicalize() {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        found => found.map(Some).map_err(io("opening", at)),
    }
}

/// Unmounts the view at `at`. Does nothing where nothing is mounted.
///
/// # Errors
/// [`Error`]: it is in use, or something else is mounted there; then nothing has changed.
pub fn remove(at: &Path) -> Result<(), Error> {
    let Some(at) = place(at)? else { return Ok(()) };
    match mount::is_larder_view(&at).map_err(io("examining", &at))? {
        None => return Ok(()),
        Some(false) => return Err(Error::NotOurs(at.display().to_string())),
        Some(true) => {}
    }
    let busy = |who: String| Error::Busy { at: at.display().to_string(), who };
    let mounts = Mounts::read().map_err(io("reading what is mounted for", &at))?;
    if let Some(overlay) = mounts.overlay_on(&at) {
        return Err(busy(format!("the overlay at {} stands on it", overlay.display())));
    }
    for point in mounts.points_in(&at) {
        if !mount::is_idle(point).map_err(io("examining", point))? {
            return Err(busy(format!("somebody has a file below {} open", point.display())));
        }
    }
    mount::unmount_tree(&at).map_err(io("unmounting", &at))
}

/// A view of another volume, or of the same one at another place, has another note.
fn note(root: &Dir, volume: &Path, content: &Content) -> Result<Vec<u8>, Error> {
    let digest = CacheManifest::new(content.clone()).map_err(Error::Json)?.digest;
    let (device, inode) = root.stat_self().map_err(io("examining", volume))?.identity;
    Ok(format!("{digest} {device}:{inode} {}\n", volume.display()).into_bytes())
}

/// The IDs by which podman and buildah know layers (containers/image, `storage_dest.go`).
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

/// The IDs by which image stores made of a volume know its layers: in its view, and in the volume where that is a store.
pub fn layer_ids(content: &Content) -> impl Iterator<Item = String> {
    let direct = content.layer_format == LayerFormat::Overlay;
    let chains = content.layers.iter().filter(move |_| direct).map(|layer| layer.chain_id.hex().to_owned());
    ids(&content.layers).into_values().chain(chains)
}

/// The trees of a layer, topmost first: its short name, and what follows the ID in the name of its directory.
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

/// For each layer, the short names of it and of what is below it.
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
