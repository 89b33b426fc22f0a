//! dm-verity hash trees of EROFS images, compared with veritysetup.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use larder::verify::{HashTrees, hash_trees};
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::seal::Content;
use larder_testing::image::{Format, Image};
use larder_testing::layer::LayerBuilder;
use serde_json::Value;

use super::files;
use crate::erofs::fsck;
use crate::harness::served::{Served, cache, random};
use crate::harness::{Need, exits, isolated, larder, succeed};

const NEEDS: [Need; 2] = [Need::Program("veritysetup"), Need::Program("fsck.erofs")];

/// Returns layers of two, of some hundred, and of more than 128 x 128 blocks, for trees of one, two and three
/// levels.
fn image() -> Image {
    let sized = |seed: u64, len: usize| LayerBuilder::new().file("f", random(seed, len)).gzip().into();
    Image::builder(Format::Oci).layers([sized(1, 10), sized(2, 1 << 20), sized(3, 66 << 20)]).build()
}

fn blobs(volume: &Path) -> Vec<PathBuf> {
    let found = files(&volume.join("erofs/sha256")).into_values();
    found.filter(|path| path.extension().is_some_and(|extension| extension == "erofs")).collect()
}

fn sidecar(blob: &Path) -> PathBuf {
    PathBuf::from(format!("{}.dmverity", blob.display()))
}

#[case]
fn veritysetup_accepts_every_tree() {
    isolated(&NEEDS, || {
        let served = Served::new([image()]);
        let volume = served.volume();
        let with_size = |volume: &Path| {
            let mut command = served.build(volume, 256 << 20);
            command.args(["--layer-format", "erofs"]);
            command
        };
        succeed(with_size(&volume).args(["--verity", "--verify-after"]));
        let said = succeed(larder().arg("inspect").arg(&volume));
        let recorded = cache(&volume).content.layers;
        let blobs = blobs(&volume);
        assert_eq!(blobs.len(), 3);
        for blob in &blobs {
            let text: Value = serde_json::from_slice(&fs::read(sidecar(blob)).unwrap()).unwrap();
            let (root, offset) = (text["roothash"].as_str().unwrap(), text["hashoffset"].as_u64().unwrap());
            assert!(said.contains(&format!("verity    sha256:{root}")), "{said}");
            let size = fs::metadata(blob).unwrap().len();
            let of =
                |layer: &&larder_model::seal::Layer| blob.to_str().unwrap().contains(layer.diff_id.hex());
            assert_eq!(recorded.iter().find(of).unwrap().image.as_ref().unwrap().size, size);
            let check = |root: &str| {
                let mut command = Command::new("veritysetup");
                command.arg("verify").arg(blob).arg(blob).arg(root).arg(format!("--hash-offset={offset}"));
                command
            };
            succeed(&mut check(root));
            assert!(
                !check(&"0".repeat(64)).output().unwrap().status.success(),
                "veritysetup accepted a wrong root hash"
            );
            assert_eq!(fsck(blob), "");
            // The tree is identical to that of veritysetup.
            let copy = served.beside("copy");
            fs::copy(blob, &copy).unwrap();
            fs::File::options().write(true).open(&copy).unwrap().set_len(offset).unwrap();
            let uuid = uuid_of(blob, offset);
            let mut format = Command::new("veritysetup");
            format.arg("format").arg(&copy).arg(&copy).arg(format!("--hash-offset={offset}"));
            format.args([format!("--salt={}", "0".repeat(64)), format!("--uuid={uuid}")]);
            format.args(["--data-blocks", &(offset / 4096).to_string()]);
            succeed(&mut format);
            assert!(fs::read(&copy).unwrap() == fs::read(blob).unwrap(), "{}", blob.display());
            // Flip a bit of it, at any offset.
            let sound = fs::read(blob).unwrap();
            for n in 0..6 {
                let behind = u64::from_le_bytes(random(n, 8).try_into().unwrap()) % (size - offset);
                let at = usize::try_from(offset + behind).unwrap();
                fs::File::options()
                    .write(true)
                    .open(blob)
                    .unwrap()
                    .write_all_at(&[sound[at] ^ 4], at as u64)
                    .unwrap();
                exits(65, larder().arg("verify").arg(&volume));
                fs::File::options()
                    .write(true)
                    .open(blob)
                    .unwrap()
                    .write_all_at(&[sound[at]], at as u64)
                    .unwrap();
            }
        }
        let name = sidecar(&blobs[0]);
        let sound = fs::read_to_string(&name).unwrap();
        fs::write(&name, sound.replace("\":\"", "\": \"")).unwrap();
        exits(65, larder().arg("verify").arg(&volume));
        fs::write(&name, &sound).unwrap();
        succeed(larder().arg("verify").arg(&volume));

        // Without hash trees it is another job, and directories have none.
        let said = exits(73, &mut with_size(&volume));
        assert!(said.contains("another job"), "{said}");
        let said = {
            let mut command = served.build(&served.beside("x"), 256 << 20);
            exits(64, command.args(["--verity", "--layer-format", "overlay"]))
        };
        assert!(said.contains("--layer-format erofs"), "{said}");
    });
}

