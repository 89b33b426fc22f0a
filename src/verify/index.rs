//! Verification of everything except layers: documents against their digests, index files computed again, and
//! no unexpected names.

use std::collections::{BTreeMap, BTreeSet};

use super::error::{Error, Fault};
use super::structure::Structure;
use crate::prefetch;
use crate::volume::layout;
use crate::volume::store::{self, Documents};
use larder_layer::path::{self, escape, shown};
use larder_model::chain::ChainId;
use larder_model::digest::{Digest, Hasher};
use larder_model::job::LayerFormat;
use larder_model::manifest::{Document, ImageConfig};
use larder_model::reference::ImageReference;
use larder_model::seal::{CacheManifest, Content, Image, Layer, Totals};
use larder_sys::Dir;
use larder_sys::walk::{Visitor, walk};

/// Maximum size of a manifest, index or config, in bytes.
const MAX_DOCUMENT: u64 = 4 << 20;

/// Maximum size of an index file of Larder, in bytes.
const MAX_INDEX: u64 = 256 << 20;

/// Reads the documents of every image, and checks them against their digests and `cache.json` against them.
pub(super) fn documents(root: &Dir, content: &Content) -> Result<Vec<Documents>, Error> {
    let layers: BTreeMap<&ChainId, &Layer> =
        content.layers.iter().map(|layer| (&layer.chain_id, layer)).collect();
    let mut blobs: BTreeMap<Digest, u64> = BTreeMap::new();
    let mut used = BTreeSet::new();
    let mut sources = BTreeSet::new();
    let mut all = Vec::new();
    for image in &content.images {
        let states = |what: String| Error::volume("cache.json", Fault::Statement(what));
        if image
            .reference
            .parse::<ImageReference>()
            .is_ok_and(|reference| reference.to_string() != image.name)
        {
            return Err(states(format!("{} is {}", image.reference, image.name)));
        }
        let manifest_bytes = document(root, &image.manifest)?;
        let parsed = Document::parse(&manifest_bytes, None);
        let Ok(Document::Image(manifest)) = parsed else {
            return Err(states(format!("{} is the manifest of {}", image.manifest, image.reference)));
        };
        if manifest.config.digest != image.config {
            return Err(states(format!("{} has the config {}", image.reference, image.config)));
        }
        let config_bytes = document(root, &image.config)?;
        let config = ImageConfig::parse(&config_bytes)
            .map_err(|e| Error::volume(store::blob_path(&image.config), Fault::Config(e.to_string())))?;
        if ChainId::chain(&config.diff_ids) != image.chain || config.diff_ids.len() != manifest.layers.len() {
            return Err(states(format!("{} has the listed layers", image.reference)));
        }
        check_layers(image, &config.diff_ids, &layers)?;
        used.extend(image.chain.iter());
        let blobs_of = config.diff_ids.into_iter().zip(&manifest.layers);
        sources.extend(
            blobs_of.map(|(diff_id, blob)| source(&diff_id, &blob.digest, blob.size, &blob.media_type)),
        );
        blobs.extend(manifest.layers.iter().map(|layer| (layer.digest.clone(), layer.size)));
        let index = image.index.as_ref().map(|digest| document(root, digest)).transpose()?;
        all.push(Documents {
            manifest: manifest_bytes,
            manifest_type: manifest.media_type,
            config: config_bytes,
            created: config.created,
            index,
        });
    }
    if used.len() != content.layers.len() {
        return Err(Error::volume(
            "cache.json",
            Fault::Statement("its layers are exactly those of its images".into()),
        ));
    }
    for layer in &content.layers {
        // The same change set can be in different blobs or on different parents in two images. It came from
        // one of them.
        let from = source(&layer.diff_id, &layer.blob, layer.compressed_size, &layer.media_type);
        if !sources.contains(&from) {
            let what = format!("layer {} came from a blob of its images", layer.chain_id);
            return Err(Error::volume("cache.json", Fault::Statement(what)));
        }
    }
    let totals = Totals {
        layers: content.layers.len() as u64,
        entries: content.layers.iter().map(|layer| layer.entries).sum(),
        compressed_size: blobs.values().sum(),
        size: content.layers.iter().map(|layer| layer.size).sum(),
    };
    if totals != content.totals {
        return Err(Error::volume(
            "cache.json",
            Fault::Statement(format!("the totals are {:?}", content.totals)),
        ));
    }
    Ok(all)
}

