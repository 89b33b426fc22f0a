//! Which files matter first when containers start from a volume that is read slowly: `prefetch.list`, written with the seal
//! and computed again by `verify`, and reading what it names.
//!
//! A disk that was restored from a snapshot, or that lies on the other side of a network, answers each first read in
//! milliseconds, and the start of a container is some dozens of reads one after the other. The list names them beforehand,
//! so that they can be asked for all at once.
//!
//! ```text
//! image config ─► start ─┬► view      paths in the merged layers, links followed inside
//!                        └► loader    libraries: elf, ld_cache
//!                 list ◄─┘            ─► seal, verify;  read: `larder prefetch`
//! ```
//!
//! Everything read here comes from images. What cannot be read or understood is passed over: the list is advice.

mod elf;
mod ld_cache;
pub mod list;
mod loader;
mod start;
mod view;

use std::collections::BTreeMap;
use std::io;

use crate::model::class::Class;
use crate::model::digest::Digest;
use crate::model::manifest::Process;
use crate::model::seal::{Content, Image};
use crate::sys::Dir;
use crate::volume::store::Documents;
use list::{Entry, Section};
use view::View;

/// Most layers that are merged: what overlayfs takes (`OVL_MAX_STACK`). No container starts from an image with more.
const MAX_LAYERS: usize = 500;

/// The file system refused something that an image cannot provoke.
#[derive(Debug, thiserror::Error)]
#[error("looking for what {image} reads first: {source}")]
pub struct Error {
    /// Name of the image.
    image: String,
    /// Why.
    source: io::Error,
}

impl Error {
    /// The class, which decides about the exit code.
    pub fn class(&self) -> Class {
        crate::layer::error::io_class(&self.source)
    }
}

/// `prefetch.list` of the volume at `root`, whose layers are all there. `documents` belong to `content.images`, one each.
pub fn list(root: &Dir, content: &Content, documents: &[Documents]) -> Result<Vec<u8>, Error> {
    // Names of one image share a section's files.
    let mut known: BTreeMap<&Digest, Vec<Entry>> = BTreeMap::new();
    let mut sections = Vec::new();
    for (image, documents) in content.images.iter().zip(documents) {
        let files = match known.get(&image.manifest) {
            Some(files) => files.clone(),
            None => files(root, image, &Process::parse(&documents.config))
                .map_err(|source| Error { image: image.name.clone(), source })?,
        };
        known.insert(&image.manifest, files.clone());
        let name = image.name.clone().into_bytes();
        sections.push(Section { manifest: image.manifest.clone(), name, files });
    }
    Ok(list::render(&sections))
}

fn files(root: &Dir, image: &Image, process: &Process) -> io::Result<Vec<Entry>> {
    if image.chain.len() > MAX_LAYERS {
        return Ok(Vec::new());
    }
    let layers: Vec<&str> = image.chain.iter().rev().map(|chain_id| chain_id.hex()).collect();
    let open = |layer: &&str| root.open_beneath(format!("overlay/{layer}/diff").as_bytes());
    let view = View::new(layers.iter().map(open).collect::<io::Result<Vec<_>>>()?);
    start::files(view, &layers, process)
}
