//! Applies one mutation of each kind to a sealed volume: verification finds each, and reports its location.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Options, build, chain, diff};
use crate::verify::verify;
use larder_model::class::Class;
use larder_model::seal::{CacheManifest, Content};
use larder_sys::{Dir, Timestamp, xattr};
use larder_testing::layer::{BuiltLayer, LayerBuilder, SparseForm};

fn layers() -> [BuiltLayer; 2] {
    let base = LayerBuilder::new()
        .owner(3, 4)
        .mode(0o700)
        .dir("private")
        .file("private/key", "key")
        .dir("emptied")
        .file("emptied/old", "old")
        .file("gone", "gone")
        .file("bin", "binary")
        .gzip();
    let top = LayerBuilder::new()
        .file("private/cert", "cert")
        .dir("emptied")
        .opaque("emptied")
        .whiteout("gone")
        .xattr("user.note", "one")
        .file("noted", "noted")
        .file("content", "content")
        .hardlink("linked", "content")
        .file("replaced", "first")
        .file("replaced", "second")
        .symlink("link", "content")
        .char_device("null", 1, 3)
        .fifo("pipe")
        .hardlink("copied", "bin")
        .sparse(SparseForm::Pax10, "sparse", 1 << 16, &[(0, b"head"), (1 << 15, b"tail")])
        .file("plain", "plain")
        .file("twin", "same")
        .file("twin2", "same")
        .gzip();
    [base, top]
}

/// A sealed volume to copy from.
struct Original {
    dir: tempfile::TempDir,
    layers: [BuiltLayer; 2],
}

impl Original {
    fn new() -> Self {
        let (dir, layers) = (tempfile::tempdir().unwrap(), layers());
        build(&dir.path().join("volume"), &[&layers], &Options::default()).unwrap();
        Original { dir, layers }
    }

    /// Copies the volume with all attributes.
    fn copy(&self) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let copied =
            Command::new("cp").arg("-a").arg(self.dir.path().join("volume")).arg(dir.path()).status();
        assert!(copied.unwrap().success());
        let volume = dir.path().join("volume");
        (dir, volume)
    }

    fn top(&self, volume: &Path) -> PathBuf {
        diff(volume, &chain(&self.layers)[1])
    }
}

fn time_of(path: &Path) -> Timestamp {
    use std::os::unix::fs::MetadataExt as _;
    let meta = fs::symlink_metadata(path).unwrap();
    Timestamp { sec: meta.mtime(), nsec: u32::try_from(meta.mtime_nsec()).unwrap() }
}

/// Changes a file and restores the time of its directory, so that the change itself must be found.
fn quietly(path: &Path, change: impl FnOnce(&Dir, &[u8])) {
    let parent = path.parent().unwrap();
    let before = time_of(parent);
    let dir = Dir::open(parent).unwrap();
    change(&dir, path.file_name().unwrap().as_encoded_bytes());
    larder_sys::dir::set_times(&dir, before).unwrap();
}

fn rewrite(path: &Path, content: &[u8]) {
    let before = time_of(path);
    fs::write(path, content).unwrap();
    quietly(path, |dir, name| dir.set_times(name, before).unwrap());
}