/// Returns the properties of a layer in a manifest.
fn source(diff_id: &Digest, blob: &Digest, size: u64, media_type: &str) -> (Digest, Digest, u64, String) {
    (diff_id.clone(), blob.clone(), size, media_type.to_owned())
}

fn check_layers(
    image: &Image,
    diff_ids: &[Digest],
    layers: &BTreeMap<&ChainId, &Layer>,
) -> Result<(), Error> {
    let mut parent = None;
    for (chain_id, diff_id) in image.chain.iter().zip(diff_ids) {
        let holds =
            layers.get(chain_id).is_some_and(|l| l.parent.as_ref() == parent && l.diff_id == *diff_id);
        if !holds {
            let what = format!("it contains the layer {chain_id} of {}", image.reference);
            return Err(Error::volume("cache.json", Fault::Statement(what)));
        }
        parent = Some(chain_id);
    }
    Ok(())
}

fn document(root: &Dir, digest: &Digest) -> Result<Vec<u8>, Error> {
    let path = store::blob_path(digest);
    let bytes = read(root, &path, MAX_DOCUMENT)?;
    if Hasher::digest_of(digest.algorithm(), &bytes) != *digest {
        return Err(Error::volume(path, Fault::Digest(digest.to_string())));
    }
    Ok(bytes)
}

/// Compares every file outside layer trees with its expected content, and refuses unexpected names.
pub(super) fn check(
    root: &Dir,
    sealed: &CacheManifest,
    documents: &[Documents],
    structure: Structure,
) -> Result<(), Error> {
    let content = &sealed.content;
    let mut expected: BTreeMap<String, Vec<u8>> = store::files(content, documents)
        .map_err(|e| Error::volume("cache.json", Fault::Statement(e.to_string())))?
        .into_iter()
        .collect();
    let mut links: BTreeMap<String, String> = BTreeMap::new();
    let mut explained: BTreeSet<String> =
        BTreeSet::from(["cache.json".to_owned(), "cache.json.sig".to_owned()]);
    let mut empty: BTreeSet<String> = BTreeSet::new();
    for layer in &content.layers {
        let parts = layout::parts(content.layer_format, layer);
        explained.extend(parts.trees);
        explained.insert(parts.tar_split);
        if let (Some(path), Some(verity)) =
            (parts.verity, layer.image.as_ref().and_then(|image| image.verity.as_ref()))
        {
            expected.insert(path, verity.sidecar().into_bytes());
        }
    }
    match content.layer_format {
        LayerFormat::Overlay => image_store(content, &mut expected, &mut links),
        LayerFormat::Erofs => empty.extend(["erofs/chain".to_owned(), "erofs/tar-split".to_owned()]),
    }
    explained.insert(layout::PREFETCH.to_owned());
    for name in ["lock", "use", "job.json", "journal"] {
        explained.insert(format!(".larder/{name}"));
    }
    for (path, want) in &expected {
        if read(root, path, MAX_INDEX)? != *want {
            return Err(Error::volume(path, Fault::Index));
        }
    }
    explained.extend(expected.into_keys());
    let mut directories = parents(explained.iter().chain(links.keys()).chain(&empty));
    directories.extend(empty);
    structure.top(root)?;
    let mut names = Names { directories, links, explained, structure };
    walk(root.try_clone().map_err(|e| Error::io("opening", ".", e))?, &mut names)?;
    match names.links.keys().next() {
        Some(missing) => Err(Error::volume(missing, Fault::Missing)),
        None => Ok(()),
    }
}

