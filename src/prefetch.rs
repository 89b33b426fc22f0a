//! Prefetching from volumes on slow storage: which files containers read first when they start.
//!
//! `prefetch.list` names these files. It is written with the seal and computed again by `verify`.
//! `larder prefetch` reads the files it names.
//!
//! A disk that was restored from a snapshot, or that is accessed over a network, takes milliseconds for each
//! first read. A container start performs some dozens of reads in sequence. Because the list names the files
//! beforehand, they can all be requested at once.
//!
//! The crate `larder_prefetch` finds the files of an image and has the format of the list.

mod error;
mod files;
pub mod placement;
mod read;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::Path;

pub use error::Error;
pub use read::Totals;

use crate::trees;
use crate::volume::store::Documents;
use crate::volume::{layout, seal};
use larder_layer::path::{join, split};
use larder_model::digest::Digest;
use larder_model::job::LayerFormat;
use larder_model::manifest::Process;
use larder_model::reference::ImageReference;
use larder_model::seal::{Content, Image};
use larder_prefetch::list::{self, Entry, Section};
use larder_prefetch::start;
use larder_sys::Dir;

/// Maximum number of layers that are merged: the limit of overlayfs (`OVL_MAX_STACK`). No container starts
/// from an image with more.
const MAX_LAYERS: usize = 500;

/// Maximum size of the list, bytes; an image has about 10 KiB of it.
const MAX_LIST: u64 = 64 << 20;

/// Maximum number of names looked up by one command.
const MAX_LOOKUPS: usize = 1 << 20;

/// Computes `prefetch.list` of the volume at `root`, on which all layers are present. `documents` has one
/// element for each of `content.images`.
///
/// # Errors
/// The file system fails in a way that an image cannot cause.
pub fn list(root: &Dir, content: &Content, documents: &[Documents]) -> Result<Vec<u8>, Error> {
    // Names of the same image have the same files.
    let mut computed: BTreeMap<&Digest, Vec<Entry>> = BTreeMap::new();
    let mut sections = Vec::new();
    for (image, documents) in content.images.iter().zip(documents) {
        let files = match computed.get(&image.manifest) {
            Some(files) => files.clone(),
            None => files(root, content, image, &Process::parse(&documents.config))
                .map_err(|source| Error::Finding { image: image.name.clone(), source })?,
        };
        computed.insert(&image.manifest, files.clone());
        let name = image.name.clone().into_bytes();
        sections.push(Section { manifest: image.manifest.clone(), name, files });
    }
    Ok(list::render(&sections))
}

fn files(root: &Dir, content: &Content, image: &Image, process: &Process) -> io::Result<Vec<Entry>> {
    if image.chain.len() > MAX_LAYERS {
        return Ok(Vec::new());
    }
    let mut trees = Vec::new();
    for chain_id in image.chain.iter().rev() {
        let layer = content.layers.iter().find(|layer| layer.chain_id == *chain_id);
        trees.extend(layer.map(|layer| layout::parts(content.layer_format, layer).trees).unwrap_or_default());
    }
    let open = |path: String| match trees::tree(root, content.layer_format, &path) {
        Ok(tree) => Ok((path, tree)),
        Err(error) => Err(error.source),
    };
    start::files(trees.into_iter().map(open).collect::<io::Result<_>>()?, process)
}

/// Options of [`read()`]: which images and files.
#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    /// Read only these images; all images if empty.
    pub images: Vec<ImageReference>,
    /// Also read every other file of their layers, after the listed ones.
    pub all: bool,
}

/// Reads files of the sealed volume at `path` into the page cache. The volume is not trusted: a listed file
/// is read only if it is a regular file in a layer of the image and no symbolic link leads to it.
///
/// # Errors
/// The volume is not sealed, the list is missing or damaged, an image is not on the volume, or a file cannot
/// be read.
pub fn read(path: &Path, options: &ReadOptions) -> Result<Totals, Error> {
    let content = seal::read(path)?.content;
    let shown = path.display().to_string();
    let root = Dir::open(path).map_err(|e| Error::reading(shown.as_bytes(), e))?;
    let images = choose(&content, &options.images)?;
    let trees: Vec<Vec<String>> = images.iter().map(|image| trees_of(&content, image)).collect();
    let listed = listed(&root, &shown, &images, &trees, options.all)?;
    match content.layer_format {
        LayerFormat::Overlay => read_directories(&root, &trees, listed, options.all),
        LayerFormat::Erofs => read_images(&root, &trees, listed, options.all),
    }
}

fn read_directories(
    root: &Dir,
    trees: &[Vec<String>],
    listed: Vec<Vec<Entry>>,
    all: bool,
) -> Result<Totals, Error> {
    read::look_up(root, &lookups(trees, &listed));
    let mut seen: HashSet<Vec<u8>> = HashSet::new();
    let paths = listed.into_iter().flatten().map(|entry| join(entry.tree.as_bytes(), &entry.path));
    let mut paths: Vec<Vec<u8>> = paths.filter(|path| seen.insert(path.clone())).collect();
    if all {
        let found = read::side_by_side(&distinct(trees), |tree| {
            every_file(root, tree.as_bytes()).map_err(|e| Error::reading(tree.as_bytes(), e))
        })?;
        paths.extend(found.into_iter().flatten().filter(|path| !seen.contains(path)));
    }
    read::read(root, &paths).map_err(|(path, source)| Error::reading(&path, source))
}

