//! Any bytes as a tar, their checksums put right, written as an image: either an error, or an image that our own reader shows
//! whole, that is written again byte by byte, and that the tar is rebuilt from.
#![no_main]

use std::fs::File;
use std::io;
use std::sync::atomic::AtomicU64;

use larder_layer::decode::{ChunkSource, Decoder};
use larder_layer::erofs::apply::{Image, Target};
use larder_layer::erofs::read::ImageNode;
use larder_layer::erofs::{Options, fixup};
use larder_layer::extract::{self, Error, Expected, Extracted, TarSplitTarget, extract};
use larder_layer::limits::Limits;
use larder_layer::overlay::lower::Lower;
use larder_layer::rebuild::Rebuilt;
use larder_layer::space::Uncounted;
use larder_layer::stored::StoredDir;
use larder_layer::tar::BLOCK;
use larder_model::digest::{Algorithm, Digest};
use larder_sys::{Dir, FileType, unnamed};
use larder_testing::layer::fix_checksum;
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
    let target = Target { image, dir, space: &Uncounted, options, written, keep_replaced };
    let decoder = Decoder::uncompressed(Once(Some(tar.to_vec())), Algorithm::Sha256);
    extract(decoder, extract::Target::Erofs(target), split, &limits, &expected)
}

/// Reads everything.
fn walk(root: ImageNode) {
    let mut pending = vec![root];
    while let Some(node) = pending.pop() {
        node.xattrs().expect("written a moment ago");
        match node.file_type() {
            FileType::Directory => {
                for name in node.names().expect("written a moment ago") {
                    let below = node.lookup(&name).expect("written a moment ago");
                    pending.push(below.expect("it is listed"));
                }
            }
            FileType::Regular => {
                let mut content = node.content().expect("written a moment ago");
                io::copy(&mut content, &mut io::sink()).expect("written a moment ago");
                node.regions().expect("written a moment ago");
            }
            FileType::Symlink => assert!(!node.target().expect("written a moment ago").is_empty()),
            _ => {}
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut tar = bytes.to_vec();
    for block in tar.chunks_exact_mut(BLOCK) {
        // A block whose checksum is wanted right has something in that field; the others stay data.
        if let Ok(block) = <&mut [u8; BLOCK]>::try_from(block)
            && block[148] != 0
        {
            fix_checksum(block);
        }
    }
    let path = std::env::temp_dir().join(format!("larder-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a temporary directory");
    let dir = Dir::open(&path).expect("made a moment ago");
    let image: File = unnamed::temporary().expect("a temporary file");
    let again = || image.try_clone().expect("a descriptor");
    let _ = dir.unlink(b"split");
    let split = TarSplitTarget { dir: &dir, name: b"split" };
    let Ok(mut extracted) = run(&tar, Image::New(again()), &dir, Some(split)) else { return };
    let root = ImageNode::root(again()).expect("written a moment ago");
    walk(root.clone());
    run(&tar, Image::Present(again()), &dir, None).expect("it is the same image");
    let split = dir.open_file(b"split").expect("written a moment ago");
    let mut rebuilt = Rebuilt::new(split, StoredDir::Image(root.clone()));
    let mut found = Vec::new();
    while let Some(chunk) = rebuilt.next().expect("all of it is there") {
        found.extend_from_slice(&chunk);
    }
    assert!(found == tar, "{} bytes became {}", tar.len(), found.len());
    // On itself: links to what it lacks are errors, all else is settled.
    let lower = Lower::new([StoredDir::Image(root.clone())]);
    let planned = fixup::plan(&StoredDir::Image(root), &mut extracted.applied, &lower, fixup::Times::Kept);
    if let Ok((_, Some(fixup))) = planned {
        let image: File = unnamed::temporary().expect("a temporary file");
        let again = || image.try_clone().expect("a descriptor");
        let write = |image| fixup.write(image, &dir, &Uncounted, Options::default());
        write(Image::New(again())).expect("all of it was read");
        walk(ImageNode::root(again()).expect("written a moment ago"));
        write(Image::Present(again())).expect("it is the same image");
    }
});
