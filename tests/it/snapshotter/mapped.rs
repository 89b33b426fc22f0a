//! Containers in user namespaces: containerd maps the IDs of the layers in place, and nothing is copied.
//!
//! Debian's containerd cannot do that. A script does what newer versions do with the mounts (core/mount):
//! clone the common directory with its mounts, map it, and mount the overlay from there.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use larder_containerd_api::types::Mount;
use larder_model::chain::ChainId;
use larder_model::job::LayerFormat;
use larder_testing::image::{Format, Image};
use larder_testing::layer::LayerBuilder;
use nix::mount::{MntFlags, umount2};

use super::containers::SIZE;
use crate::harness::served::Served;
use crate::harness::snapshots::Snapshotter;
use crate::harness::{Need, isolated, succeed};

const NEEDS: [Need; 2] = [Need::Erofs, Need::Program("python3")];
const UIDS: (&str, &str) = ("containerd.io/snapshot/uidmapping", "0:100000:65536");
const GIDS: (&str, &str) = ("containerd.io/snapshot/gidmapping", "0:200000:65536");

/// Mounts as containerd does. The arguments are the type, the source, the options, a directory to map in, and
/// the target.
const MOUNT: &str = r#"
import ctypes, os, sys
kind, source, options, scratch, target = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
options = options.split(",")
maps = {key: value for key, value in (o.split("=", 1) for o in options if "map=" in o)}
plain = [o for o in options if "map=" not in o]
ready, done = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    check(libc.unshare(0x10000000))                      # CLONE_NEWUSER
    os.write(ready[1], b"x"); os.read(done[0], 1); os._exit(0)
os.read(ready[0], 1)
for name, key in (("uid_map", "uidmap"), ("gid_map", "gidmap")):
    open(f"/proc/{child}/{name}", "w").write(maps[key].replace(":", " ").replace(",", "\n"))
namespace = os.open(f"/proc/{child}/ns/user", os.O_RDONLY)
os.write(done[1], b"x"); os.waitpid(child, 0)
class Attributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]
def mapped(path, at):
    flags = 1 | 0x80000 | 0x8000                         # OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC, AT_RECURSIVE
    tree = check(libc.syscall(428, -100, path.encode(), flags))
    attributes = Attributes(0x100000, 0, 1 << 18, namespace)
    check(libc.syscall(442, tree, b"", 0x1000 | 0x8000, ctypes.byref(attributes), 32))
    check(libc.syscall(429, tree, b"", -100, at.encode(), 4))
if kind == "bind":
    mapped(source, target)
else:
    lower = next(o for o in plain if o.startswith("lowerdir="))
    plain.remove(lower)
    layers = lower[len("lowerdir="):].split(":")
    common = os.path.dirname(os.path.commonprefix([layer + "/" for layer in layers]).rstrip("/")) if len(layers) == 1 \
        else os.path.dirname(os.path.commonprefix(layers))
    mapped(common, scratch)
    moved = ":".join(os.path.join(scratch, os.path.relpath(layer, common)) for layer in layers)
    text = ",".join(plain + ["lowerdir=" + moved])
    check(libc.mount(b"overlay", target.encode(), b"overlay", 0, text.encode()))
"#;

fn image() -> Image {
    let base =
        LayerBuilder::new().owner(5, 6).file("owned", "five\n").owner(0, 0).file("root", "zero\n").gzip();
    let top = LayerBuilder::new().owner(7, 8).dir("dir").file("dir/file", "seven\n").gzip();
    Image::builder(Format::Oci).layers([base.into(), top.into()]).build()
}

