//! Disk images from other hosts: they must be verified before the kernel reads them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use larder_testing::image::{Format, Image};
use larder_testing::layer::LayerBuilder;

use crate::harness::node::Node;
use crate::harness::served::Served;
use crate::harness::{Need, exits, isolated, larder, succeed};

const SIZE: u64 = 64 << 20;
const BLOCK: u64 = 4096;

fn image() -> Image {
    Image::builder(Format::Oci).layer(LayerBuilder::new().file("etc/motd", "x").gzip().into()).build()
}

fn tool(program: &str, args: &[&str], disk: &Path) {
    let done = Command::new(program).args(args).arg(disk).output().unwrap();
    assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Flips bits at offset `at` of the disk.
fn flip(disk: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(disk).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x55], at).unwrap();
}

/// Returns the offset of a structure of the first group, from its field in `debugfs stats`.
fn place(disk: &Path, what: &str) -> u64 {
    let said = succeed(Command::new("dumpe2fs").arg(disk));
    let rest = said.split(&format!("{what} at ")).nth(1).unwrap_or_else(|| panic!("{said}"));
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse::<u64>().unwrap() * BLOCK
}

#[case]
fn an_ext4_that_larder_did_not_make_is_not_mounted() {
    let needs = ["mkfs.ext4", "tune2fs", "dumpe2fs"].map(Need::Program);
    isolated(&needs, || {
        let (served, node) = (Served::new([image()]), Node::new());
        let (volume, at) = (served.volume(), node.place("icv"));
        succeed(served.build(&volume, SIZE).args(["--volume-kind", "disk"]));
        let (disk, sound) = (volume.join("disk.img"), served.beside("sound.img"));
        fs::copy(&disk, &sound).unwrap();
        let panics = "s_errors of its superblock is 0x3";
        type Change<'a> = (&'a str, Box<dyn Fn()>, &'a str);
        let tune = |args: &'static [&'static str], said: &'static str| -> Change<'static> {
            let disk = disk.clone();
            (args[1], Box::new(move || tool("tune2fs", args, &disk)), said)
        };
        let flipped = |what: &'static str, at: &'static str, offset: u64| -> Change<'static> {
            let (disk, at) = (disk.clone(), place(&sound, at) + offset);
            (what, Box::new(move || flip(&disk, at)), "e2fsck found errors")
        };
        let changes = [
            tune(&["-e", "panic"], panics),
            tune(&["-e", "continue"], "s_errors"),
            tune(&["-O", "project,quota"], "s_feature_ro_compat"),
            tune(&["-O", "large_dir"], "s_feature_incompat"),
            tune(&["-o", "discard"], "s_default_mount_opts"),
            tune(&["-E", "mount_opts=data=writeback"], "s_mount_opts"),
            flipped("a bitmap of blocks", "Block bitmap", 1),
            flipped("a bitmap of inodes", "Inode bitmap", 1),
            // The size of the root directory.
            flipped("an inode", "Inode table", 256 + 4),
        ];
        for (what, change, words) in changes {
            fs::set_permissions(&disk, Permissions::from_mode(0o600)).unwrap();
            change();
            fs::set_permissions(&disk, Permissions::from_mode(0o400)).unwrap();
            let carried = served.beside("carried.img");
            fs::copy(&disk, &carried).unwrap();
            for path in [&volume, &carried] {
                for command in ["verify", "inspect"] {
                    let said = exits(65, larder().arg(command).arg(path));
                    assert!(said.contains(words), "{command}, {what}: {said}");
                }
                let said = exits(65, &mut node.attach(path, &at));
                assert!(said.contains(words), "attach, {what}: {said}");
                assert!(!at.exists() && !node.state().join("attached").exists(), "{what}");
            }
            fs::remove_file(&disk).unwrap();
            fs::copy(&sound, &disk).unwrap();
        }
        succeed(larder().arg("verify").arg(&volume));
        succeed(&mut node.attach(&volume, &at));
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let line = mounts.lines().find(|line| line.contains(at.to_str().unwrap())).unwrap();
        assert!(line.contains("nosuid,nodev,noexec") && !line.contains("errors=panic"), "{line}");
        succeed(&mut node.detach(&at));
    });
}
