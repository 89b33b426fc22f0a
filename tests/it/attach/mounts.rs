//! Mounts, records and files that `attach` creates and `detach` removes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use larder_model::job::LayerFormat;
use larder_testing::image::{Format, Image, busybox};
use larder_testing::layer::LayerBuilder;

use crate::harness::node::Node;
use crate::harness::served::{Running, Served, change_times};
use crate::harness::{Need, exits, isolated, succeed};

const SIZE: u64 = 64 << 20;

fn image() -> Image {
    let layer = LayerBuilder::new().file("etc/name", "one\n").gzip();
    Image::builder(Format::Oci).layer(busybox().unwrap()).layer(layer.into()).build()
}

fn mounts() -> String {
    fs::read_to_string("/proc/thread-self/mountinfo").unwrap()
}

/// Creates a volume of each kind. Returns the paths to give to `attach`.
fn kinds(served: &Served) -> Vec<PathBuf> {
    let (directory, disk) = (served.beside("directory"), served.beside("disk"));
    succeed(&mut served.build(&directory, SIZE));
    succeed(served.build(&disk, SIZE).args(["--volume-kind", "disk"]));
    vec![directory, disk.clone(), disk.join("disk.img")]
}

#[case]
fn a_volume_of_any_kind_is_attached_and_detached() {
    isolated(&[Need::Erofs, Need::Program("mkfs.ext4")], || {
        for form in [LayerFormat::Overlay, LayerFormat::Erofs] {
            let served = Served::new([image()]).with(form);
            for volume in kinds(&served) {
                let node = Node::new();
                let at = node.place("icv");
                let before = (mounts(), if volume.is_dir() { change_times(&volume) } else { Vec::new() });

                let said = succeed(node.attach(&volume, &at).arg("--dry-run"));
                assert!(said.contains(&format!("mounted   {}", at.display())), "{said}");
                let nothing = mounts() == before.0
                    && !node.state().join("attached").exists()
                    && node.configured().is_empty();
                assert!(nothing, "a dry run must not change anything");

                assert_eq!(succeed(&mut node.attach(&volume, &at)), format!("{}\n", at.display()));
                assert!(at.join("cache.json").is_file());
                let mounted = mounts();
                let new: Vec<&str> =
                    mounted.lines().filter(|line| line.contains(at.to_str().unwrap())).collect();
                assert!(!new.is_empty());
                for line in new {
                    assert!(line.contains("ro,nosuid,nodev,noexec"), "{line}");
                }
                fs::write(at.join("new"), "x").unwrap_err();
                let unit = [
                    "systemd/system/larder-attach-",
                    "systemd/system/multi-user.target.wants/larder-attach-",
                ];
                let configured = node.configured();
                assert_eq!(configured.len(), 2, "{configured:?}");
                for (path, want) in configured.iter().zip(unit) {
                    assert!(path.to_str().unwrap().starts_with(want), "{path:?}");
                }

                // A repeated attach, by any name of the volume and without a mount point, changes nothing.
                succeed(&mut node.attach(&volume, &at));
                assert_eq!(succeed(&mut node.larder("attach", &volume)), format!("{}\n", at.display()));
                assert_eq!(mounts(), mounted);

                let said = exits(64, &mut node.detach(Path::new("/no/such")));
                assert!(said.contains(at.to_str().unwrap()), "{said}");
                let name = if volume.is_dir() { &volume } else { &at };
                succeed(&mut node.detach(name));
                assert_eq!(mounts(), before.0);
                assert!(!at.exists() && node.configured().is_empty());
                assert!(!node.path("/etc/systemd/system/multi-user.target.wants").exists());
                assert!(fs::read_dir(node.state().join("attached")).unwrap().next().is_none());
                exits(64, &mut node.detach(name));
                if volume.is_dir() {
                    assert_eq!(change_times(&volume), before.1, "a sealed volume must not be written");
                }
            }
        }
    });
}

/// Unmounts it, as a reboot does.
pub(super) fn unmount_as_reboot(at: &Path) {
    nix::mount::umount2(at, nix::mount::MntFlags::MNT_DETACH).unwrap();
}

/// Returns the only unit.
pub(super) fn unit(node: &Node) -> PathBuf {
    let units = fs::read_dir(node.path("/etc/systemd/system")).unwrap();
    units.map(|unit| unit.unwrap().path()).find(|path| path.is_file()).unwrap()
}

/// Returns the command that the unit runs at boot.
pub(super) fn exec_start(node: &Node) -> Command {
    let text = fs::read_to_string(unit(node)).unwrap();
    let of = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    let mut boot = Command::new("sh");
    boot.arg("-c").arg(format!("exec {} --node-root {}", of("ExecStart="), node.root().display()));
    let (name, value) = of("Environment=").split_once('=').unwrap();
    boot.env(name, value);
    boot
}