/// Reads files through their EROFS images, so that the metadata is cached too. With `all`, the image files
/// themselves are read as well.
fn read_images(
    root: &Dir,
    trees: &[Vec<String>],
    listed: Vec<Vec<Entry>>,
    all: bool,
) -> Result<Totals, Error> {
    let mut seen: HashSet<Entry> = HashSet::new();
    let entries: Vec<Entry> =
        listed.into_iter().flatten().filter(|entry| seen.insert(entry.clone())).collect();
    let totals = read::read_in_images(root, &entries);
    let mut totals = totals.map_err(|(path, source)| Error::reading(&path, source))?;
    if all {
        let paths: Vec<Vec<u8>> = distinct(trees).into_iter().map(String::into_bytes).collect();
        let whole = read::read(root, &paths).map_err(|(path, source)| Error::reading(&path, source))?;
        totals.files += whole.files;
        totals.bytes += whole.bytes;
    }
    Ok(totals)
}

/// Returns the trees of an image's layers.
fn trees_of(content: &Content, image: &Image) -> Vec<String> {
    let layers = content.layers.iter().filter(|layer| image.chain.contains(&layer.chain_id));
    layers.flat_map(|layer| layout::parts(content.layer_format, layer).trees).collect()
}

fn distinct(trees: &[Vec<String>]) -> Vec<String> {
    let mut trees: Vec<String> = trees.iter().flatten().cloned().collect();
    trees.sort_unstable();
    trees.dedup();
    trees
}

/// Selects the wanted images; all if `wanted` is empty.
fn choose<'a>(content: &'a Content, wanted: &[ImageReference]) -> Result<Vec<&'a Image>, Error> {
    if wanted.is_empty() {
        return Ok(content.images.iter().collect());
    }
    let find = |reference: &ImageReference| {
        let (given, name) = (reference.given(), reference.to_string());
        let found = content.images.iter().find(|image| image.reference == given || image.name == name);
        found.ok_or_else(|| Error::NoImage {
            given: given.to_owned(),
            images: content
                .images
                .iter()
                .map(|image| image.reference.as_str())
                .collect::<Vec<_>>()
                .join(", "),
        })
    };
    wanted.iter().map(find).collect()
}

/// Returns the listed files of each of `images`. With `all`, the list can be missing or malformed.
fn listed(
    root: &Dir,
    volume: &str,
    images: &[&Image],
    trees: &[Vec<String>],
    all: bool,
) -> Result<Vec<Vec<Entry>>, Error> {
    let bytes = match root.read_file(layout::PREFETCH.as_bytes(), MAX_LIST) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && all => return Ok(Vec::new()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(Error::NoList { path: volume.to_owned() });
        }
        other => other.map_err(|e| Error::reading(layout::PREFETCH.as_bytes(), e))?,
    };
    let sections = match list::parse(&bytes) {
        Err(_) if all => return Ok(Vec::new()),
        other => other.map_err(Error::Malformed)?,
    };
    let files_of_image = |(image, trees): (&&Image, &Vec<String>)| {
        let section = sections.iter().find(|section| section.manifest == image.manifest);
        let files = section.map(|section| section.files.clone());
        let files = files.filter(|files| files.iter().all(|entry| trees.contains(&entry.tree)));
        files.ok_or_else(|| Error::Disagrees { image: image.name.clone() })
    };
    images.iter().zip(trees).map(files_of_image).collect()
}

/// Returns names that overlayfs looks up on the way to the listed files: a directory in each layer that can
/// have a part of it. On a cold disk this is a quarter of the reads of a start.
fn lookups(trees: &[Vec<String>], listed: &[Vec<Entry>]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let names_of_image = |(trees, files): (&Vec<String>, &Vec<Entry>)| {
        let names: HashSet<_> = files.iter().map(|entry| split(&entry.path)).collect();
        let in_tree = |tree: &String| {
            let dir = |(dir, name): &(&[u8], &[u8])| (join(tree.as_bytes(), dir), name.to_vec());
            names.iter().map(dir).collect::<Vec<_>>()
        };
        trees.iter().flat_map(in_tree).collect::<Vec<_>>()
    };
    let mut names: Vec<_> = trees.iter().zip(listed).flat_map(names_of_image).take(MAX_LOOKUPS).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Returns the paths from the volume root of all files of the tree at `top`, ordered by inode. On most file
/// systems that is the order on the disk.
fn every_file(root: &Dir, top: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    files::each(root.open_beneath(top)?, |_, _, path, stat| {
        if stat.size > 0 {
            found.push((stat.identity.1, join(top, &path)));
        }
        Ok(())
    })?;
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}
