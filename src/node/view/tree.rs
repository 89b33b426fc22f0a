//! Assembles the content of a view in a private mount namespace.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use super::error::Error;
use super::{NOTE, ids, names, stacks};
use crate::volume::store::Documents;
use crate::volume::{layout, store};
use crate::{rootfs, trees, verify};
use larder_model::chain::ChainId;
use larder_model::io_error::Context as _;
use larder_model::job::LayerFormat;
use larder_model::seal::Content;
use larder_sys::Dir;
use larder_sys::mount::{self, Mount};

/// Maximum size of all manifests, configs and indexes, bytes. They stay in memory while the view exists.
const MAX_DOCUMENTS: u64 = 256 << 20;

/// Assembles the view over `stage`, in a mount namespace of this thread.
pub(super) fn assemble(volume: &Path, content: &Content, note: &[u8], stage: &Path) -> Result<Mount, Error> {
    mount::private_namespace().context("creating a mount namespace for", stage.display())?;
    // Directories can only be mounted from file descriptors that were opened in this namespace.
    let root = &Dir::open(volume).context("opening the volume", volume.display())?;
    let documents = documents(root, content)?;
    let ids = ids(&content.layers);
    let id = |chain_id: &ChainId| ids.get(chain_id).map_or("", String::as_str);
    let files = match content.layer_format {
        LayerFormat::Erofs => store::image_store(content, &documents, &id),
        // The volume already has the images, so they are not listed again.
        LayerFormat::Overlay => store::layer_records(content, &documents, &id)
            .map(|layers| vec![layers, ("overlay-images/images.json".to_owned(), b"[]".to_vec())]),
    };
    let files = files.map_err(Error::Json)?;
    drop(documents);

    mount::memory_for_all(stage).context("mounting a file system in memory over", stage.display())?;
    mount::work_in(stage).context("working in", stage.display())?;
    for directory in ["overlay", "overlay/l", "overlay-layers", "overlay-images"] {
        make_dir(Path::new(directory))?;
    }
    for (path, bytes) in files {
        write(Path::new(&path), &bytes)?;
    }
    for lock in ["overlay-layers/layers.lock", "overlay-images/images.lock"] {
        write(Path::new(lock), b"")?;
    }
    layers(root, volume, content, &ids)?;
    write(Path::new(NOTE), note)?;
    mount::memory_read_only(stage).context("making read-only", stage.display())?;
    Ok(Mount::clone_of_tree(stage).context("cloning the mount of", stage.display())?)
}

/// Reads and checks the manifests and configs of all images.
pub(super) fn documents(root: &Dir, content: &Content) -> Result<Vec<Documents>, Error> {
    let sizes = content.images.iter().flat_map(|image| {
        [Some(&image.manifest), Some(&image.config), image.index.as_ref()].into_iter().flatten()
    });
    let sizes = sizes.filter_map(|digest| trees::file(root, &store::blob_path(digest)).ok()?.metadata().ok());
    let total = sizes.map(|facts| facts.len()).fold(0, u64::saturating_add);
    if total > MAX_DOCUMENTS {
        return Err(Error::TooMuch { have: total, most: MAX_DOCUMENTS });
    }
    Ok(verify::documents(root, content)?)
}

fn layers(
    root: &Dir,
    volume: &Path,
    content: &Content,
    ids: &HashMap<&ChainId, String>,
) -> Result<(), Error> {
    let stacks = stacks(&content.layers);
    let mut mounted: HashMap<String, PathBuf> = HashMap::new();
    for layer in &content.layers {
        let (Some(id), Some(stack)) = (ids.get(&layer.chain_id), stacks.get(&layer.chain_id)) else {
            continue;
        };
        let parts = layout::parts(content.layer_format, layer);
        for ((short, suffix), tree) in names(layer).into_iter().zip(&parts.trees) {
            let directory = Path::new("overlay").join(format!("{id}{suffix}"));
            make_dir(&directory)?;
            place(root, content.layer_format, tree, &directory.join("diff"), &mut mounted)?;
            let link = Path::new("overlay/l").join(short);
            symlink(format!("../{id}{suffix}/diff"), &link).context("linking", link.display())?;
        }
        let own = Path::new("overlay").join(id);
        if let Some((first, rest)) = stack.split_first() {
            write(&own.join("link"), first.as_bytes())?;
            if !rest.is_empty() {
                let lower: Vec<String> = rest.iter().map(|short| format!("l/{short}")).collect();
                write(&own.join("lower"), lower.join(":").as_bytes())?;
            }
        }
        if content.tar_split {
            // This checks that the path does not lead elsewhere. The volume no longer changes.
            trees::file(root, &parts.tar_split).map_err(rootfs::Error::from)?;
            let link = Path::new("overlay-layers").join(format!("{id}.tar-split.gz"));
            symlink(volume.join(&parts.tar_split), &link).context("linking", link.display())?;
        }
    }
    Ok(())
}

/// Mounts the tree at `path` of the volume over the new directory `at`. An image that is already mounted is
/// bind-mounted again.
fn place(
    root: &Dir,
    format: LayerFormat,
    path: &str,
    at: &Path,
    mounted: &mut HashMap<String, PathBuf>,
) -> Result<(), Error> {
    let doing = "mounting over";
    let again = match (format, mounted.get(path)) {
        (LayerFormat::Overlay, _) => {
            let tree = root.open_beneath(path.as_bytes()).context("opening", path)?;
            Mount::of_dir(&tree).context(doing, at.display())?
        }
        (LayerFormat::Erofs, Some(first)) => Mount::clone_of(first).context(doing, at.display())?,
        (LayerFormat::Erofs, None) => {
            // This also checks the image superficially.
            trees::tree(root, format, path).map_err(rootfs::Error::from)?;
            rootfs::erofs(root, path, at)?;
            mounted.insert(path.to_owned(), at.to_owned());
            return Ok(());
        }
    };
    make_dir(at)?;
    Ok(again.attach_read_only(at).context(doing, at.display())?)
}

/// Creates a directory with a mode that does not depend on the umask.
fn make_dir(path: &Path) -> Result<(), Error> {
    let made =
        fs::create_dir(path).and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)));
    Ok(made.context("creating", path.display())?)
}

/// Writes a file with a mode that does not depend on the umask. Creates the directory of an image's records
/// with the first of them.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.exists()) {
        make_dir(parent)?;
    }
    let written =
        fs::write(path, bytes).and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o644)));
    Ok(written.context("writing", path.display())?)
}
