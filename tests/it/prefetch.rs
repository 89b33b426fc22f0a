//! `prefetch.list` names the files that a container opens before its program runs, and `larder prefetch`
//! reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use larder_model::seal::CacheManifest;
use larder_prefetch::list::{self, Entry};
use larder_testing::image::{self, Format, Image};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::layers::{Member, Node, Packing, layer};
use crate::harness::opened::Opened;
use crate::harness::overlay::View;
use crate::harness::registry::Registry;
use crate::harness::{Need, exits, isolated, larder, succeed};

const REGISTRY: Need = Need::Program("docker-registry");

/// Returns a member with a file of this machine at its own path.
fn copy(path: &str) -> Member {
    let content = fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    Member::new(path.trim_start_matches('/'), Node::File(content)).mode(0o755)
}

/// Returns the loader and the libraries of programs of this machine.
fn libraries(programs: &[&str]) -> BTreeSet<String> {
    let listed = succeed(Command::new("ldd").args(programs));
    let words = listed.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':'));
    words.map(str::to_owned).collect()
}

/// Returns an image of three layers whose entrypoint is a script for dash that runs Python. With `cache`, the
/// loader finds the libraries through this machine's ld.so.cache.
fn python(cache: bool) -> Image {
    let python = fs::canonicalize("/usr/bin/python3").unwrap().into_os_string().into_string().unwrap();
    let libraries = libraries(&[&python, "/bin/dash"]);
    let libc = libraries.iter().find(|path| path.ends_with("/libc.so.6")).unwrap();
    let mut base: Vec<Member> = libraries.iter().map(|path| copy(path)).collect();
    if cache {
        base.push(copy("/etc/ld.so.cache"));
    }
    base.push(Member::file("etc/hidden", ""));
    let programs = [copy("/bin/dash"), copy(&python), Member::symlink("usr/bin/py", &python)];
    let top = [
        Member::file("srv/entry.sh", "#!/bin/dash -e\nread line </data/unlisted\nexec \"$@\"\n").mode(0o755),
        Member::file("data/unlisted", "by the program itself\n"),
        // Hides that of the base layer.
        copy(libc),
    ];
    Image::builder(Format::Oci)
        .layer(image::busybox().unwrap())
        .layers([layer(&base, Packing::Gzip), layer(&programs, Packing::Gzip), layer(&top, Packing::Gzip)])
        .command(&["/srv/entry.sh", "py", "--version"])
        .build()
}

/// A sealed volume with `images`, and its list by image.
struct Sealed {
    dir: TempDir,
    references: Vec<String>,
    cache: CacheManifest,
}

impl Sealed {
    fn new(images: &[&Image]) -> Self {
        let registry = Registry::open();
        let references: Vec<String> = images
            .iter()
            .enumerate()
            .map(|(n, image)| registry.push(image, "team/app", &n.to_string()))
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        let mut build = larder();
        build.arg("build").arg("--volume").arg(&volume).args(["--size", "512MiB"]);
        succeed(build.args(&references));
        let cache = CacheManifest::parse(&fs::read(volume.join("cache.json")).unwrap()).unwrap();
        Sealed { dir, references, cache }
    }

    fn volume(&self) -> std::path::PathBuf {
        self.dir.path().join("volume")
    }

    /// Returns the files on the list of the image, in its order.
    fn list(&self, image: usize) -> Vec<Entry> {
        let sections = list::parse(&fs::read(self.volume().join("prefetch.list")).unwrap()).unwrap();
        assert_eq!(sections.len(), self.references.len());
        assert_eq!(sections[image].manifest, self.cache.content.images[image].manifest);
        sections[image].files.clone()
    }

    fn prefetch(&self) -> Command {
        let mut prefetch = larder();
        prefetch.arg("prefetch").arg(self.volume());
        prefetch
    }

    /// Returns the layer whose `path` the container sees.
    fn shows(&self, image: usize, path: &str) -> String {
        let chain = &self.cache.content.images[image].chain;
        let at = |hex: &str| self.volume().join("overlay").join(hex).join("diff").join(path);
        let mut layers = chain.iter().rev().map(|chain_id| chain_id.hex());
        layers.find(|hex| at(hex).symlink_metadata().is_ok()).unwrap().to_owned()
    }
}