/// Adds the files of a containers/storage store other than its index files.
fn image_store(
    content: &Content,
    expected: &mut BTreeMap<String, Vec<u8>>,
    links: &mut BTreeMap<String, String>,
) {
    expected.insert("overlay-layers/layers.lock".into(), Vec::new());
    expected.insert("overlay-images/images.lock".into(), Vec::new());
    let by_chain: BTreeMap<&ChainId, &Layer> =
        content.layers.iter().map(|layer| (&layer.chain_id, layer)).collect();
    for layer in &content.layers {
        let hex = layer.chain_id.hex();
        let link = layer.chain_id.link();
        links.insert(format!("overlay/l/{link}"), format!("../{hex}/diff"));
        expected.insert(format!("overlay/{hex}/link"), link.into_bytes());
        if layer.parent.is_some() {
            expected.insert(format!("overlay/{hex}/lower"), lower(layer, &by_chain).into_bytes());
        }
    }
}

/// Compares `prefetch.list` with the list computed from the layers, which are verified.
pub(super) fn check_prefetch(root: &Dir, content: &Content, documents: &[Documents]) -> Result<(), Error> {
    let found = read(root, layout::PREFETCH, MAX_INDEX)?;
    match prefetch::list(root, content, documents)? == found {
        true => Ok(()),
        false => Err(Error::volume(layout::PREFETCH, Fault::Prefetch)),
    }
}

/// Returns all parent directories of `paths`.
fn parents<'a>(paths: impl Iterator<Item = &'a String>) -> BTreeSet<String> {
    let mut directories = BTreeSet::new();
    for path in paths {
        let mut path = path.as_str();
        while let Some((above, _)) = path.rsplit_once('/') {
            directories.insert(above.to_owned());
            path = above;
        }
    }
    directories
}

fn lower(layer: &Layer, layers: &BTreeMap<&ChainId, &Layer>) -> String {
    let mut line = Vec::new();
    let mut parent = layer.parent.as_ref();
    while let Some(chain_id) = parent {
        line.push(format!("l/{}", chain_id.link()));
        parent = layers.get(chain_id).and_then(|layer| layer.parent.as_ref());
    }
    line.join(":")
}

/// The expected names outside layer trees.
struct Names {
    directories: BTreeSet<String>,
    /// Symbolic links that were not found yet, and their targets.
    links: BTreeMap<String, String>,
    /// Files, and the roots of trees that are checked elsewhere.
    explained: BTreeSet<String>,
    structure: Structure,
}

impl Visitor for Names {
    type Error = Error;

    fn enter(&mut self, dir: &Dir, path: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let mut names = dir.names().map_err(|e| self.failed(path, e))?;
        names.sort();
        let mut directories = Vec::new();
        for name in names {
            let at = escape(&path::join(path, &name));
            let stat = dir.stat(&name).map_err(|e| self.failed(at.as_bytes(), e))?;
            if let Some(want) = self.links.remove(&at) {
                let found = dir.read_link(&name).map_err(|_| Error::volume(&at, Fault::Index))?;
                if found != want.as_bytes() {
                    let found = escape(&found);
                    return Err(Error::volume(&at, Fault::Target { want, found }));
                }
            } else if self.directories.contains(&at) && stat.is_dir() {
                self.structure.directory(&at, &stat)?;
                directories.push(name);
            } else if at != "lost+found" {
                let is_tree = at.ends_with("/diff");
                if !self.explained.contains(&at) || is_tree != stat.is_dir() {
                    return Err(Error::volume(&at, Fault::Unexplained));
                }
                if !is_tree {
                    self.structure.file(&at, &stat)?;
                }
            }
        }
        Ok(directories)
    }

    fn failed(&mut self, path: &[u8], error: std::io::Error) -> Error {
        Error::io("walking", shown(path), error)
    }
}

fn read(root: &Dir, path: &str, limit: u64) -> Result<Vec<u8>, Error> {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    let opened = match dir {
        "" => root.try_clone(),
        dir => root.open_beneath(dir.as_bytes()),
    };
    let read = opened.and_then(|dir| dir.read_file(name.as_bytes(), limit));
    read.map_err(|e| Error::opening(path, &e))
}
