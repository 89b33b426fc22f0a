//! One change of each kind to a sealed volume: `larder verify` detects and names it.

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use larder_model::digest::Digest;
use larder_model::seal::{CacheManifest, Content};
use larder_testing::image::{Format, Image};
use larder_testing::layer::LayerBuilder;
use rustix::fs::{XattrFlags, lremovexattr, lsetxattr};

use crate::harness::served::{Served, cache};
use crate::harness::{exits, isolated, larder, succeed};

/// Returns an image of two layers with every inode type. The upper layer hides, inherits and links files of
/// the lower one.
fn image() -> Image {
    let base = LayerBuilder::new()
        .mtime(1_600_000_000)
        .owner(3, 4)
        .mode(0o751)
        .dir("etc")
        .owner(0, 0)
        .file("etc/passwd", "root:x:0:0::/root:/bin/sh\n")
        .mode(0o755)
        .file("tool", "#!/bin/sh\n")
        .xattr("user.note", "kept")
        .file("noted", "noted")
        .symlink("link", "etc/passwd")
        .file("one", "linked")
        .hardlink("two", "one")
        .file("left", "same")
        .file("right", "same")
        .char_device("null", 1, 3)
        .block_device("disk", 8, 0)
        .fifo("pipe")
        .dir("gone")
        .file("gone/file", "hidden")
        .dir("opaque")
        .file("opaque/old", "hidden");
    let top = LayerBuilder::new()
        .mtime(1_600_000_001)
        .file("etc/extra", "in a directory that this layer implies")
        .hardlink("etc/alias", "etc/passwd")
        .whiteout("gone/file")
        .dir("opaque")
        .opaque("opaque")
        .file("opaque/new", "shown");
    Image::builder(Format::Oci).layer(base.gzip().into()).layer(top.zstd().into()).build()
}

/// A copy of the sealed volume for one mutation.
struct Copy {
    root: PathBuf,
    cache: CacheManifest,
}