#[test]
fn every_mutation_of_a_layer_is_found_and_named() {
    let original = Original::new();
    let (_untouched, volume) = original.copy();
    verify(&volume).unwrap();

    type Change = Box<dyn Fn(&Path)>;
    let at = |name: &'static str, change: fn(&Dir, &[u8])| -> (&'static str, Change) {
        (name, Box::new(move |top: &Path| quietly(&top.join(name), change)))
    };
    let cases: Vec<(&str, &str, (&str, Change))> = vec![
        ("a bit", "CRC", ("content", Box::new(|top| rewrite(&top.join("content"), b"contenT")))),
        ("cut short", "too short", ("content", Box::new(|top| rewrite(&top.join("content"), b"conten")))),
        ("longer", "too long", ("content", Box::new(|top| rewrite(&top.join("content"), b"contents")))),
        ("replaced content", "CRC", ("replaced", Box::new(|top| rewrite(&top.join("replaced"), b"Second")))),
        (
            "a hole filled",
            "content differs",
            (
                "sparse",
                Box::new(|top| {
                    let mut bytes = fs::read(top.join("sparse")).unwrap();
                    bytes[9000] = 1;
                    rewrite(&top.join("sparse"), &bytes);
                }),
            ),
        ),
        (
            "sparse data",
            "content differs",
            (
                "sparse",
                Box::new(|top| {
                    let mut bytes = fs::read(top.join("sparse")).unwrap();
                    bytes[0] = b'H';
                    rewrite(&top.join("sparse"), &bytes);
                }),
            ),
        ),
        ("copied-up data", "content differs", ("bin", Box::new(|top| rewrite(&top.join("bin"), b"Binary")))),
        ("setuid", "mode is 4755", at("plain", |dir, name| dir.set_mode(name, 0o4755).unwrap())),
        ("owner", "owner is 7:0", at("plain", |dir, name| dir.set_owner(name, 7, 0).unwrap())),
        (
            "time",
            "modification time",
            at("plain", |dir, name| {
                dir.set_times(name, Timestamp { sec: 1, nsec: 1 }).unwrap();
            }),
        ),
        (
            "attribute added",
            "user.evil",
            at("plain", |dir, name| xattr::set_at(dir, name, b"user.evil", b"x").unwrap()),
        ),
        (
            "attribute changed",
            "user.note",
            at("noted", |dir, name| xattr::set_at(dir, name, b"user.note", b"2").unwrap()),
        ),
        (
            "target",
            "its target is",
            at("link", |dir, name| {
                let time = Timestamp { sec: 1, nsec: 0 };
                dir.unlink(name).unwrap();
                dir.symlink(b"elsewhere", name).unwrap();
                dir.set_times(name, time).unwrap();
            }),
        ),
        (
            "type",
            "it is a regular file, expected a named pipe",
            at("pipe", |dir, name| {
                dir.unlink(name).unwrap();
                dir.create_file(name, 0o644).unwrap();
            }),
        ),
        (
            "device",
            "its device is 1:5",
            at("null", |dir, name| {
                dir.unlink(name).unwrap();
                dir.make_node(name, larder_sys::FileType::CharDevice, 0o644, (1, 5)).unwrap();
                dir.set_times(name, Timestamp { sec: 1, nsec: 0 }).unwrap();
            }),
        ),
        (
            "extra file",
            "it should not exist",
            at("extra", |dir, name| drop(dir.create_file(name, 0o644).unwrap())),
        ),
        ("extra whiteout", "it should not exist", at("hidden", |dir, name| dir.make_whiteout(name).unwrap())),
        ("missing file", "opening", at("plain", |dir, name| dir.unlink(name).unwrap())),
        ("missing pipe", "it is missing", at("pipe", |dir, name| dir.unlink(name).unwrap())),
        ("missing whiteout", "it is missing", at("gone", |dir, name| dir.unlink(name).unwrap())),
        (
            "missing opacity",
            "trusted.overlay.opaque",
            at("emptied", |dir, name| {
                xattr::remove(dir.open_dir(name).unwrap(), b"trusted.overlay.opaque").unwrap();
            }),
        ),
        (
            "settled mode",
            "mode is 0755, expected 0700",
            at("private", |dir, name| dir.set_mode(name, 0o755).unwrap()),
        ),
        (
            "link broken",
            "should be the same file as",
            at("linked", |dir, name| {
                dir.rename(name, dir, b"spare").unwrap();
                std::io::Write::write_all(&mut dir.create_file(name, 0o644).unwrap(), b"content").unwrap();
                dir.set_times(name, Timestamp { sec: 1, nsec: 0 }).unwrap();
                dir.unlink(b"spare").unwrap();
            }),
        ),
        (
            "linked by force",
            "should not be the same file as",
            at("twin", |dir, name| {
                dir.unlink(b"twin2").unwrap();
                dir.link(name, dir, b"twin2").unwrap();
            }),
        ),
    ];
    for (what, words, (name, change)) in cases {
        let (_dir, volume) = original.copy();
        change(&original.top(&volume));
        let error = verify(&volume).expect_err(what);
        let said = error.to_string();
        assert_eq!(error.class(), Class::Corrupt, "{what}: {said}");
        assert!(said.contains(chain(&original.layers)[1].hex()), "{what}: {said}");
        assert!(said.contains(words) && said.contains(name), "{what}: {said}");
    }
}