fn mounted(mounts: &[Mount], dir: &Path, check: impl FnOnce(&Path)) {
    let [what] = mounts else { panic!("{mounts:?}") };
    let (scratch, target) = (dir.join("scratch"), dir.join("target"));
    for path in [&scratch, &target] {
        fs::create_dir_all(path).unwrap();
    }
    let mut script = Command::new("python3");
    script.args(["-c", MOUNT, &what.r#type, &what.source]).arg(what.options.join(","));
    succeed(script.arg(&scratch).arg(&target));
    check(&target);
    for path in [&target, &scratch] {
        let _ = umount2(path, MntFlags::MNT_DETACH);
    }
}

fn owner(path: &Path) -> (u32, u32) {
    let facts = fs::symlink_metadata(path).unwrap();
    (facts.uid(), facts.gid())
}

#[case]
fn nothing_is_copied_for_a_user_namespace() {
    isolated(&NEEDS, || {
        for form in [LayerFormat::Overlay, LayerFormat::Erofs] {
            let served = Served::new([image()]).with(form);
            let volume = served.volume();
            succeed(&mut served.build(&volume, SIZE));
            let mut snapshotter = Snapshotter::start();
            let at = snapshotter.attach(&volume, "v");
            let client = &snapshotter.client;
            let diff_ids: Vec<_> =
                served.images[0].layers.iter().map(|layer| layer.diff_id.clone()).collect();
            let mut top = String::new();
            for chain in ChainId::chain(&diff_ids) {
                top = client.take(&chain.to_string(), &top).expect("the volume does not serve the layer");
            }
            // A layer of the node's own on top.
            let unpacked = client.prepare("unpack", &top, &[]).unwrap();
            let [overlay] = &unpacked[..] else { panic!() };
            let upper = overlay.options.iter().find_map(|option| option.strip_prefix("upperdir=")).unwrap();
            fs::write(Path::new(upper).join("local"), "local\n").unwrap();
            client.commit("local", "unpack", &[]).unwrap();

            let dir = tempfile::tempdir().unwrap();
            for (name, parent) in [("volume", top.as_str()), ("mixed", "local")] {
                let mounts = client.prepare(name, parent, &[UIDS, GIDS]).unwrap();
                mounted(&mounts, dir.path(), |root| {
                    assert_eq!(owner(root), (100_000, 200_000), "{form:?}");
                    assert_eq!(owner(&root.join("root")), (100_000, 200_000));
                    assert_eq!(owner(&root.join("owned")), (100_005, 200_006));
                    assert_eq!(owner(&root.join("dir")), (100_007, 200_008));
                    assert_eq!(fs::read_to_string(root.join("dir/file")).unwrap(), "seven\n");
                    assert_eq!(root.join("local").exists(), name == "mixed");
                    if name == "mixed" {
                        assert_eq!(owner(&root.join("local")), (100_000, 200_000));
                    }
                });
                // Only the top of the upper directory.
                assert_eq!(client.usage(name).unwrap().inodes, 1, "{form:?}");
                assert_eq!(client.mounts(name).unwrap(), mounts);
            }
            let view = client.view("nothing", "").unwrap();
            assert!(view[0].options.iter().all(|option| !option.contains("map=")), "{view:?}");

            // The additional mounts are removed with the snapshot, also after a crash.
            snapshotter.kill();
            snapshotter.restart();
            let client = &snapshotter.client;
            let mounts = client.mounts("volume").unwrap();
            mounted(&mounts, dir.path(), |root| assert_eq!(owner(&root.join("owned")), (100_005, 200_006)));
            let gathered = snapshotter.root().join("m");
            assert_eq!(fs::read_dir(&gathered).unwrap().count(), 2);
            for name in ["volume", "mixed", "nothing", "local"] {
                client.remove(name).unwrap();
            }
            assert_eq!(fs::read_dir(&gathered).unwrap().count(), 0);
            snapshotter.detach(&at);
        }
    });
}

#[case]
fn what_starts_after_an_upgrade_stands_on_the_newer_volume() {
    isolated(&NEEDS, || {
        let served = Served::new([image()]);
        let (older, newer) = (served.beside("older"), served.beside("newer"));
        for volume in [&older, &newer] {
            succeed(&mut served.build(volume, SIZE));
        }
        let snapshotter = Snapshotter::start();
        let (client, before) = (&snapshotter.client, snapshotter.attach(&older, "v"));
        let base = ChainId::base(&served.images[0].layers[0].diff_id);
        let name = client.take(&base.to_string(), "").expect("the volume does not serve the layer");
        let stands_on = |mounts: &[Mount]| {
            let mut options = mounts[0].options.iter();
            let layer = options.find_map(|option| option.strip_prefix("lowerdir=")).unwrap();
            fs::metadata(Path::new(layer).join("owned")).unwrap().ino()
        };
        let of = |volume: &Path| {
            fs::metadata(volume.join("overlay").join(base.hex()).join("diff/owned")).unwrap().ino()
        };
        let mounts = client.prepare("container", &name, &[UIDS, GIDS]).unwrap();
        assert_eq!(stands_on(&mounts), of(&older));
        let after = snapshotter.attach(&newer, "w");
        snapshotter.detach(&before);
        assert_eq!(stands_on(&client.mounts("container").unwrap()), of(&newer));
        client.remove("container").unwrap();
        snapshotter.detach(&after);
    });
}

#[case]
fn an_invalid_mapping_is_refused() {
    isolated(&[], || {
        let snapshotter = Snapshotter::start();
        for bad in ["", "1:2:3", "0:1:2,ro"] {
            let refused = snapshotter.client.prepare("mapped", "", &[(UIDS.0, bad), GIDS]).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{bad}: {refused}");
        }
    });
}
