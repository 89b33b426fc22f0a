//! Layers of GNU tar, bsdtar and Python, in every format that they support. A container must see the tree
//! that the tool itself unpacks (GNU tar for Python's layers). The files show the differences between the
//! formats: names and links too long for a header, owners and times too large for its fields, names that are
//! not UTF-8, links, devices, attributes, holes.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use larder_testing::image::{Format, Image, Layer};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::time::TimeSpec;

use super::{REGISTRY, diff_ids};
use crate::harness::overlay::View;
use crate::harness::podman::Podman;
use crate::harness::registry::Registry;
use crate::harness::tree::{Tolerance, differences, scan};
use crate::harness::{Need, isolated, larder, succeed};

/// Creates files that the oldest formats can represent.
fn plain(dir: &Path) {
    let file = |name: &str, size: usize, mode: u32| {
        fs::write(dir.join(name), vec![b'x'; size]).unwrap();
        fs::set_permissions(dir.join(name), Permissions::from_mode(mode)).unwrap();
    };
    for name in ["private", "sticky", "group", "empty"] {
        fs::create_dir(dir.join(name)).unwrap();
    }
    for (name, size, mode) in [
        ("nothing", 0, 0o644),
        ("511", 511, 0o600),
        ("512", 512, 0o444),
        ("513", 513, 0o755),
        ("large", 100_000, 0o644),
        ("setuid", 10, 0o4755),
        ("private/f", 1, 0o000),
        ("with space ", 1, 0o644),
        ("-dash", 1, 0o644),
        ("back\\slash", 1, 0o644),
        (".hidden", 1, 0o644),
    ] {
        file(name, size, mode);
    }
    file(&"n".repeat(90), 3, 0o644);
    for (name, mode) in [("private", 0o700), ("sticky", 0o1777), ("group", 0o2750)] {
        fs::set_permissions(dir.join(name), Permissions::from_mode(mode)).unwrap();
    }
    symlink("no/where", dir.join("dangling")).unwrap();
    symlink("/etc/passwd", dir.join("absolute")).unwrap();
    fs::hard_link(dir.join("512"), dir.join("again")).unwrap();
    chown(dir.join("513"), Some(1000), Some(1001)).unwrap();
    lchown(dir.join("dangling"), Some(7), Some(8)).unwrap();
}

/// Creates files that need extensions.
fn extended(dir: &Path) {
    let name = |bytes: &[u8]| dir.join(OsStr::from_bytes(bytes));
    for odd in
        [&b"line\nbreak"[..], "ünïcode 日本".as_bytes(), b"not \xff\xfe text", b"tab\there", b"a=b", b"%41"]
    {
        fs::write(name(odd), odd).unwrap();
    }
    fs::write(dir.join("n".repeat(255)), "x").unwrap();
    let deep: PathBuf = std::iter::repeat_n("d".repeat(120), 5).collect();
    fs::create_dir_all(dir.join(&deep)).unwrap();
    fs::write(dir.join(&deep).join("f"), "deep").unwrap();
    fs::hard_link(dir.join(&deep).join("f"), dir.join("to-the-deep")).unwrap();
    for length in [100, 101, 156, 300, 1000] {
        symlink("t".repeat(length), dir.join(format!("link-{length}"))).unwrap();
    }
    symlink(&deep, dir.join("into-the-deep")).unwrap();
    fs::hard_link(dir.join("link-300"), dir.join("link-again")).unwrap();
    let mode = Mode::from_bits_truncate(0o640);
    mknod(&dir.join("null"), SFlag::S_IFCHR, mode, makedev(1, 3)).unwrap();
    mknod(&dir.join("far-device"), SFlag::S_IFBLK, mode, makedev(259, 70_000)).unwrap();
    mknod(&dir.join("fifo"), SFlag::S_IFIFO, mode, 0).unwrap();
    for id in [0o7_777_777, 0o10_000_000, u32::MAX - 1] {
        let path = dir.join(format!("owner-{id}"));
        fs::write(&path, "x").unwrap();
        chown(&path, Some(id), Some(id - 1)).unwrap();
    }
    for (name, seconds) in
        [("epoch", 0), ("second", 1), ("y2038", 1 << 31), ("y2106", 1 << 32), ("y2242", (1 << 33) + 5)]
    {
        let path = dir.join(name);
        fs::write(&path, "x").unwrap();
        let time = TimeSpec::new(seconds, 123_456_789);
        nix::sys::stat::utimensat(
            nix::fcntl::AT_FDCWD,
            &path,
            &time,
            &time,
            nix::sys::stat::UtimensatFlags::NoFollowSymlink,
        )
        .unwrap();
    }
}

