//! `attach --trust` serves exactly the signed bytes, and every user can read them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use larder_model::job::LayerFormat;
use larder_testing::image::{Format, Image};
use larder_testing::layer::LayerBuilder;

use crate::harness::node::Node;
use crate::harness::served::Served;
use crate::harness::{Need, exits, isolated, larder, succeed};

const SIZE: u64 = 64 << 20;

fn image() -> Image {
    let layer = |name: &str| LayerBuilder::new().file(name, "content\n").gzip().into();
    Image::builder(Format::Oci).layers([layer("etc/motd"), layer("etc/more")]).build()
}

/// Builds a signed volume and returns the public key.
fn signed(served: &Served, volume: &Path, more: &[&str]) -> String {
    let key = served.beside("key");
    let line = succeed(larder().args(["key", "generate"]).arg(&key));
    succeed(served.build(volume, SIZE).arg("--sign-key").arg(&key).args(more));
    line.trim().to_owned()
}

fn mounts() -> String {
    fs::read_to_string("/proc/thread-self/mountinfo").unwrap()
}

/// Returns the file of the volume whose path ends with `end`.
fn find(volume: &Path, end: &str) -> PathBuf {
    let mut pending = vec![volume.to_owned()];
    while let Some(path) = pending.pop() {
        if path.to_str().unwrap().ends_with(end) {
            return path;
        }
        if path.is_dir() && !path.is_symlink() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    panic!("{} has no {end}", volume.display());
}

/// Flips a bit in the middle of a file, and restores its modification time.
fn flip(file: &Path) {
    let time = fs::metadata(file).unwrap().modified().unwrap();
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
    fs::File::options().write(true).open(file).unwrap().set_modified(time).unwrap();
}

fn replace_by_link(path: &Path) {
    let aside = path.with_extension("aside");
    fs::rename(path, &aside).unwrap();
    let target = tempfile::tempdir().unwrap().keep().join("elsewhere");
    fs::rename(&aside, &target).unwrap();
    symlink(&target, path).unwrap();
}

type Change = (&'static str, Box<dyn Fn(&Path)>);

fn change(what: &'static str, change: impl Fn(&Path) + 'static) -> Change {
    (what, Box::new(change))
}

/// Returns changes of a file, of its permissions and of its type, for a layer format.
fn changes(form: LayerFormat) -> Vec<Change> {
    let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let flipped = |end: &'static str| change(end, move |volume| flip(&find(volume, end)));
    let linked = |end: &'static str| change(end, move |volume| replace_by_link(&find(volume, end)));
    let mut all = vec![
        flipped("/cache.json"),
        flipped("/cache.json.sig"),
        flipped("/prefetch.list"),
        flipped("/oci/index.json"),
        flipped("/oci/oci-layout"),
        linked("/cache.json"),
        linked("/prefetch.list"),
        linked("/oci"),
        linked("/oci/index.json"),
        change("a file that nothing explains", |volume| fs::write(volume.join("oci/new"), "x").unwrap()),
        change("write permission for all on the top directory", move |volume| mode(volume, 0o777)),
        change("a group may write to a directory", move |volume| mode(&volume.join("oci/blobs"), 0o775)),
        change("a directory of another user", |volume| {
            chown(volume.join("oci"), Some(65_534), None).unwrap()
        }),
        change("the top of another user", |volume| chown(volume, Some(65_534), None).unwrap()),
        change("an index that others may write", move |volume| mode(&volume.join("oci/index.json"), 0o666)),
        change("an index with a name elsewhere", |volume| {
            fs::hard_link(volume.join("oci/index.json"), volume.with_extension("linked")).unwrap();
        }),
    ];
    match form {
        LayerFormat::Overlay => all.extend([
            flipped("/snapshots.metadata"),
            flipped("/overlay-layers/layers.json"),
            flipped("/overlay-images/images.json"),
            flipped("/link"),
            flipped("/lower"),
            flipped("/etc/motd"),
            flipped(".tar-split.gz"),
            linked("/overlay"),
            linked("/link"),
            linked("/diff"),
            linked("/layers.json"),
            change("a file with a name elsewhere", |volume| {
                fs::hard_link(find(volume, "/etc/motd"), volume.with_extension("linked")).unwrap();
            }),
            change("a directory of layers that others may write", move |volume| {
                mode(find(volume, "/lower").parent().unwrap(), 0o777);
            }),
            change("a short name of another layer", |volume| {
                let links = volume.join("overlay/l");
                let link = fs::read_dir(&links).unwrap().next().unwrap().unwrap().path();
                fs::remove_file(&link).unwrap();
                symlink("../../../../etc", &link).unwrap();
                lchown(&link, Some(0), Some(0)).unwrap();
            }),
        ]),
        LayerFormat::Erofs => {
            all.extend([flipped(".erofs"), flipped(".gz"), linked(".erofs"), linked("/erofs")])
        }
    }
    all
}

fn refused(form: LayerFormat, more: &[&str]) {
    let (served, node) = (Served::new([image()]).with(form), Node::new());
    let (volume, at) = (served.volume(), node.place("icv"));
    let key = signed(&served, &volume, more);
    // An earlier verification does not cover later changes.
    succeed(node.attach(&volume, &at).args(["--trust", &key]));
    succeed(&mut node.detach(&at));
    let (before, copy) = (mounts(), served.beside("copy"));
    succeed(Command::new("cp").args(["-a"]).arg(&volume).arg(&copy));
    for (what, change) in changes(form) {
        change(&volume);
        for command in ["attach", "verify"] {
            let mut larder = match command {
                "attach" => node.attach(&volume, &at),
                _ => {
                    let mut larder = larder();
                    larder.arg("verify").arg(&volume);
                    larder
                }
            };
            let output = larder.args(["--trust", &key]).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            // A signature with another key is not trusted.
            let wanted = output.status.code() == Some(65)
                || (output.status.code() == Some(77) && what.ends_with(".sig"));
            assert!(wanted, "{command}, {what}: {:?}: {said}", output.status);
        }
        assert!(mounts() == before && !at.exists() && node.configured().is_empty(), "{what}");
        assert_eq!(fs::read_dir(node.state().join("attached")).unwrap().count(), 0, "{what}");
        succeed(Command::new("rm").arg("-rf").arg(&volume).arg(volume.with_extension("linked")));
        succeed(Command::new("cp").args(["-a"]).arg(&copy).arg(&volume));
    }
    succeed(node.attach(&volume, &at).args(["--trust", &key]));
    succeed(&mut node.detach(&at));
}

#[case]
fn a_volume_of_directories_is_what_was_signed() {
    isolated(&[], || refused(LayerFormat::Overlay, &[]));
}

#[case]
fn a_volume_of_images_is_what_was_signed() {
    isolated(&[Need::Erofs], || refused(LayerFormat::Erofs, &[]));
}

#[case]
fn a_volume_of_images_with_hash_trees_is_what_was_signed() {
    isolated(&[Need::Erofs], || refused(LayerFormat::Erofs, &["--verity"]));
}

/// Commands that read a volume without verification report that it was changed, and not an internal error.
#[case]
fn a_forged_volume_is_a_corrupt_one() {
    isolated(&[], || {
        let served = Served::new([image()]);
        let (volume, copy) = (served.volume(), served.beside("copy"));
        succeed(&mut served.build(&volume, SIZE));
        succeed(Command::new("cp").args(["-a"]).arg(&volume).arg(&copy));
        for end in ["/cache.json", "/oci", "/overlay", "/diff", ".tar-split.gz"] {
            replace_by_link(&find(&volume, end));
            let mut export = larder();
            export.args(["export", "--format", "oci-archive"]).arg(&volume).arg(served.beside("out"));
            exits(65, &mut export);
            exits(65, larder().arg("verify").arg(&volume));
            succeed(Command::new("rm").arg("-rf").arg(&volume));
            succeed(Command::new("cp").args(["-a"]).arg(&copy).arg(&volume));
        }
    });
}

/// A verified volume is not read again until one of its files changes. This includes disks.
#[case]
fn the_same_volume_is_verified_once() {
    isolated(&[Need::Program("mkfs.ext4")], || {
        let served = Served::new([image()]);
        for kind in ["directory", "disk"] {
            let node = Node::new();
            let (volume, at) = (served.beside(kind), node.place("icv"));
            let _ = fs::remove_file(served.beside("key"));
            let key = signed(&served, &volume, &["--volume-kind", kind]);
            let records = || match fs::read_dir(node.state().join("verified")) {
                Ok(names) => {
                    names.map(|name| name.unwrap().metadata().unwrap().modified().unwrap()).collect()
                }
                Err(_) => Vec::new(),
            };
            let attach = |flags: &[&str]| {
                let mut attach = node.attach(&volume, &at);
                attach.args(["--trust", &key, "--no-unit", "--log-level", "debug"]).args(flags);
                let output = attach.output().unwrap();
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                String::from_utf8_lossy(&output.stderr).contains("was verified before")
            };
            assert!(!attach(&["--trust-metadata-only"]));
            let metadata = records().len();
            succeed(&mut node.detach(&at));
            assert!(!attach(&[]), "{kind}: it was not verified");
            let noted = records();
            assert_eq!(noted.len(), metadata + 1, "{kind}");
            // Attach it again, while it is attached.
            assert!(attach(&[]), "{kind}");
            succeed(&mut node.detach(&at));
            assert!(attach(&[]), "{kind}");
            assert_eq!(records(), noted, "{kind}");
            succeed(&mut node.detach(&at));
            // A touched file is unchanged, but is read again.
            let file = if kind == "disk" { volume.join("disk.img") } else { find(&volume, "/etc/motd") };
            let permissions = fs::metadata(&file).unwrap().permissions();
            fs::set_permissions(&file, permissions).unwrap();
            assert!(!attach(&[]), "{kind}");
            succeed(&mut node.detach(&at));
        }
    });
}

/// Other users cannot enter the volume, but can read the mount.
#[case]
fn every_user_can_read_an_attached_volume() {
    isolated(&[], || {
        let (served, node) = (Served::new([image()]), Node::new());
        let (volume, at) = (served.volume(), node.place("icv"));
        succeed(&mut served.build(&volume, SIZE));
        for dir in [served.beside("."), node.place(".")] {
            fs::set_permissions(dir, Permissions::from_mode(0o755)).unwrap();
        }
        let as_nobody = |file: &Path| {
            let mut cat = Command::new("setpriv");
            cat.args(["--reuid=65534", "--regid=65534", "--clear-groups", "cat"]).arg(file);
            cat.output().unwrap()
        };
        assert!(
            !as_nobody(&find(&volume, "/etc/motd")).status.success(),
            "other users must not read the volume"
        );
        succeed(&mut node.attach(&volume, &at));
        assert_eq!(as_nobody(&find(&at, "/etc/motd")).stdout, b"content\n");
        assert!(as_nobody(&at.join("cache.json")).status.success());
        assert!(!at.join(".larder").exists());
        succeed(&mut node.detach(&at));

        let over = node.place("image");
        fs::create_dir(&over).unwrap();
        let mut mount = larder();
        mount.env("LARDER_STATE__DIR", node.state()).arg("mount").arg(&volume);
        succeed(mount.arg(&served.references()[0]).arg(&over));
        assert_eq!(as_nobody(&over.join("etc/motd")).stdout, b"content\n");
        succeed(larder().env("LARDER_STATE__DIR", node.state()).arg("umount").arg(&over));
    });
}

/// A failed step undoes the steps before it.
#[case]
fn a_failed_attach_leaves_nothing() {
    isolated(&[], || {
        let (served, node) = (Served::new([image()]), Node::new());
        let (volume, at, before) = (served.volume(), node.place("icv"), mounts());
        succeed(&mut served.build(&volume, SIZE));
        // A unit cannot be written.
        let units = node.path("/etc/systemd/system");
        fs::create_dir_all(units.parent().unwrap()).unwrap();
        fs::write(&units, "a file").unwrap();
        let output = node.attach(&volume, &at).output().unwrap();
        assert!(!output.status.success());
        assert!(mounts() == before && !at.exists(), "{}", mounts());
        assert_eq!(fs::read_dir(node.state().join("attached")).unwrap().count(), 0);
        // The view of a volume cannot be created.
        fs::remove_file(&units).unwrap();
        let pipe = volume.join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        exits(65, &mut node.attach(&volume, &at));
        assert!(mounts() == before && !at.exists(), "{}", mounts());
        assert_eq!(fs::read_dir(node.state().join("attached")).unwrap().count(), 0);
    });
}

/// `attach` refuses a signed volume with another name, and an older one with the same name.
#[case]
fn only_the_intended_volume_is_attached() {
    isolated(&[], || {
        let (served, node) = (Served::new([image()]), Node::new());
        let (web, db, at) = (served.beside("web"), served.beside("db"), node.place("icv"));
        let key = signed(&served, &web, &["--sign-name", "web", "--sign-sequence", "17"]);
        let build = |volume: &Path, name: &str| {
            let mut build = served.build(volume, SIZE);
            build.arg("--sign-key").arg(served.beside("key")).args(["--sign-name", name]);
            build
        };
        succeed(&mut build(&db, "db"));
        exits(64, &mut build(&served.beside("bad"), "a\nb"));
        let inspected = succeed(larder().arg("inspect").arg(&db));
        let digest = inspected.lines().find_map(|line| line.strip_prefix("cache.json ")).unwrap().to_owned();
        let attach = |volume: &Path, more: &[&str]| {
            let mut attach = node.attach(volume, &at);
            attach.args(["--trust", &key, "--no-unit"]).args(more);
            attach
        };
        let said = exits(77, &mut attach(&db, &["--name", "web"]));
        assert!(said.contains("for the name \"db\", but \"web\" is required"), "{said}");
        let said =
            exits(77, &mut attach(&web, &["--name", "web", "--not-older-than", "2100-01-01T00:00:00Z"]));
        assert!(said.contains("must not be older than 2100-01-01T00:00:00Z"), "{said}");
        let other = format!("sha256:{}", "0".repeat(64));
        exits(65, &mut attach(&db, &["--digest", &other]));
        assert!(!at.exists() && !node.state().join("attached").exists());
        succeed(&mut attach(
            &db,
            &["--name", "db", "--not-older-than", "2026-01-01T00:00:00Z", "--digest", &digest],
        ));
        succeed(&mut node.detach(&at));
        succeed(&mut attach(&web, &["--name", "web"]));
        succeed(&mut node.detach(&at));
    });
}
