//! Verification of a layer that is an EROFS image. Its tar is rebuilt and hashed, and the image is written a
//! second time, comparing each block with the existing image. The image mounted over it is planned and
//! compared in the same way.

use std::collections::HashMap;
use std::io::Read as _;
use std::sync::atomic::AtomicU64;

use super::error::{Error, Fault};
use crate::trees;
use crate::volume::layout::{self, Parts};
use larder_layer::applied::Applied;
use larder_layer::decode::Decoder;
use larder_layer::erofs::Options;
use larder_layer::erofs_sink::apply::{Image, Target};
use larder_layer::erofs_sink::fixup;
use larder_layer::erofs_sink::fixup::Times;
use larder_layer::extract::{self, Expected, extract};
use larder_layer::limits::Limits;
use larder_layer::space::NoAccounting;
use larder_model::chain::ChainId;
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::job::LayerFormat;
use larder_model::seal::{Layer, LayerImage, Verity};
use larder_sys::{Dir, unnamed};

const FORMAT: LayerFormat = LayerFormat::Erofs;

/// The images of a volume, which are verified one after the other.
#[derive(Debug)]
pub(super) struct Images<'a> {
    root: &'a Dir,
    layers: HashMap<&'a ChainId, &'a Layer>,
    /// Directory in which unnamed files can be created.
    scratch: Dir,
    /// Unsettled results of the verified change sets that are used more than once.
    applied: HashMap<&'a Digest, Applied>,
    uses: HashMap<&'a Digest, usize>,
}

impl<'a> Images<'a> {
    pub(super) fn new(root: &'a Dir, layers: &'a [Layer]) -> Result<Self, Error> {
        let mut uses: HashMap<&Digest, usize> = HashMap::new();
        for layer in layers {
            *uses.entry(&layer.diff_id).or_default() += 1;
        }
        let scratch =
            scratch(root).map_err(|e| Error::io("finding a directory for", "temporary files", e))?;
        let layers = layers.iter().map(|layer| (&layer.chain_id, layer)).collect();
        Ok(Images { root, layers, scratch, applied: HashMap::new(), uses })
    }

    /// Verifies a layer whose parents are verified.
    pub(super) fn verify(&mut self, layer: &'a Layer) -> Result<(), Error> {
        let parts = layout::parts(FORMAT, layer);
        let Some(image) = &layer.image else {
            return Err(states(layer, "is not an image"));
        };
        let mut applied = match self.applied.get(&layer.diff_id) {
            Some(applied) => applied.clone(),
            None => self.verify_image(layer, image, &parts)?,
        };
        if self.uses.get(&layer.diff_id).is_some_and(|uses| *uses > 1) {
            self.applied.entry(&layer.diff_id).or_insert_with(|| applied.clone());
        }
        let own = trees::own(self.root, FORMAT, layer).map_err(|e| Error::opening(&e.path, &e.source))?;
        let find = |id: &ChainId| self.layers.get(id).map(|layer| (*layer).clone());
        let lower = trees::below(self.root, FORMAT, layer.parent.as_ref(), find)
            .map_err(|e| Error::opening(&e.path, &e.source))?;
        let unsettled = applied.clone();
        let mut plan = |times| {
            applied.clone_from(&unsettled);
            let planned = fixup::plan(&own, &mut applied, &lower, times);
            planned.map_err(|e| self.failed(layer, &parts.trees[0], e))
        };
        let (mut settled, mut fixup) = plan(Times::Kept)?;
        if settled != layer.settled {
            (settled, fixup) = plan(Times::Left)?;
        }
        if settled != layer.settled || applied.lost != layer.lost {
            return Err(states(layer, "has the listed settled entries"));
        }
        match (fixup, image.fixup_size) {
            (None, None) => Ok(()),
            (Some(fixup), Some(want)) => {
                let path = &parts.trees[0];
                let file = self.open(path, want)?;
                let options = Options::of(layer.chain_id.digest());
                let written = fixup.write(Image::Present(file), &self.scratch, &NoAccounting, options);
                written.map(|_| ()).map_err(|e| self.failed(layer, path, e))
            }
            (Some(_), None) => Err(states(layer, "does not depend on its parents")),
            (None, Some(_)) => Err(states(layer, "depends on its parents")),
        }
    }