/// Sets attributes and creates a file with holes, which only the newest formats can represent.
fn attributes(dir: &Path) {
    let set = |name: &str, key: &str, value: &[u8]| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(dir.join(name), key, value, flags).unwrap();
    };
    set("513", "user.text", b"value");
    set("513", "user.binary", b"a\nb=\0\xff");
    set("511", "user.empty", b"");
    set("empty", "user.of-a-directory", b"1");
    // VFS_CAP_REVISION_2, effective, CAP_NET_BIND_SERVICE.
    set("large", "security.capability", b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    let sparse = File::create(dir.join("sparse")).unwrap();
    sparse.set_len(8 << 20).unwrap();
    sparse.write_all_at(b"data", 4 << 20).unwrap();
}

/// A format of a tool, and the most complex files that it can represent.
struct Packer {
    name: &'static str,
    files: &'static [fn(&Path)],
    command: fn(&Path, &Path) -> Command,
    unpack: fn(&Path, &Path) -> Command,
}

fn gnu_unpack(tar: &Path, to: &Path) -> Command {
    let mut command = Command::new("tar");
    command.args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf"]).arg(tar).arg("-C").arg(to);
    command
}

fn bsd_unpack(tar: &Path, to: &Path) -> Command {
    let mut command = Command::new("bsdtar");
    command.args(["--numeric-owner", "--xattrs", "-xpf"]).arg(tar).arg("-C").arg(to);
    command
}

fn gnu(format: &str, files: &Path, tar: &Path) -> Command {
    let mut command = Command::new("tar");
    command.args([&format!("--format={format}"), "--numeric-owner", "--sort=name"]);
    if format == "posix" {
        command.args(["--xattrs", "--xattrs-include=*", "-S"]);
    }
    command.arg("-cf").arg(tar).arg("-C").arg(files).arg(".");
    command
}

fn bsd(format: &str, files: &Path, tar: &Path) -> Command {
    let mut command = Command::new("bsdtar");
    command.args([&format!("--format={format}"), "--numeric-owner", "--xattrs"]);
    command.arg("-cf").arg(tar).arg("-C").arg(files).arg(".");
    command
}

const PYTHON: &str = "import sys, tarfile
with tarfile.open(sys.argv[2], 'w', format=getattr(tarfile, sys.argv[1])) as tar:
    tar.add(sys.argv[3], arcname='.')
";

fn python(format: &str, files: &Path, tar: &Path) -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", PYTHON, format]).arg(tar).arg(files);
    command
}

