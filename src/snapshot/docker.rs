//! What `docker save` writes: manifest.json, configs and uncompressed layers, all in the top directory of one tar.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::cache::Cache;
use super::target::{Place, Target};
use super::{Error, Exported, Monitor, layer, names};
use crate::model::digest::Digest;
use crate::model::seal::Image;

/// Writes the archive. The list of images comes first: everything in it is known before a layer is read.
pub(super) fn write(
    cache: &Cache,
    images: &[&Image],
    target: &mut dyn Target,
    monitor: &Monitor,
) -> Result<Vec<Exported>, Error> {
    let mut entries: Vec<Value> = Vec::new();
    let mut exported = Vec::new();
    let mut documents = Vec::new();
    let mut given: HashSet<String> = HashSet::new();
    for image in images {
        let read = cache.documents(image)?;
        let config = Digest::sha256(&read.config);
        // A digest is no tag: an image that is known by nothing else is there without a name, as docker has it.
        let name = names::tagged(image)?.filter(|name| given.insert(name.clone()));
        entries.push(json!({
            "Config": format!("{}.json", config.hex()),
            "RepoTags": name.iter().collect::<Vec<_>>(),
            "Layers": read.diff_ids.iter().map(layer_name).collect::<Vec<_>>(),
        }));
        let reference = image.reference.clone();
        exported.push(Exported { reference, name, manifest: None, config: config.clone() });
        documents.push((image, config, read));
    }
    let list = serde_json::to_vec(&entries);
    let list = list.map_err(|source| Error::Json { what: "manifest.json", source })?;
    target.file("manifest.json", &list)?;
    let mut there: HashSet<String> = HashSet::new();
    for (image, config, read) in documents {
        let path = format!("{}.json", config.hex());
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

fn layer_name(diff_id: &Digest) -> String {
    format!("{}.tar", diff_id.hex())
}