    /// Verifies the image of a change set.
    fn verify_image(&self, layer: &Layer, image: &LayerImage, parts: &Parts) -> Result<Applied, Error> {
        let path = parts.trees.last().map_or("", String::as_str);
        if let Some(want) = layer.tar_split_size {
            self.open(&parts.tar_split, want)?;
        }
        let file = self.open(path, image.size)?;
        let tar = trees::tar(self.root, FORMAT, layer).map_err(|e| Error::opening(&e.path, &e.source))?;
        let diff_id = layer.diff_id.clone();
        let expected = Expected { blob: diff_id.clone(), size: layer.size, diff_id };
        // The limits of the builder do not apply here. The data is already on the volume, and is read in
        // linear time.
        let limits = Limits { max_entries: u64::MAX, max_logical_bytes: u64::MAX, ..Limits::default() };
        let target = Target {
            image: Image::Present(file),
            dir: &self.scratch,
            space: &NoAccounting,
            options: Options { verity: image.verity.is_some(), ..Options::of(&layer.diff_id) },
            written: &AtomicU64::new(0),
            keep_replaced: false,
        };
        let decoder = Decoder::uncompressed(tar, layer.diff_id.algorithm());
        let extracted = extract(decoder, extract::Target::Erofs(target), None, &limits, &expected);
        let extracted = extracted.map_err(|e| match e {
            extract::Error::Sink(e) => self.failed(layer, path, e),
            other => Error::Layer { layer: layer.chain_id.clone(), message: other.to_string() },
        })?;
        if extracted.applied.entries != layer.entries {
            return Err(states(layer, &format!("has {} members", layer.entries)));
        }
        let verity = extracted.image.and_then(|image| image.verity).map(Verity::from);
        if verity != image.verity {
            return Err(states(layer, "has a hash tree with the recorded root hash"));
        }
        if let (Some(path), Some(verity)) = (&parts.verity, verity) {
            let mut found = Vec::new();
            let want = verity.sidecar();
            let file = self.open(path, want.len() as u64)?;
            file.take(want.len() as u64)
                .read_to_end(&mut found)
                .map_err(|e| Error::io("reading", path, e))?;
            if found != want.as_bytes() {
                return Err(Error::volume(path, Fault::Index));
            }
        }
        Ok(extracted.applied)
    }

    fn open(&self, path: &str, want: u64) -> Result<std::fs::File, Error> {
        let file = trees::file(self.root, path).map_err(|e| Error::opening(&e.path, &e.source))?;
        let found = file.metadata().map_err(|e| Error::io("examining", path, e))?.len();
        if found != want {
            return Err(Error::volume(path, Fault::Size { want, found }));
        }
        Ok(file)
    }

    fn failed(&self, layer: &Layer, path: &str, error: larder_layer::Error) -> Error {
        match error {
            larder_layer::Error::Hostile { fault: larder_layer::error::Fault::Unstorable(what), .. } => {
                Error::volume(path, Fault::Image(what))
            }
            error if error.class() == Class::Corrupt => {
                Error::Layer { layer: layer.chain_id.clone(), message: error.to_string() }
            }
            larder_layer::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::InvalidData => {
                Error::volume(path, Fault::Image(source.to_string()))
            }
            larder_layer::Error::Io { doing, source, .. } => Error::io(doing, path, source),
            error => Error::Layer { layer: layer.chain_id.clone(), message: error.to_string() },
        }
    }
}

fn states(layer: &Layer, what: &str) -> Error {
    Error::volume("cache.json", Fault::Statement(format!("layer {} {what}", layer.chain_id)))
}

/// Returns a directory in which unnamed files can be created: the one for temporary files or, if it is not
/// writable, one of the volume.
fn scratch(root: &Dir) -> std::io::Result<Dir> {
    let temporary = Dir::open(&std::env::temp_dir());
    match temporary {
        Ok(dir) if unnamed::create(&dir, 0o600).is_ok() => Ok(dir),
        _ => root.open_dir(layout::LARDER),
    }
}
