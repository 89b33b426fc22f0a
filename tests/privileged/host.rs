//! A host without space for a disk.

use std::fs;
use std::process::Command;

use nix::mount::{MntFlags, umount2};

use crate::harness::filesystem::{FileSystem, Kind};
use crate::harness::served::{Served, random};
use crate::harness::{exits, larder, succeed};
use crate::served::{MIB, SIZE, build, image, wait_for_release, with_disks};

const HOST: Kind = Kind::Ext4 { inodes: 1000 };

#[case]
fn a_disk_that_cannot_be_reserved_is_refused_at_once() {
    with_disks(|| {
        let served = Served::new([image(2, 100)]);
        let host = FileSystem::new(HOST, 100 * MIB);
        let volume = host.path().join("volume");
        let said = exits(73, &mut build(&served, &volume, 200 * MIB));
        assert!(said.contains("it needs 200 MiB") && said.contains("left"), "{said}");
        assert_eq!(served.registry.seen().len(), 0, "the registry must not receive a request");
        assert!(!volume.join("disk.img").exists() && !volume.join(".larder/disk.img").exists());
        succeed(&mut build(&served, &volume, SIZE));
        succeed(larder().arg("verify").arg(&volume));
    });
}

#[case]
fn a_sparse_disk_on_a_full_host_is_never_sealed() {
    with_disks(|| {
        let served = Served::new([image(4, 8 << 10)]);
        for filled in [40, 48] {
            let host = FileSystem::new(HOST, 64 * MIB);
            fs::write(host.path().join("other"), random(9, filled << 20)).unwrap();
            let volume = host.path().join("volume");
            let mut command = build(&served, &volume, 256 * MIB);
            let output = command.args(["--sparse", "--output", "json"]).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            eprintln!("{said}");
            assert!(!output.status.success(), "{said}");
            assert!(!volume.join("cache.json").exists());
            wait_for_release(&volume);
            // With space again the same command resumes, or starts from the beginning. The sealed result is
            // complete.
            fs::remove_file(host.path().join("other")).unwrap();
            succeed(build(&served, &volume, 256 * MIB).arg("--sparse"));
            succeed(larder().arg("verify").arg(&volume));
        }
    });
}

#[case]
fn a_file_system_without_direct_io_is_reported() {
    with_disks(|| {
        let served = Served::new([image(2, 100)]);
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        succeed(Command::new("mount").args(["-t", "ramfs", "none"]).arg(at));
        let volume = at.join("volume");
        // Space cannot be reserved either.
        let said = exits(73, &mut build(&served, &volume, SIZE));
        assert!(said.contains("--sparse"), "{said}");
        let said = succeed(build(&served, &volume, SIZE).args(["--sparse", "--output", "json"]));
        assert!(said.contains("does not support direct I/O"), "{said}");
        let facts = fs::read_to_string(volume.join("image.json")).unwrap();
        assert!(facts.contains("\"direct_io\": false"), "{facts}");
        succeed(larder().arg("verify").arg(&volume));
        umount2(at, MntFlags::MNT_DETACH).unwrap();
    });
}