/// `hash_trees` reads each image once and compares it with its root hash: a node has no time for more.
#[case]
fn hash_trees_prove_images_without_decoding() {
    isolated(&[], || {
        let served = Served::new([image()]);
        let (volume, plain) = (served.volume(), served.beside("plain"));
        let build = |volume: &Path, flags: &[&str]| {
            succeed(served.build(volume, 256 << 20).args(["--layer-format", "erofs"]).args(flags))
        };
        build(&volume, &["--verity", "--no-tar-split"]);
        build(&plain, &[]);
        let content = cache(&volume).content;
        let report = hash_trees(&volume, &content).unwrap();
        let blobs = blobs(&volume);
        let bytes = blobs.iter().map(|blob| fs::metadata(blob).unwrap().len()).sum();
        assert_eq!(report, HashTrees { proven: 3, bytes, without: Vec::new() });
        let unproven = hash_trees(&plain, &cache(&plain).content).unwrap();
        assert_eq!((unproven.proven, unproven.without.len()), (0, 3));

        let fails = |content: &Content| {
            let error = hash_trees(&volume, content).unwrap_err();
            assert_eq!(error.class(), Class::Corrupt, "{error}");
            error.to_string()
        };
        for (number, blob) in blobs.iter().enumerate() {
            let size = fs::metadata(blob).unwrap().len();
            let text: Value = serde_json::from_slice(&fs::read(sidecar(blob)).unwrap()).unwrap();
            let offset = text["hashoffset"].as_u64().unwrap();
            let file = fs::File::options().read(true).write(true).open(blob).unwrap();
            let flip = |at: u64| {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ 16], at).unwrap();
            };
            // The content, its last byte, the header of the tree, and its last block.
            for (at, words) in [
                (1024 + number as u64, "root hash in cache.json"),
                (offset - 1, "root hash in cache.json"),
                (offset + 8, "hash tree"),
                (size - 4096, "hash tree"),
                (size - 1, "hash tree"),
            ] {
                flip(at);
                let said = fails(&content);
                assert!(said.contains(words), "{at} of {offset}, {size}: {said}");
                flip(at);
            }
            file.set_len(size + 4096).unwrap();
            fails(&content);
            file.set_len(size).unwrap();
        }
        // Invalid values in cache.json cause neither a panic nor a read past the end.
        for hash_offset in [0, 1, 4095, 4096, 1 << 40, u64::MAX, u64::MAX - 4095] {
            let mut lie = content.clone();
            lie.layers[0].image.as_mut().unwrap().verity.as_mut().unwrap().hash_offset = hash_offset;
            fails(&lie);
        }
        let mut lie = content.clone();
        lie.layers[1].image.as_mut().unwrap().verity.as_mut().unwrap().root_hash = Digest::sha256(b"other");
        fails(&lie);
        hash_trees(&volume, &content).unwrap();
        fs::remove_file(&blobs[0]).unwrap();
        assert!(fails(&content).contains("missing"));
    });
}

/// Returns the UUID in the header of the tree.
fn uuid_of(blob: &Path, offset: u64) -> uuid::Uuid {
    let mut bytes = [0; 16];
    fs::File::open(blob).unwrap().read_exact_at(&mut bytes, offset + 16).unwrap();
    uuid::Uuid::from_bytes(bytes)
}
