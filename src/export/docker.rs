//! The format of `docker save`: manifest.json, configs and uncompressed layers, all at the top level of one
//! tar.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::cache::Cache;
use super::target::{FileInfo, Target};
use super::{Error, Exported, Monitor, layer, names};
use larder_model::digest::Digest;
use larder_model::seal::Image;

/// Name of the file with the list of images.
pub(super) const LIST: &str = "manifest.json";

/// The list of images in the archive.
#[derive(Debug, Default)]
pub(super) struct List {
    entries: Vec<Value>,
    given: HashSet<String>,
}

impl List {
    /// Adds an image whose config and layers have these paths. Returns its name. A digest is not a tag, so an
    /// image with only a digest has no name in the list, as in docker's.
    pub(super) fn add(
        &mut self,
        image: &Image,
        config: String,
        layers: impl Iterator<Item = String>,
    ) -> Result<Option<String>, Error> {
        let name = names::tagged(image)?.filter(|name| self.given.insert(name.clone()));
        let (tags, layers): (Vec<_>, Vec<_>) = (name.iter().collect(), layers.collect());
        self.entries.push(json!({"Config": config, "RepoTags": tags, "Layers": layers}));
        Ok(name)
    }

    pub(super) fn to_json(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(&self.entries).map_err(|source| Error::Json { what: LIST, source })
    }
}

/// Writes the archive. The list of images comes first, because its content is known before a layer is read.
pub(super) fn write(
    cache: &Cache,
    images: &[&Image],
    target: &mut dyn Target,
    monitor: &Monitor,
) -> Result<Vec<Exported>, Error> {
    let mut list = List::default();
    let mut exported = Vec::new();
    let mut documents = Vec::new();
    for image in images {
        let read = cache.documents(image)?;
        let config = Digest::sha256(&read.config);
        let name = list.add(image, config_name(&config), read.diff_ids.iter().map(layer_name))?;
        let reference = image.reference.clone();
        exported.push(Exported { reference, name, manifest: None, config: config.clone() });
        documents.push((image, config, read));
    }
    target.file(LIST, &list.to_json()?)?;
    let mut written: HashSet<String> = HashSet::new();
    for (image, config, read) in documents {
        let path = config_name(&config);
        if written.insert(path.clone()) {
            target.file(&path, &read.config)?;
        }
        for (chain_id, diff_id) in image.chain.iter().zip(&read.diff_ids) {
            let layer = cache.layer(chain_id, diff_id)?;
            let info = FileInfo { path: layer_name(diff_id), size: layer.size };
            if written.insert(info.path.clone()) {
                target.stream(Some(&info), &mut |out| {
                    layer::rebuild_into(cache, layer, monitor, out)?;
                    Ok(info.clone())
                })?;
            }
        }
    }
    Ok(exported)
}

fn config_name(config: &Digest) -> String {
    format!("{}.json", config.hex())
}

fn layer_name(diff_id: &Digest) -> String {
    format!("{}.tar", diff_id.hex())
}