impl Copy {
    fn hex(&self, layer: usize) -> &str {
        self.cache.content.layers[layer].chain_id.hex()
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Returns a path in the tree of the lower layer.
    fn base(&self, path: &str) -> PathBuf {
        self.at(&format!("overlay/{}/diff/{path}", self.hex(0)))
    }

    /// Returns a path in the tree of the upper layer.
    fn top(&self, path: &str) -> PathBuf {
        self.at(&format!("overlay/{}/diff/{path}", self.hex(1)))
    }

    fn tar_split(&self, layer: usize) -> PathBuf {
        self.at(&format!("overlay-layers/{}.tar-split.gz", self.hex(layer)))
    }

    fn document(&self, digest: &Digest) -> PathBuf {
        self.at(&format!("oci/blobs/sha256/{}", digest.hex()))
    }

    /// Rewrites `cache.json` with a matching digest.
    fn reseal(&self, change: impl FnOnce(&mut Content)) {
        let mut content = self.cache.content.clone();
        change(&mut content);
        assert_ne!(content, self.cache.content, "the change had no effect");
        let sealed = CacheManifest::new(content).unwrap();
        fs::write(self.at("cache.json"), serde_json::to_vec_pretty(&sealed).unwrap()).unwrap();
    }
}

/// Changes `path` and, if it still exists, restores its modification time.
fn keeping_time(path: &Path, change: impl FnOnce()) {
    let before = fs::symlink_metadata(path).unwrap().modified().unwrap();
    change();
    File::open(path).unwrap().set_times(FileTimes::new().set_modified(before)).unwrap();
}

/// Changes the name `path` and restores the modification time of its directory.
fn in_directory(path: &Path, change: impl FnOnce(&Path)) {
    keeping_time(path.parent().unwrap(), || change(path));
}

/// Replaces `path` by a file that `make` creates, with the old owner and modification time.
fn replace(path: &Path, make: impl FnOnce(&Path)) {
    let before = fs::symlink_metadata(path).unwrap();
    in_directory(path, |path| {
        fs::remove_file(path).unwrap();
        make(path);
        let time = format!("@{}.{:09}", before.mtime(), before.mtime_nsec());
        succeed(Command::new("touch").args(["-h", "-d", &time]).arg(path));
    });
}

fn mknod(path: &Path, kind: &str, major: &str, minor: &str) {
    succeed(Command::new("mknod").args(["-m", "644"]).arg(path).args([kind, major, minor]));
}

fn flip(path: &Path, at: usize) {
    keeping_time(path, || {
        let mut bytes = fs::read(path).unwrap();
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    });
}

fn append(path: &Path) {
    keeping_time(path, || {
        let mut bytes = fs::read(path).unwrap();
        bytes.push(b'\n');
        fs::write(path, bytes).unwrap();
    });
}

fn set_xattr(path: &Path, name: &str, value: &str) {
    lsetxattr(path, name, value.as_bytes(), XattrFlags::empty()).unwrap();
}

/// The name, the words that verify must print, and the change.
type Case = (&'static str, &'static [&'static str], fn(&Copy));

/// Builds once. Each case changes a copy, and verify must exit with 65 and print all of the given words.
fn each(cases: &'static [Case]) {
    isolated(&[], move || {
        let served = Served::new([image()]);
        let sealed = served.volume();
        succeed(&mut served.build(&sealed, 64 << 20));
        let copied = |number: usize| {
            let root = served.beside(&format!("copy-{number}"));
            succeed(Command::new("cp").arg("-a").arg(&sealed).arg(&root));
            Copy { cache: cache(&root), root }
        };
        let untouched = copied(cases.len());
        succeed(larder().arg("verify").arg(&untouched.root));
        let mut wrong = Vec::new();
        for (number, (name, says, mutate)) in cases.iter().enumerate() {
            let copy = copied(number);
            mutate(&copy);
            let output = larder().arg("verify").arg(&copy.root).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let expand = |text: &&str| text.replace("BASE", copy.hex(0)).replace("TOP", copy.hex(1));
            let missing: Vec<_> = says.iter().map(expand).filter(|text| !said.contains(text)).collect();
            if output.status.code() != Some(65) || !missing.is_empty() {
                wrong.push(format!("{name}: {}, lacks {missing:?}: {said}", output.status));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    });
}

#[case]
fn files_of_a_layer() {
    each(&[
        ("content bit", &["BASE", "etc/passwd"], |v| flip(&v.base("etc/passwd"), 3)),
        ("content bit, copied up", &["TOP", "etc/alias"], |v| flip(&v.top("etc/passwd"), 3)),
        ("longer", &["BASE", "etc/passwd"], |v| append(&v.base("etc/passwd"))),
        ("shorter", &["BASE", "tool"], |v| {
            let path = v.base("tool");
            keeping_time(&path, || File::options().write(true).open(&path).unwrap().set_len(3).unwrap());
        }),
        ("setuid", &["BASE", "tool", "4755"], |v| {
            fs::set_permissions(v.base("tool"), fs::Permissions::from_mode(0o4755)).unwrap();
        }),
        ("owner", &["BASE", "tool", "owner"], |v| chown(v.base("tool"), Some(7), None).unwrap()),
        ("group", &["BASE", "tool", "owner"], |v| chown(v.base("tool"), None, Some(7)).unwrap()),
        ("time", &["BASE", "tool", "modification time"], |v| {
            let time = FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
            File::open(v.base("tool")).unwrap().set_times(time).unwrap();
        }),
        ("attribute added", &["BASE", "tool", "user.more"], |v| {
            set_xattr(&v.base("tool"), "user.more", "x");
        }),
        ("attribute removed", &["BASE", "noted", "user.note"], |v| {
            lremovexattr(v.base("noted"), "user.note").unwrap();
        }),
        ("attribute changed", &["BASE", "noted", "user.note"], |v| {
            set_xattr(&v.base("noted"), "user.note", "lost");
        }),
        ("capability", &["BASE", "tool", "security.capability"], |v| {
            let value = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
            lsetxattr(v.base("tool"), "security.capability", value, XattrFlags::empty()).unwrap();
        }),
        ("link target", &["BASE", "link", "etc/shadow"], |v| {
            replace(&v.base("link"), |path| symlink("etc/shadow", path).unwrap());
        }),
        ("file to link", &["BASE", "left"], |v| {
            replace(&v.base("left"), |path| symlink("right", path).unwrap());
        }),
        ("pipe to file", &["BASE", "pipe"], |v| {
            replace(&v.base("pipe"), |path| fs::write(path, "").unwrap())
        }),
        ("device number", &["BASE", "null", "1:5", "1:3"], |v| {
            replace(&v.base("null"), |path| mknod(path, "c", "1", "5"));
        }),
        ("device type", &["BASE", "disk"], |v| {
            replace(&v.base("disk"), |path| mknod(path, "c", "8", "0"));
        }),
        ("extra file", &["BASE", "etc/more"], |v| {
            in_directory(&v.base("etc/more"), |path| fs::write(path, "").unwrap());
        }),
        ("extra directory", &["TOP", "opaque/more"], |v| {
            in_directory(&v.top("opaque/more"), |path| fs::create_dir(path).unwrap());
        }),
        ("missing file", &["BASE", "right"], |v| {
            in_directory(&v.base("right"), |path| fs::remove_file(path).unwrap());
        }),
        ("missing link", &["BASE", "link"], |v| {
            in_directory(&v.base("link"), |path| fs::remove_file(path).unwrap());
        }),
        ("renamed", &["BASE", "right"], |v| {
            in_directory(&v.base("right"), |path| fs::rename(path, path.with_file_name("rigid")).unwrap());
        }),
        ("swapped", &["BASE", "one"], |v| {
            // The content, size and attributes of `left` under another name.
            let (one, left) = (v.base("one"), v.base("left"));
            keeping_time(one.parent().unwrap(), || {
                fs::rename(&one, one.with_file_name("swap")).unwrap();
                fs::rename(&left, &one).unwrap();
                fs::rename(one.with_file_name("swap"), &left).unwrap();
            });
        }),
        ("hard link broken", &["BASE", "one", "two"], |v| {
            let path = v.base("two");
            replace(&path, |path| {
                succeed(Command::new("cp").arg("-a").arg(path.with_file_name("one")).arg(path));
            });
        }),
        ("files linked", &["BASE", "left", "right"], |v| {
            in_directory(&v.base("right"), |path| {
                fs::remove_file(path).unwrap();
                fs::hard_link(path.with_file_name("left"), path).unwrap();
            });
        }),
        ("linked to the copy below", &["TOP", "etc/alias"], |v| {
            let (path, lower) = (v.top("etc/alias"), v.base("etc/passwd"));
            in_directory(&path, |path| {
                fs::remove_file(path).unwrap();
                fs::hard_link(lower, path).unwrap();
            });
        }),
    ]);
}

#[case]
fn what_hides_and_what_was_settled() {
    each(&[
        ("missing whiteout", &["TOP", "gone/file"], |v| {
            in_directory(&v.top("gone/file"), |path| fs::remove_file(path).unwrap());
        }),
        ("extra whiteout", &["TOP", "etc/passwd-"], |v| {
            in_directory(&v.top("etc/passwd-"), |path| mknod(path, "c", "0", "0"));
        }),
        ("whiteout to file", &["TOP", "gone/file"], |v| {
            replace(&v.top("gone/file"), |path| fs::write(path, "").unwrap());
        }),
        ("file to whiteout", &["TOP", "opaque/new"], |v| {
            replace(&v.top("opaque/new"), |path| mknod(path, "c", "0", "0"));
        }),
        ("opaque removed", &["TOP", "opaque", "trusted.overlay.opaque"], |v| {
            lremovexattr(v.top("opaque"), "trusted.overlay.opaque").unwrap();
        }),
        ("opaque added", &["TOP", "etc", "trusted.overlay.opaque"], |v| {
            set_xattr(&v.top("etc"), "trusted.overlay.opaque", "y");
        }),
        ("redirect", &["TOP", "opaque", "trusted.overlay.redirect"], |v| {
            set_xattr(&v.top("opaque"), "trusted.overlay.redirect", "/etc");
        }),
        ("mode of an implied directory", &["TOP", "etc", "mode"], |v| {
            fs::set_permissions(v.top("etc"), fs::Permissions::from_mode(0o755)).unwrap();
        }),
        ("owner of an implied directory", &["TOP", "etc", "owner"], |v| {
            chown(v.top("etc"), Some(0), None).unwrap();
        }),
        ("time of an implied directory", &["TOP", "etc", "modification time"], |v| {
            let time = FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
            File::open(v.top("etc")).unwrap().set_times(time).unwrap();
        }),
        ("attribute of the root", &["BASE", "user.root"], |v| set_xattr(&v.base(""), "user.root", "x")),
        ("mode of the root", &["TOP", "mode"], |v| {
            fs::set_permissions(v.top(""), fs::Permissions::from_mode(0o700)).unwrap();
        }),
    ]);
}

#[case]
fn files_next_to_the_layers() {
    each(&[
        ("tar-split changed", &["BASE"], |v| flip(&v.tar_split(0), 40)),
        ("tar-split truncated", &["BASE"], |v| {
            let file = File::options().write(true).open(v.tar_split(0)).unwrap();
            file.set_len(file.metadata().unwrap().len() - 1).unwrap();
        }),
        ("tar-split swapped", &["BASE"], |v| {
            let (base, top) = (v.tar_split(0), v.tar_split(1));
            let bytes = fs::read(&top).unwrap();
            fs::copy(&base, top).unwrap();
            fs::write(base, bytes).unwrap();
        }),
        ("tar-split missing", &["BASE"], |v| fs::remove_file(v.tar_split(0)).unwrap()),
        ("tree missing", &["BASE", "missing"], |v| fs::remove_dir_all(v.base("")).unwrap()),
        ("images.json missing", &["images.json", "missing"], |v| {
            fs::remove_file(v.at("overlay-images/images.json")).unwrap();
        }),
        ("lower", &["TOP", "lower"], |v| append(&v.at(&format!("overlay/{}/lower", v.hex(1))))),
        ("lower of a base layer", &["BASE", "lower"], |v| {
            fs::write(v.at(&format!("overlay/{}/lower", v.hex(0))), "l/X").unwrap();
        }),
        ("link", &["BASE", "link"], |v| flip(&v.at(&format!("overlay/{}/link", v.hex(0))), 0)),
        ("short name", &["overlay/l/"], |v| {
            let path = v.at(&format!("overlay/l/{}", v.cache.content.layers[0].chain_id.link()));
            replace(&path, |path| symlink(format!("../{}/diff", v.hex(1)), path).unwrap());
        }),
        ("short name missing", &["overlay/l/"], |v| {
            let link = v.cache.content.layers[1].chain_id.link();
            fs::remove_file(v.at(&format!("overlay/l/{link}"))).unwrap();
        }),
        ("images.json", &["images.json"], |v| append(&v.at("overlay-images/images.json"))),
        ("layers.json", &["layers.json"], |v| append(&v.at("overlay-layers/layers.json"))),
        ("layers.lock", &["layers.lock"], |v| fs::write(v.at("overlay-layers/layers.lock"), "x").unwrap()),
        ("snapshots.metadata", &["snapshots.metadata"], |v| append(&v.at("snapshots.metadata"))),
        ("prefetch.list", &["prefetch.list"], |v| append(&v.at("prefetch.list"))),
        ("prefetch.list missing", &["prefetch.list", "missing"], |v| {
            fs::remove_file(v.at("prefetch.list")).unwrap();
        }),
        ("index.json", &["oci/index.json"], |v| append(&v.at("oci/index.json"))),
        ("oci-layout", &["oci/oci-layout"], |v| append(&v.at("oci/oci-layout"))),
        ("manifest", &["oci/blobs"], |v| append(&v.document(&v.cache.content.images[0].manifest))),
        ("config", &["oci/blobs"], |v| append(&v.document(&v.cache.content.images[0].config))),
        ("config missing", &["oci/blobs", "missing"], |v| {
            fs::remove_file(v.document(&v.cache.content.images[0].config)).unwrap();
        }),
        ("manifest of the store", &["overlay-images", "manifest"], |v| {
            let config = v.cache.content.images[0].config.hex();
            append(&v.at(&format!("overlay-images/{config}/manifest")));
        }),
        ("extra at the root", &["more"], |v| fs::write(v.at("more"), "").unwrap()),
        ("extra blob", &["oci/blobs/sha256/more"], |v| {
            fs::write(v.at("oci/blobs/sha256/more"), "").unwrap();
        }),
        ("extra layer", &["overlay/more"], |v| fs::create_dir(v.at("overlay/more")).unwrap()),
        ("extra file next to a tree", &["BASE", "work"], |v| {
            fs::create_dir(v.at(&format!("overlay/{}/work", v.hex(0)))).unwrap();
        }),
        ("extra in .larder", &[".larder/staging"], |v| fs::create_dir(v.at(".larder/staging")).unwrap()),
    ]);
}

#[case]
fn statements_of_the_seal() {
    each(&[
        ("digest", &["cache.json", "digest"], |v| {
            let text = fs::read_to_string(v.at("cache.json")).unwrap();
            let digest = v.cache.digest.to_string();
            let other = Digest::sha256(b"other").to_string();
            fs::write(v.at("cache.json"), text.replace(&digest, &other)).unwrap();
        }),
        ("content alone", &["cache.json", "digest"], |v| {
            let mut sealed = v.cache.clone();
            sealed.content.totals.entries += 1;
            fs::write(v.at("cache.json"), serde_json::to_vec(&sealed).unwrap()).unwrap();
        }),
        ("diff ID", &["cache.json"], |v| v.reseal(|c| c.layers[0].diff_id = Digest::sha256(b"other"))),
        ("chain ID", &["cache.json"], |v| {
            v.reseal(|c| c.layers[1].chain_id = c.layers[1].chain_id.child(&c.layers[1].diff_id.clone()));
        }),
        ("parent", &["cache.json"], |v| v.reseal(|c| c.layers[1].parent = None)),
        ("blob", &["cache.json"], |v| v.reseal(|c| c.layers[0].blob = Digest::sha256(b"other"))),
        ("media type", &["cache.json"], |v| v.reseal(|c| c.layers[0].media_type.push('x'))),
        ("compressed size", &["cache.json"], |v| v.reseal(|c| c.layers[0].compressed_size += 1)),
        ("entries", &["cache.json"], |v| {
            v.reseal(|c| {
                c.layers[0].entries += 1;
                c.totals.entries += 1;
            });
        }),
        ("size", &["does not follow from cache.json"], |v| {
            v.reseal(|c| {
                c.layers[0].size += 512;
                c.totals.size += 512;
            });
        }),
        ("size of a tar-split file", &["BASE"], |v| {
            v.reseal(|c| c.layers[0].tar_split_size = c.layers[0].tar_split_size.map(|size| size + 1));
        }),
        ("inherited", &["TOP"], |v| v.reseal(|c| c.layers[1].settled.inherited.clear())),
        ("copied up", &["TOP"], |v| v.reseal(|c| c.layers[1].settled.copied_up.push("tool".into()))),
        ("opaque", &["TOP", "opaque"], |v| {
            v.reseal(|c| c.layers[1].settled.opaque_as_whiteouts.push("opaque".into()));
        }),
        ("totals", &["cache.json", "totals"], |v| v.reseal(|c| c.totals.compressed_size += 1)),
        ("number of layers", &["cache.json", "totals"], |v| v.reseal(|c| c.totals.layers += 1)),
        ("layer dropped", &["cache.json"], |v| v.reseal(|c| drop(c.layers.pop()))),
        ("image dropped", &["cache.json"], |v| v.reseal(|c| c.images.clear())),
        ("manifest", &["missing"], |v| v.reseal(|c| c.images[0].manifest = Digest::sha256(b"other"))),
        ("config", &["cache.json"], |v| v.reseal(|c| c.images[0].config = Digest::sha256(b"other"))),
        ("chain", &["cache.json"], |v| v.reseal(|c| drop(c.images[0].chain.pop()))),
        ("platform", &["cache.json"], |v| v.reseal(|c| c.images[0].platform.os.push('x'))),
        ("name", &["cache.json"], |v| v.reseal(|c| c.images[0].name.push('x'))),
        ("reference", &["cache.json"], |v| v.reseal(|c| c.images[0].reference.push('x'))),
    ]);
}

#[case]
fn without_tar_split_there_is_nothing_to_verify_with() {
    isolated(&[], || {
        let served = Served::new([image()]);
        succeed(served.build(&served.volume(), 64 << 20).arg("--no-tar-split"));
        let said = exits(64, larder().arg("verify").arg(served.volume()));
        assert!(said.contains("--no-tar-split"), "{said}");
    });
}