#[case]
fn it_is_attached_again_after_a_boot() {
    isolated(&[Need::Program("systemd-analyze"), Need::Program("mkfs.ext4")], || {
        let served = Served::new([image()]);
        let node = Node::new();
        let at = node.place("icv");
        for volume in kinds(&served) {
            // The full command, as root runs it on a node.
            let mut attach = node.attach(&volume, &at);
            attach.args(["--runtime", "podman"]);
            succeed(&mut attach);
            succeed(Command::new("systemd-analyze").arg("verify").arg(unit(&node)));
            unmount_as_reboot(&at);
            let mut boot = exec_start(&node);
            for _ in 0..2 {
                succeed(&mut boot);
            }
            assert!(at.join("cache.json").is_file());
            succeed(&mut node.detach(&at));
        }
    });
}

#[case]
fn conflicts_are_reported_and_left_alone() {
    isolated(&[], || {
        let served = Served::new([image()]);
        let (volume, other, node) = (served.volume(), served.beside("other"), Node::new());
        succeed(&mut served.build(&volume, SIZE));
        succeed(&mut served.build(&other, SIZE));
        let at = node.place("icv");
        fs::create_dir(&at).unwrap();
        fs::write(at.join("mine"), "x").unwrap();
        exits(73, &mut node.attach(&volume, &at));
        fs::remove_file(at.join("mine")).unwrap();
        exits(64, &mut node.attach(&volume, Path::new("icv")));
        exits(64, &mut node.attach(&node.place("none"), &at));
        let unsealed = served.beside("unsealed");
        fs::create_dir(&unsealed).unwrap();
        exits(73, &mut node.attach(&unsealed, &at));
        assert!(!node.state().join("attached").exists());

        succeed(&mut node.attach(&volume, &at));
        let said = exits(73, &mut node.attach(&other, &at));
        assert!(said.contains("used by the volume"), "{said}");
        let also = node.place("also");
        succeed(&mut node.attach(&volume, &also));
        let said = exits(64, &mut node.detach(&volume));
        assert!(said.contains("specify one of them"), "{said}");
        succeed(&mut node.detach(&also));

        // The volume is in use: first by an open file, then by the overlay of a container.
        let file = fs::File::open(at.join("cache.json")).unwrap();
        exits(75, &mut node.detach(&at));
        drop(file);
        assert!(at.join("cache.json").is_file());
        let hex = fs::read_dir(at.join("overlay")).unwrap().find_map(|entry| {
            let path = entry.unwrap().path().join("diff");
            path.is_dir().then_some(path)
        });
        let (lower, merged) = (hex.unwrap(), node.place("merged"));
        fs::create_dir(&merged).unwrap();
        let options = format!("lowerdir={}:{}", lower.display(), node.state().display());
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("x"), &merged, Some("overlay"), flags, Some(options.as_str())).unwrap();
        let said = exits(75, &mut node.detach(&at));
        assert!(said.contains(merged.to_str().unwrap()), "{said}");
        nix::mount::umount(&merged).unwrap();
        succeed(&mut node.detach(&at));

        // A rebuilt volume is not the one that was attached.
        succeed(&mut node.attach(&volume, &at));
        unmount_as_reboot(&at);
        fs::remove_dir_all(&volume).unwrap();
        succeed(served.build(&volume, SIZE).args(["--layer-format", "erofs"]));
        let said = exits(73, &mut node.attach(&volume, &at));
        assert!(said.contains("detach it first"), "{said}");
        succeed(&mut node.detach(&at));
    });
}

#[case]
fn a_killed_attach_or_detach_can_be_repeated() {
    isolated(&[Need::Program("mkfs.ext4")], || {
        let served = Served::new([image()]);
        let (node, before) = (Node::new(), mounts());
        let at = node.place("icv");
        let volume = served.volume();
        succeed(served.build(&volume, SIZE).args(["--volume-kind", "disk"]));
        let (mut attached, mut detached) = (0, 0);
        // Kill points from before the first step to after the last.
        for step in 0..40 {
            let cut = |mut command: Command| {
                let mut running = Running::start(&mut command);
                sleep(Duration::from_micros(step * 500));
                let ended = running.has_ended();
                running.kill();
                usize::from(ended)
            };
            attached += cut(node.attach(&volume, &at));
            succeed(&mut node.attach(&volume, &at));
            assert!(at.join("cache.json").is_file());
            assert_eq!(node.configured().len(), 2);
            detached += cut(node.detach(&at));
            // It was removed already, or is removed now.
            let code = node.detach(&at).status().unwrap().code();
            assert!(matches!(code, Some(0 | 64)), "{code:?}");
            assert_eq!(mounts(), before);
            assert!(node.configured().is_empty());
            assert!(fs::read_dir(node.state().join("attached")).unwrap().next().is_none());
        }
        eprintln!("of 40 runs, {attached} attached and {detached} detached before the kill");
    });
}
