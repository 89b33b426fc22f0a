//! Writes any bytes as an EROFS image, after correcting their tar checksums. The result is an error or a
//! valid image: our reader can read all of it, writing it again gives the same bytes, and the tar can be
//! rebuilt from it.
#![no_main]

mod archive;

use std::fs::File;
use std::io;
use std::sync::atomic::AtomicU64;

use larder_layer::decode::{ChunkSource, Decoder};
use larder_layer::erofs::Options;
use larder_layer::erofs::read::ImageNode;
use larder_layer::erofs_sink::apply::{Image, Target};
use larder_layer::erofs_sink::fixup;
use larder_layer::extract::{self, Error, Expected, Extracted, TarSplitTarget, extract};
use larder_layer::limits::Limits;
use larder_layer::lower::Lower;
use larder_layer::rebuild::Rebuilt;
use larder_layer::space::NoAccounting;
use larder_layer::stored::StoredDir;
use larder_model::digest::{Algorithm, Digest};
use larder_sys::{Dir, FileType, unnamed};
use libfuzzer_sys::fuzz_target;

struct Once(Option<Vec<u8>>);

impl ChunkSource for Once {
    fn next(&mut self) -> io::Result<Option<bytes::Bytes>> {
        Ok(self.0.take().filter(|bytes| !bytes.is_empty()).map(Into::into))
    }
}

fn run(tar: &[u8], image: Image, dir: &Dir, split: Option<TarSplitTarget<'_>>) -> Result<Extracted, Error> {
    let digest = Digest::sha256(tar);
    let options = Options { max_memory: 64 << 20, ..Options::of(&digest) };
    let expected = Expected { blob: digest.clone(), size: tar.len() as u64, diff_id: digest };
    let limits = Limits { max_logical_bytes: 1 << 20, max_entries: 1 << 12, ..Limits::default() };
    let keep_replaced = split.is_some();
    let written = &AtomicU64::new(0);
    let target = Target { image, dir, space: &NoAccounting, options, written, keep_replaced };
    let decoder = Decoder::uncompressed(Once(Some(tar.to_vec())), Algorithm::Sha256);
    extract(decoder, extract::Target::Erofs(target), split, &limits, &expected)
}

/// Reads all files, links and attributes of an image.
fn walk(root: ImageNode) {
    let mut pending = vec![root];
    while let Some(node) = pending.pop() {
        node.xattrs().expect("it was just written");
        match node.file_type() {
            FileType::Directory => {
                for name in node.names().expect("it was just written") {
                    let below = node.lookup(&name).expect("it was just written");
                    pending.push(below.expect("it is listed"));
                }
            }
            FileType::Regular => {
                let mut content = node.content().expect("it was just written");
                io::copy(&mut content, &mut io::sink()).expect("it was just written");
                node.regions().expect("it was just written");
            }
            FileType::Symlink => assert!(!node.target().expect("it was just written").is_empty()),
            _ => {}
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut tar = bytes.to_vec();
    archive::fix_checksums(&mut tar);
    let path = std::env::temp_dir().join(format!("larder-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a temporary directory can be created");
    let dir = Dir::open(&path).expect("it was just created");
    let image: File = unnamed::temporary().expect("a temporary file can be created");
    let again = || image.try_clone().expect("a descriptor can be duplicated");
    let _ = dir.unlink(b"split");
    let split = TarSplitTarget { dir: &dir, name: b"split" };
    let Ok(mut extracted) = run(&tar, Image::New(again()), &dir, Some(split)) else { return };
    let root = ImageNode::root(again()).expect("it was just written");
    walk(root.clone());
    run(&tar, Image::Present(again()), &dir, None).expect("it is the same image");
    let split = dir.open_file(b"split").expect("it was just written");
    let mut rebuilt = Rebuilt::new(split, StoredDir::Image(root.clone()));
    let mut found = Vec::new();
    while let Some(chunk) = rebuilt.next().expect("all content is present") {
        found.extend_from_slice(&chunk);
    }
    assert!(found == tar, "{} bytes became {}", tar.len(), found.len());
    // Settle the image on top of itself: links to missing files are errors, everything else succeeds.
    let lower = Lower::new([StoredDir::Image(root.clone())]);
    let planned = fixup::plan(&StoredDir::Image(root), &mut extracted.applied, &lower, fixup::Times::Kept);
    if let Ok((_, Some(fixup))) = planned {
        let image: File = unnamed::temporary().expect("a temporary file can be created");
        let again = || image.try_clone().expect("a descriptor can be duplicated");
        let write = |image| fixup.write(image, &dir, &NoAccounting, Options::default());
        write(Image::New(again())).expect("the image was read before");
        walk(ImageNode::root(again()).expect("it was just written"));
        write(Image::Present(again())).expect("it is the same image");
    }
});