/// Runs `command` in the view of the image and compares the opened files with the list.
///
/// The list need not contain files that the program opens itself after its loader is done. `later` names
/// those, and no other opened file can be missing from the list.
fn opens_what_is_listed(sealed: &Sealed, number: usize, image: &Image, command: &[&str], later: &[&str]) {
    let diff_ids: Vec<_> = image.layers.iter().map(|layer| layer.diff_id.clone()).collect();
    let view = View::mount(&sealed.volume(), &diff_ids);
    let opened = Opened::watch(&view.path());
    let mut chroot = Command::new("/usr/sbin/chroot");
    succeed(chroot.env_clear().env("PATH", "/bin:/usr/bin").arg(view.path()).args(command));
    let opened = opened.paths();
    let listed: BTreeMap<String, Entry> = sealed
        .list(number)
        .into_iter()
        .map(|entry| (String::from_utf8(entry.path.clone()).unwrap(), entry))
        .collect();
    let unlisted: Vec<&str> =
        opened.iter().filter(|path| !listed.contains_key(*path)).map(String::as_str).collect();
    assert_eq!(unlisted, later, "{command:?} opened {opened:?}, listed {:?}", listed.keys());
    for (path, entry) in opened.iter().filter_map(|path| Some((path, listed.get(path)?))) {
        assert_eq!(entry.tree, format!("overlay/{}/diff", sealed.shows(number, path)), "{path}");
        let file = sealed.volume().join(&entry.tree).join(path);
        assert_eq!(entry.size, fs::metadata(file).unwrap().len(), "{path}");
    }
    let program = command[0].trim_start_matches('/');
    assert!(opened.contains(program), "{program} in {opened:?}");
}

#[case]
fn a_start_opens_nothing_that_is_not_listed() {
    isolated(&[REGISTRY, Need::Program("ldd"), Need::Program("python3")], || {
        let shell = Image::builder(Format::Oci)
            .layer(image::busybox().unwrap())
            .command(&["/bin/sh", "-c", "exec cat /etc/hostname"])
            .build();
        let images = [python(false), python(true), shell];
        let sealed = Sealed::new(&images.iter().collect::<Vec<_>>());
        for (number, image) in images[..2].iter().enumerate() {
            let command = ["/srv/entry.sh", "py", "--version"];
            opens_what_is_listed(&sealed, number, image, &command, &["data/unlisted"]);
            // The program, the libraries of two loaders, and the files that a runtime reads. The list does
            // not contain everything.
            assert!(sealed.list(number).len() < 20, "{:?}", sealed.list(number));
        }
        opens_what_is_listed(&sealed, 2, &images[2], &["/bin/sh", "-c", "exec true"], &[]);
        succeed(larder().arg("verify").arg(sealed.volume()));
    });
}

/// Returns the number of pages of a file in the page cache.
fn cached(path: &Path) -> u64 {
    let pages = succeed(Command::new("fincore").args(["--noheadings", "--output", "PAGES"]).arg(path));
    pages.trim().parse().unwrap()
}

#[case]
fn what_is_listed_is_read_into_the_cache() {
    isolated(&[REGISTRY, Need::Program("ldd"), Need::Program("fincore")], || {
        let (image, other) =
            (python(true), Image::builder(Format::Oci).layer(image::busybox().unwrap()).build());
        let sealed = Sealed::new(&[&image, &other]);
        let files = |entries: &[Entry]| -> Vec<_> {
            let path = |entry: &Entry| {
                let path = String::from_utf8(entry.path.clone()).unwrap();
                sealed.volume().join(&entry.tree).join(path)
            };
            entries.iter().map(path).collect()
        };
        let listed = files(&sealed.list(0));
        let hidden = sealed.volume().join("overlay").join(sealed.shows(0, "data/unlisted"));
        let hidden = hidden.join("diff/data/unlisted");
        let evict = || {
            for path in listed.iter().chain([&hidden]) {
                let file = File::open(path).unwrap();
                nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)
                    .unwrap();
            }
            listed.iter().map(|path| cached(path)).sum::<u64>() == 0
        };
        if !evict() {
            eprintln!("skipped in part: this file system keeps its pages");
            return;
        }
        let bytes: u64 = listed.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
        let said = succeed(sealed.prefetch().args(["--image", &sealed.references[0]]));
        assert!(said.starts_with(&format!("{} files, ", listed.len())), "{said}");
        let pages: u64 = listed.iter().map(|path| cached(path)).sum();
        assert!(pages * 4096 >= bytes, "{pages} pages of {bytes} bytes");
        assert_eq!(cached(&hidden), 0, "this file is not on the list");

        assert!(evict());
        succeed(sealed.prefetch().arg("--all"));
        assert!(listed.iter().chain([&hidden]).all(|path| cached(path) > 0));
    });
}

