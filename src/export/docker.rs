//! What `docker save` writes: manifest.json, configs and uncompressed layers, all in the top directory of one tar.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::cache::Cache;
use super::target::{Place, Target};
use super::{Error, Exported, Monitor, layer, names};
use larder_model::digest::Digest;
use larder_model::seal::Image;

/// The file with the list of images.
pub(super) const LIST: &str = "manifest.json";

/// The list of images.
#[derive(Debug, Default)]
pub(super) struct List {
    entries: Vec<Value>,
    given: HashSet<String>,
}

impl List {
    /// Adds an image whose config and layers have these paths. Answers its name: a digest is no tag, so an image that is
    /// known by nothing else is there without one, as docker has it.
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

/// Writes the archive. The list of images comes first: everything in it is known before a layer is read.
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
    let mut there: HashSet<String> = HashSet::new();
    for (image, config, read) in documents {
        let path = config_name(&config);
        if there.insert(path.clone()) {
            target.file(&path, &read.config)?;
        }
        for (chain_id, diff_id) in image.chain.iter().zip(&read.diff_ids) {
            let layer = cache.layer(chain_id, diff_id)?;
            let place = Place { path: layer_name(diff_id), size: layer.size };
            if there.insert(place.path.clone()) {
                target.stream(Some(&place), &mut |out| {
                    layer::rebuild_into(cache, layer, monitor, out)?;
                    Ok(place.clone())
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
