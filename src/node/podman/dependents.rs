//! Images and containers of a node's own store that stand on the layers of a volume.
//!
//! podman, buildah and CRI-O keep what they add in the store of the node, and take the layers below from additional stores: an image that
//! is built on one of the volume, a newer tag with some of its layers, a container that has stopped. Without the volume such an image
//! cannot be listed or started; CRI-O then lists no image at all.
//!
//! The records are those of containers/storage (`layers.json`, `images.json`, `containers.json`, and the `volatile-` ones beside them).

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use larder_model::escape::escape;
use larder_sys::Dir;

/// Maximum size of a file of records, bytes.
const MAX: u64 = 256 << 20;

/// Maximum number of names in a message.
const SHOWN: usize = 8;

/// The records of a store cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("reading {}: {source}", path.display())]
pub struct Error {
    /// The file.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

/// An image or a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependent {
    /// Its ID.
    pub id: String,
    /// Its first name; the ID if it has none.
    pub name: String,
}

/// What stands on the layers of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dependents {
    /// Images.
    pub images: Vec<Dependent>,
    /// Containers, running or not.
    pub containers: Vec<Dependent>,
}

/// Reads which images and containers of the store at `graph_root` need a layer that is one of `only`: layers that no other store has.
///
/// # Errors
/// [`Error`]: records that cannot be read. A store that is not there has none.
pub fn find(graph_root: &Path, only: &HashSet<String>) -> Result<Dependents, Error> {
    let root = match Dir::open(graph_root) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Dependents::default()),
        other => other.map_err(|source| Error { path: graph_root.to_owned(), source })?,
    };
    let store = Store { root: &root, path: graph_root };
    let layers: HashMap<String, String> =
        store.records::<Layer>("layers")?.into_iter().map(|layer| (layer.id, layer.parent)).collect();
    let stands = |layer: &String| stands_on(layer, &layers, only);
    let images = store
        .records::<Image>("images")?
        .into_iter()
        .filter(|image| [&image.layer].into_iter().chain(image.mapped_layers.iter().flatten()).any(stands));
    let images: Vec<Dependent> = images.map(|image| dependent(image.id, image.names)).collect();
    let containers = store.records::<Container>("containers")?.into_iter();
    let containers = containers.filter(|container| stands(&container.layer));
    let containers = containers.map(|container| dependent(container.id, container.names)).collect();
    Ok(Dependents { images, containers })
}

fn dependent(id: String, names: Option<Vec<String>>) -> Dependent {
    let name = names.and_then(|names| names.into_iter().next()).unwrap_or_else(|| id.clone());
    Dependent { id, name }
}

/// Whether the first layer that the store itself does not have, from `layer` downwards, is one of `only`.
fn stands_on(layer: &String, layers: &HashMap<String, String>, only: &HashSet<String>) -> bool {
    let (mut layer, mut steps) = (layer, layers.len());
    while let Some(parent) = layers.get(layer) {
        // Parents in a circle end nowhere.
        if steps == 0 {
            return false;
        }
        (layer, steps) = (parent, steps - 1);
    }
    only.contains(layer)
}

#[derive(Deserialize)]
struct Layer {
    id: String,
    #[serde(default)]
    parent: String,
}

#[derive(Deserialize)]
struct Image {
    id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(default)]
    layer: String,
    #[serde(default, rename = "mapped-layers")]
    mapped_layers: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Container {
    id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(default)]
    layer: String,
}

struct Store<'a> {
    root: &'a Dir,
    path: &'a Path,
}

impl Store<'_> {
    /// The records of `kind`, both the lasting ones and those that a boot takes away.
    fn records<T: DeserializeOwned>(&self, kind: &str) -> Result<Vec<T>, Error> {
        let directory = format!("overlay-{kind}");
        let dir = match self.root.open_dir(directory.as_bytes()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|source| Error { path: self.path.join(&directory), source })?,
        };
        let mut records = Vec::new();
        for name in [format!("{kind}.json"), format!("volatile-{kind}.json")] {
            let failed = |source| Error { path: self.path.join(&directory).join(&name), source };
            let bytes = match dir.read_file(name.as_bytes(), MAX) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(failed)?,
            };
            // One that was never written to is empty.
            if !bytes.is_empty() {
                let read: Option<Vec<T>> = serde_json::from_slice(&bytes).map_err(|e| failed(e.into()))?;
                records.extend(read.into_iter().flatten());
            }
        }
        Ok(records)
    }
}

impl Dependents {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty() && self.containers.is_empty()
    }

    /// Adds those of another store.
    pub fn extend(&mut self, other: Dependents) {
        self.images.extend(other.images);
        self.containers.extend(other.containers);
    }
}

impl fmt::Display for Dependents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (kind, of_it) in [("images", &self.images), ("containers", &self.containers)] {
            if of_it.is_empty() {
                continue;
            }
            let shown: Vec<String> = of_it.iter().take(SHOWN).map(|found| escape(&found.name)).collect();
            write!(f, "{separator}{kind} {}", shown.join(", "))?;
            if of_it.len() > SHOWN {
                write!(f, " and {} more", of_it.len() - SHOWN)?;
            }
            separator = "; ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn names(of_it: &[Dependent]) -> Vec<&str> {
        of_it.iter().map(|found| found.name.as_str()).collect()
    }

    #[test]
    fn what_stands_on_layers_that_only_the_volume_has() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let only = HashSet::from(["gone".to_owned()]);
        assert!(find(&root.join("none"), &only).unwrap().is_empty());
        assert!(find(root, &only).unwrap().is_empty());
        write(
            "overlay-layers/layers.json",
            r#"[{"id":"own"},{"id":"built","parent":"gone"},{"id":"more","parent":"built"},{"id":"other","parent":"elsewhere"},
                {"id":"a","parent":"b"},{"id":"b","parent":"a"}]"#,
        );
        write("overlay-layers/volatile-layers.json", r#"[{"id":"running","parent":"gone"}]"#);
        write(
            "overlay-images/images.json",
            r#"[{"id":"1","names":["localhost/built:1"],"layer":"more"},{"id":"2","names":null,"layer":"gone"},
                {"id":"3","names":["own"],"layer":"own"},{"id":"4","layer":"other"},{"id":"5","layer":"a"},{"id":"6"},
                {"id":"7","names":["mapped"],"layer":"own","mapped-layers":["built"]}]"#,
        );
        write("overlay-containers/containers.json", r#"[{"id":"8","names":["one"],"layer":"running"}]"#);
        write("overlay-containers/volatile-containers.json", "");
        let found = find(root, &only).unwrap();
        assert_eq!(names(&found.images), ["localhost/built:1", "2", "mapped"]);
        assert_eq!(names(&found.containers), ["one"]);
        assert_eq!(found.to_string(), "images localhost/built:1, 2, mapped; containers one");
        write("overlay-images/images.json", "[");
        let error = find(root, &only).unwrap_err();
        assert!(error.path.ends_with("overlay-images/images.json"), "{error}");
    }
}
