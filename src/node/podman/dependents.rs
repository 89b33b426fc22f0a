//! Images and containers in a node's own store that use layers of a volume.
//!
//! podman, buildah and CRI-O write to the node's own store, and take the layers below from additional stores.
//! Examples are an image built on one of the volume, a newer tag with some of its layers, and a stopped
//! container. Without the volume such an image cannot be listed or started, and CRI-O then lists no images at
//! all.
//!
//! The records are those of containers/storage (`layers.json`, `images.json`, `containers.json`, and the
//! `volatile-` ones next to them).

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::{fmt, io};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use larder_model::escape::escape;
use larder_sys::Dir;

/// Maximum size of a records file, bytes.
const MAX: u64 = 256 << 20;

/// Maximum number of names in a message.
const SHOWN: usize = 8;

/// The records of a store cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("reading {}: {source}", path.display())]
pub struct Error {
    /// Path of the file or directory.
    pub path: PathBuf,
    /// The error of the system call or parser.
    pub r#source: io::Error,
}

/// An image or container that depends on the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependent {
    /// The ID of the image or container.
    pub id: String,
    /// The first name, or the ID if it has none.
    pub name: String,
}

/// The images and containers that use layers of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dependents {
    /// The images that depend on the volume.
    pub images: Vec<Dependent>,
    /// The containers, running or not.
    pub containers: Vec<Dependent>,
}

/// Finds the images and containers of the store at `graph_root` that need one of the layers `only`, which no
/// other store has.
///
/// # Errors
/// The records cannot be read. A missing store has none.
pub fn find(graph_root: &Path, only: &HashSet<String>) -> Result<Dependents, Error> {
    let root = match Dir::open(graph_root) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Dependents::default()),
        other => other.map_err(|source| Error { path: graph_root.to_owned(), source })?,
    };
    let store = Store { root: &root, path: graph_root };
    let layers: HashMap<String, String> =
        store.records::<Layer>("layers")?.into_iter().map(|layer| (layer.id, layer.parent)).collect();
    let depends = |layer: &String| depends_on(layer, &layers, only);
    let images = store
        .records::<Image>("images")?
        .into_iter()
        .filter(|image| [&image.layer].into_iter().chain(image.mapped_layers.iter().flatten()).any(depends));
    let images: Vec<Dependent> = images.map(|image| dependent(image.id, image.names)).collect();
    let containers = store.records::<Container>("containers")?.into_iter();
    let containers = containers.filter(|container| depends(&container.layer));
    let containers = containers.map(|container| dependent(container.id, container.names)).collect();
    Ok(Dependents { images, containers })
}

fn dependent(id: String, names: Option<Vec<String>>) -> Dependent {
    let name = names.and_then(|names| names.into_iter().next()).unwrap_or_else(|| id.clone());
    Dependent { id, name }
}

/// Reports whether the first layer below `layer` that the store itself does not have is one of `only`.
fn depends_on(layer: &String, layers: &HashMap<String, String>, only: &HashSet<String>) -> bool {
    let (mut layer, mut steps) = (layer, layers.len());
    while let Some(parent) = layers.get(layer) {
        // A cycle of parents has no such layer.
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
    /// Reads the records of `kind`, both the permanent ones and those that a reboot discards.
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
            // A file that was never written is empty.
            if !bytes.is_empty() {
                let read: Option<Vec<T>> = serde_json::from_slice(&bytes).map_err(|e| failed(e.into()))?;
                records.extend(read.into_iter().flatten());
            }
        }
        Ok(records)
    }
}

impl Dependents {
    /// Reports whether there are no images and no containers.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty() && self.containers.is_empty()
    }

    /// Adds the images and containers of another store.
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
    fn dependents_of_layers_that_only_the_volume_has() {
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
