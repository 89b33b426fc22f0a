//! Verification of one layer: its tar is rebuilt and hashed, its members are planned, and its tree is
//! compared with the plan.

use std::collections::HashMap;

use super::compare::{Comparison, Names, losses};
use super::error::{Error, Fault};
use super::settle::settle;
use super::tree::{Content, InodeKind, Tree};
use crate::volume::layout;
use larder_layer::decode::Decoder;
use larder_layer::limits::Limits;
use larder_layer::lower::Lower;
use larder_layer::metadata::{Metadata, filter_xattrs};
use larder_layer::path;
use larder_layer::rebuild::{FilesRead, Offset, Rebuilt};
use larder_layer::stored::StoredDir;
use larder_layer::tar::{Kind, Member, Reader};
use larder_model::chain::ChainId;
use larder_model::digest::{Algorithm, Hasher};
use larder_model::seal::{Compression, Layer};
use larder_sys::{Dir, Timestamp};

type Tar = Reader<Decoder<'static>, Offset>;

/// Verifies a layer whose parents are verified, and adds its files with several names to `names`.
pub(super) fn verify(root: &Dir, layers: &[Layer], layer: &Layer, names: &mut Names) -> Result<(), Error> {
    let id = &layer.chain_id;
    let diff = open_diff(root, id)?;
    let lower = lower(root, layers, layer)?;
    let mut tree = plan(root, layer, &diff)?;
    let (directories, settled) = settle(id, &mut tree, &lower, &layer.settled)?;
    if settled != layer.settled {
        let what = "the layer has the listed settled entries".to_owned();
        return Err(Error::layer(id, b"", Fault::Statement(what)));
    }
    let comparison = Comparison {
        layer: id,
        tree: &tree,
        directories: &directories,
        lower: &lower,
        lost: losses(&layer.lost),
    };
    comparison.run(diff, names)
}

fn open_diff(root: &Dir, id: &ChainId) -> Result<Dir, Error> {
    let path = format!("overlay/{}/diff", id.hex());
    root.open_beneath(path.as_bytes()).map_err(|e| Error::opening(path, &e))
}

fn lower(root: &Dir, layers: &[Layer], layer: &Layer) -> Result<Lower, Error> {
    let parents: HashMap<&ChainId, Option<&ChainId>> =
        layers.iter().map(|layer| (&layer.chain_id, layer.parent.as_ref())).collect();
    let mut trees = Vec::new();
    let mut next = layer.parent.as_ref();
    while let Some(id) = next {
        trees.push(open_diff(root, id)?);
        next = parents.get(id).copied().flatten();
    }
    Ok(Lower::new(trees.into_iter().map(StoredDir::Directory)))
}

/// Rebuilds the tar, checks its digest, and plans its members.
fn plan(root: &Dir, layer: &Layer, diff: &Dir) -> Result<Tree, Error> {
    let fail = |message: String| Error::Layer { layer: layer.chain_id.clone(), message };
    let name = layout::tar_split(&layer.chain_id);
    let split = root
        .open_beneath(layout::LAYERS)
        .and_then(|dir| dir.open_file(name.as_bytes()))
        .map_err(|e| Error::opening(format!("overlay-layers/{name}"), &e))?;
    let size = split.metadata().map_err(|e| Error::io("examining", &name, e))?.len();
    if layer.tar_split_size != Some(size) {
        let want = layer.tar_split_size.unwrap_or_default();
        return Err(Error::volume(format!("overlay-layers/{name}"), Fault::Size { want, found: size }));
    }
    let diff = diff.try_clone().map_err(|e| Error::io("opening", "diff", e))?;
    let rebuilt = Rebuilt::new(split, StoredDir::Directory(diff));
    let read = rebuilt.files_read();
    // The limits of the builder do not apply here. The data is already on the volume, and is read in linear
    // time.
    let limits = Limits { max_entries: u64::MAX, max_logical_bytes: u64::MAX, ..Limits::default() };
    let offset = Offset::default();
    let decoder = Decoder::uncompressed(rebuilt, Algorithm::Sha256);
    let mut reader = Reader::new(decoder, offset.clone(), limits);
    let mut tree = Tree::new();
    let mut entries = 0;
    while let Some(member) = reader.next().map_err(|e| fail(e.to_string()))? {
        entries += 1;
        add(&mut reader, &mut tree, &read, offset.get(), member).map_err(|e| match e {
            AddError::Tar(message) => fail(message),
            AddError::Fault(path, fault) => Error::layer(&layer.chain_id, &path, Fault::Statement(fault)),
        })?;
    }
    let (decoder, _) = reader.finish().map_err(|e| fail(e.to_string()))?;
    let decoded = decoder.finish().map_err(|e| fail(e.to_string()))?;
    debug_assert_eq!(decoded.compression, Compression::None);
    if decoded.diff_id != layer.diff_id {
        let found = decoded.diff_id;
        return Err(fail(format!(
            "the rebuilt tar has digest {found}, but its diff ID is {}",
            layer.diff_id
        )));
    }
    if decoded.size != layer.size || entries != layer.entries {
        let what = format!("layer {} has {} bytes and {} members", layer.chain_id, layer.size, layer.entries);
        return Err(Error::volume("cache.json", Fault::Statement(what)));
    }
    Ok(tree)
}