#[test]
fn every_mutation_beside_the_layers_is_found_and_named() {
    let original = Original::new();
    let chain = chain(&original.layers);
    let (base, top) = (chain[0].hex(), chain[1].hex());
    let append = |path: &'static str| {
        move |volume: &Path| {
            let mut bytes = fs::read(volume.join(path)).unwrap();
            bytes.push(b' ');
            fs::write(volume.join(path), bytes).unwrap();
        }
    };
    type Change = Box<dyn Fn(&Path)>;
    let documents = fs::read_dir(original.dir.path().join("volume/oci/blobs/sha256")).unwrap();
    let mut cases: Vec<(String, Change)> = vec![
        ("overlay-images/images.json".into(), Box::new(append("overlay-images/images.json"))),
        ("overlay-layers/layers.json".into(), Box::new(append("overlay-layers/layers.json"))),
        ("snapshots.metadata".into(), Box::new(append("snapshots.metadata"))),
        ("prefetch.list".into(), Box::new(append("prefetch.list"))),
        ("oci/index.json".into(), Box::new(append("oci/index.json"))),
        ("oci/oci-layout".into(), Box::new(append("oci/oci-layout"))),
        ("overlay-layers/layers.lock".into(), Box::new(append("overlay-layers/layers.lock"))),
        ("stray".into(), Box::new(|volume| fs::write(volume.join("stray"), "x").unwrap())),
        (
            "oci/blobs/stray".into(),
            Box::new(|volume| fs::write(volume.join("oci/blobs/stray"), "x").unwrap()),
        ),
        (".larder/stray".into(), Box::new(|volume| fs::create_dir(volume.join(".larder/stray")).unwrap())),
    ];
    for document in documents {
        let name = document.unwrap().file_name().into_string().unwrap();
        let path = format!("oci/blobs/sha256/{name}");
        let changed = path.clone();
        cases.push((
            path,
            Box::new(move |volume| {
                let mut bytes = fs::read(volume.join(&changed)).unwrap();
                bytes[10] ^= 1;
                fs::write(volume.join(&changed), bytes).unwrap();
            }),
        ));
    }
    for (file, content) in [("link", "AAAAAAAAAA"), ("lower", "l/AAAAAAAAAA")] {
        let path = format!("overlay/{top}/{file}");
        let changed = path.clone();
        cases.push((path, Box::new(move |volume| fs::write(volume.join(&changed), content).unwrap())));
    }
    let link = format!("overlay/l/{}", chain[1].link());
    let (changed, elsewhere) = (link.clone(), format!("../{base}/diff"));
    cases.push((
        link,
        Box::new(move |volume| {
            fs::remove_file(volume.join(&changed)).unwrap();
            symlink(&elsewhere, volume.join(&changed)).unwrap();
        }),
    ));
    let split = format!("{top}.tar-split.gz");
    let (cut, other) = (split.clone(), format!("overlay-layers/{base}.tar-split.gz"));
    cases.push((
        split.clone(),
        Box::new(move |volume| {
            let path = volume.join("overlay-layers").join(&cut);
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
        }),
    ));
    cases.push((
        split.clone(),
        Box::new(move |volume| {
            fs::copy(volume.join(&other), volume.join("overlay-layers").join(&split)).unwrap();
        }),
    ));
    for (name, change) in cases {
        let (_dir, volume) = original.copy();
        change(&volume);
        let error = verify(&volume).expect_err(&name);
        assert_eq!(error.class(), Class::Corrupt, "{name}: {error}");
        assert!(error.to_string().contains(&name), "{name}: {error}");
    }
}

#[test]
fn statements_of_the_seal_are_checked_even_when_its_digest_is_right() {
    let original = Original::new();
    type Edit = fn(&mut Content);
    let cases: [(&str, Edit); 9] = [
        ("entries", |content| content.layers[1].entries += 1),
        ("size", |content| content.layers[1].size += 512),
        ("settled", |content| content.layers[1].settled.inherited.clear()),
        ("opacity", |content| content.layers[1].settled.opaque_as_whiteouts.push("emptied".into())),
        ("diff ID", |content| content.layers[1].diff_id = content.layers[0].diff_id.clone()),
        ("parent", |content| content.layers[1].parent = None),
        ("totals", |content| content.totals.compressed_size += 1),
        ("chain", |content| content.images[0].chain.truncate(1)),
        ("tar-split size", |content| content.layers[1].tar_split_size = Some(1)),
    ];
    for (what, edit) in cases {
        let (_dir, volume) = original.copy();
        let path = volume.join("cache.json");
        let mut content = CacheManifest::parse(&fs::read(&path).unwrap()).unwrap().content;
        edit(&mut content);
        // Update the totals, so that the edit itself must be found.
        if what != "totals" {
            content.totals.entries = content.layers.iter().map(|layer| layer.entries).sum();
            content.totals.size = content.layers.iter().map(|layer| layer.size).sum();
        }
        let sealed = CacheManifest::new(content).unwrap();
        fs::write(&path, serde_json::to_vec_pretty(&sealed).unwrap()).unwrap();
        let error = verify(&volume).expect_err(what);
        assert_eq!(error.class(), Class::Corrupt, "{what}: {error}");
    }
    let (_dir, volume) = original.copy();
    let path = volume.join("cache.json");
    let text = fs::read_to_string(&path).unwrap().replace("image:0", "image:9");
    fs::write(&path, text).unwrap();
    assert!(verify(&volume).unwrap_err().to_string().contains("changed after the seal"));
}