#[case]
fn a_hostile_volume_causes_no_read_outside_it() {
    isolated(&[REGISTRY], || {
        let sealed = Sealed::new(&[&Image::builder(Format::Oci).layer(image::busybox().unwrap()).build()]);
        let volume = sealed.volume();
        let list = volume.join("prefetch.list");
        let original = fs::read_to_string(&list).unwrap();
        let layer = sealed.cache.content.layers[0].chain_id.hex().to_owned();
        let diff = volume.join("overlay").join(&layer).join("diff");
        let secret = sealed.dir.path().join("secret");
        fs::write(&secret, "x").unwrap();
        let line = |path: &str| format!("{original}file 1 overlay/{layer}/diff/{path}\n");

        succeed(&mut sealed.prefetch());
        assert!(
            exits(64, sealed.prefetch().args(["--image", "none:1"])).contains("none:1 is not on the volume")
        );

        symlink(&secret, diff.join("link")).unwrap();
        symlink("/etc", diff.join("dir")).unwrap();
        succeed(Command::new("mkfifo").arg(diff.join("fifo")));
        for path in ["link", "dir/passwd", "fifo", "etc"] {
            fs::write(&list, line(path)).unwrap();
            let said = exits(65, &mut sealed.prefetch());
            assert!(said.contains(&format!("diff/{path}")), "{said}");
        }
        for (path, why) in [("none", "diff/none"), ("../x", "line "), (r"\x2e./x", "line ")] {
            fs::write(&list, line(path)).unwrap();
            let said = exits(65, &mut sealed.prefetch());
            assert!(said.contains(why), "{said}");
        }
        fs::write(&list, line("x").replace(&layer, &"0".repeat(64))).unwrap();
        assert!(exits(65, &mut sealed.prefetch()).contains("does not agree with cache.json"));
        fs::remove_file(&list).unwrap();
        assert!(exits(64, &mut sealed.prefetch()).contains("give --all"));
        // Links and pipes are not regular files. All others are read.
        succeed(sealed.prefetch().arg("--all"));
        fs::remove_file(volume.join("cache.json")).unwrap();
        exits(73, &mut sealed.prefetch());
    });
}

#[case]
fn inspect_says_in_how_many_pieces_the_layers_lie() {
    isolated(&[REGISTRY], || {
        let sealed = Sealed::new(&[&Image::builder(Format::Oci).layer(image::busybox().unwrap()).build()]);
        let inspect = |more: &[&str]| succeed(larder().arg("inspect").arg(sealed.volume()).args(more));
        let json: Value = serde_json::from_str(&inspect(&["--json", "--extents"])).unwrap();
        let layer = sealed.cache.content.layers[0].chain_id.to_string();
        let (total, layer) = (&json["placement"]["total"], &json["placement"]["layers"][layer]);
        assert_eq!(total, layer);
        // Busybox, with any of its names, and two files of /etc.
        assert_eq!(total["files"].as_u64().unwrap() + total["unknown"].as_u64().unwrap(), 3);
        assert!(total["extents"].as_u64() >= total["pieces"].as_u64());
        assert!(inspect(&["--extents"]).contains("  on disk   "));
        assert!(CacheManifest::parse(inspect(&["--json"]).as_bytes()).is_ok());
        assert!(!inspect(&["--json"]).contains("placement"));
    });
}