enum AddError {
    Tar(String),
    Fault(Vec<u8>, String),
}

fn add(
    reader: &mut Tar,
    tree: &mut Tree,
    read: &FilesRead,
    offset: u64,
    member: Member,
) -> Result<(), AddError> {
    let path = member.path;
    let fault = |fault: &dyn std::fmt::Display| AddError::Fault(path.clone(), fault.to_string());
    let clean = path::clean_member(&path).map_err(|e| fault(&e))?;
    let Some(at) = tree.place(&clean).map_err(|e| fault(&e))? else {
        return Ok(());
    };
    let mut xattrs = member.xattrs;
    filter_xattrs(&clean, &mut xattrs).map_err(|e| fault(&e))?;
    let metadata = Metadata {
        mode: member.mode & 0o7777,
        uid: member.uid,
        gid: member.gid,
        mtime: Timestamp { sec: member.mtime.sec, nsec: member.mtime.nsec },
        xattrs,
    };
    let size = member.size;
    let kind = match member.kind {
        Kind::Directory => {
            tree.add_directory(at, metadata);
            return Ok(());
        }
        _ if at.is_empty() => return Err(fault(&larder_layer::error::Fault::RootKind)),
        Kind::HardLink { target } => {
            let target = path::clean(&target).map_err(|e| fault(&e))?;
            return tree.add_link(at, &target, metadata).map_err(|e| fault(&e));
        }
        Kind::File => {
            let held = content(reader, || read.at(offset).is_none())?;
            reader.end_file(&at).map_err(|e| AddError::Tar(e.to_string()))?;
            let content = match read.at(offset) {
                Some(name) if name == at => Content::Read(name),
                // A file that was read under another name proves nothing about this one.
                Some(_) => return Err(fault(&"the tar-split file names another file as its content")),
                None => held,
            };
            InodeKind::File { size, content }
        }
        Kind::Sparse { .. } => InodeKind::File { size, content: content(reader, || true)? },
        Kind::Symlink { target } => InodeKind::Symlink(target),
        Kind::CharDevice { major, minor } => InodeKind::CharDevice(major, minor),
        Kind::BlockDevice { major, minor } => InodeKind::BlockDevice(major, minor),
        Kind::Fifo => InodeKind::Fifo,
    };
    tree.add_inode(at, kind, metadata);
    Ok(())
}

/// Reads the content of a member. Returns its regions, and their sha256 if `wanted` returns `true` once the
/// first bytes are available.
fn content(reader: &mut Tar, wanted: impl FnOnce() -> bool) -> Result<Content, AddError> {
    let mut regions: Vec<(u64, u64)> = Vec::new();
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut wanted = Some(wanted);
    let mut hash = true;
    while let Some(chunk) = reader.data().map_err(|e| AddError::Tar(e.to_string()))? {
        if let Some(wanted) = wanted.take() {
            hash = wanted();
        }
        let len = chunk.bytes.len() as u64;
        match regions.last_mut() {
            Some((offset, known)) if *offset + *known == chunk.offset => *known += len,
            _ => regions.push((chunk.offset, len)),
        }
        if hash {
            hasher.update(chunk.bytes);
        }
    }
    Ok(Content::Held { regions, digest: hasher.finish() })
}