/// Compares each packer's layer, in both formats and in podman, with the tree that a tool unpacks.
fn compare(packers: &[Packer]) {
    let registry = Registry::open();
    let mut wrong = Vec::new();
    for Packer { name, files: make, command, unpack } in packers {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("files")).unwrap();
        make.iter().for_each(|make| make(&at("files")));
        succeed(&mut command(&at("files"), &at("tar")));
        fs::create_dir(at("unpacked")).unwrap();
        succeed(&mut unpack(&at("tar"), &at("unpacked")));
        let mut want = scan(&at("unpacked"));
        // bsdtar keeps the time of the directory into which it unpacks.
        want.values_mut().take(1).for_each(|root| root.mtime = None);
        assert!(want.len() >= 20, "{name}: {} names", want.len());

        let layer = Layer::new(fs::read(at("tar")).unwrap(), "tar", None);
        let image = Image::builder(Format::Oci).layer(layer).build();
        let reference = registry.push(&image, "packed", name);
        let mut note = |by: &str, found: Vec<String>| {
            wrong.extend(found.into_iter().map(|line| format!("{name}, {by}: {line}")));
        };
        for form in ["overlay", "erofs"] {
            let volume = at(form);
            let mut build = larder();
            build.arg("build").arg("--volume").arg(&volume).args(["--layer-format", form]);
            succeed(build.args(["--size", "1GiB", &reference]));
            succeed(larder().arg("verify").arg(&volume));
            let view = match form {
                "erofs" => View::mount_images(&volume, &diff_ids(&image)),
                _ => View::mount(&volume, &diff_ids(&image)),
            };
            note(form, differences(&want, &scan(&view.path()), Tolerance::default()));
        }
        // Go treats an attribute without a value as absent.
        want.values_mut().for_each(|entry| entry.xattrs.retain(|_, value| !value.is_empty()));
        let podman = Podman::new();
        podman.pull(&reference);
        let found = scan(&podman.mount(&reference));
        let tolerance = Tolerance { directory_times: true, directories: &[String::new()] };
        note("podman", differences(&want, &found, tolerance));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

const NEEDS: [Need; 3] = [REGISTRY, Need::Program("podman"), Need::Erofs];

#[case]
fn layers_of_gnu_tar() {
    isolated(&NEEDS, || {
        compare(&[
            Packer { name: "v7", files: &[plain], command: |f, t| gnu("v7", f, t), unpack: gnu_unpack },
            Packer { name: "ustar", files: &[plain], command: |f, t| gnu("ustar", f, t), unpack: gnu_unpack },
            Packer {
                name: "oldgnu",
                files: &[plain, extended],
                command: |f, t| gnu("oldgnu", f, t),
                unpack: gnu_unpack,
            },
            Packer {
                name: "gnu",
                files: &[plain, extended],
                command: |f, t| gnu("gnu", f, t),
                unpack: gnu_unpack,
            },
            Packer {
                name: "posix",
                files: &[plain, extended, attributes],
                command: |f, t| gnu("posix", f, t),
                unpack: gnu_unpack,
            },
        ]);
    });
}

#[case]
fn layers_of_bsdtar() {
    isolated(&[&NEEDS[..], &[Need::Program("bsdtar")]].concat(), || {
        compare(&[
            Packer { name: "v7", files: &[plain], command: |f, t| bsd("v7", f, t), unpack: bsd_unpack },
            Packer { name: "ustar", files: &[plain], command: |f, t| bsd("ustar", f, t), unpack: bsd_unpack },
            Packer {
                name: "gnutar",
                files: &[plain, extended],
                command: |f, t| bsd("gnutar", f, t),
                unpack: bsd_unpack,
            },
            Packer {
                name: "pax",
                files: &[plain, extended, attributes],
                command: |f, t| bsd("pax", f, t),
                unpack: bsd_unpack,
            },
        ]);
    });
}

#[case]
fn layers_of_python() {
    isolated(&[&NEEDS[..], &[Need::Program("python3")]].concat(), || {
        compare(&[
            Packer {
                name: "ustar",
                files: &[plain],
                command: |f, t| python("USTAR_FORMAT", f, t),
                unpack: gnu_unpack,
            },
            Packer {
                name: "gnu",
                files: &[plain, extended],
                command: |f, t| python("GNU_FORMAT", f, t),
                unpack: gnu_unpack,
            },
            Packer {
                name: "pax",
                files: &[plain, extended],
                command: |f, t| python("PAX_FORMAT", f, t),
                unpack: gnu_unpack,
            },
        ]);
    });
}
