//! Block devices and mounted file systems as volumes.

use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::harness::filesystem::{FileSystem, Kind, unmount};
use crate::harness::served::{Served, random};
use crate::harness::{exits, larder, succeed};
use crate::served::{Filling, MIB, build, image, wait_for_release, with_disks};

/// A block device: a loop device of the test. Detached when it is dropped.
struct Device {
    path: PathBuf,
    file: PathBuf,
}

impl Device {
    fn new(dir: &Path, size: u64) -> Self {
        let file = dir.join("device");
        fs::File::create(&file).unwrap().set_len(size).unwrap();
        let text = succeed(Command::new("losetup").args(["--find", "--show"]).arg(&file));
        Device { path: PathBuf::from(text.trim()), file }
    }

    /// Waits until the kernel has unmounted it after a builder was killed.
    fn wait_until_free(&self) {
        let mut alone = fs::File::options();
        alone.read(true).custom_flags(nix::libc::O_EXCL);
        let started = Instant::now();
        while alone.open(&self.path).is_err() {
            assert!(started.elapsed() < Duration::from_secs(30), "{} is still in use", self.path.display());
            sleep(Duration::from_millis(20));
        }
    }

    fn content(&self) -> Vec<u8> {
        succeed(Command::new("blockdev").arg("--flushbufs").arg(&self.path));
        fs::read(&self.file).unwrap()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}

fn onto(served: &Served, device: &Device, size: u64) -> Command {
    let mut command = served.build(&device.path, size);
    command.args(["--volume-kind", "block"]);
    command
}

#[case]
fn an_empty_device_becomes_a_volume() {
    with_disks(|| {
        let served = Served::new([image(3, 400)]);
        let dir = tempfile::tempdir().unwrap();
        let device = Device::new(dir.path(), 256 * MIB);
        succeed(&mut onto(&served, &device, 256 * MIB));
        succeed(larder().arg("verify").arg(&device.path));
        succeed(Command::new("e2fsck").arg("-fn").arg(&device.path));
        let at = dir.path().join("m");
        fs::create_dir(&at).unwrap();
        succeed(Command::new("mount").args(["-o", "ro,noload"]).arg(&device.path).arg(&at));
        succeed(larder().arg("verify").arg(&at));
        let said = exits(75, &mut onto(&served, &device, 256 * MIB));
        assert!(said.contains("in use"), "{said}");
        unmount(&at);
        // The same job again: the volume is sealed already.
        served.registry.forget();
        succeed(&mut onto(&served, &device, 256 * MIB));
        assert_eq!(served.registry.seen().len(), 0);
        let said = exits(73, &mut onto(&served, &device, 1 << 30));
        assert!(said.contains("--size is 1 GiB"), "{said}");
    });
}

#[case]
fn an_interrupted_build_resumes() {
    with_disks(|| {
        let served = Served::new([image(4, 400)]);
        let dir = tempfile::tempdir().unwrap();
        let device = Device::new(dir.path(), 256 * MIB);
        let mut command = onto(&served, &device, 256 * MIB);
        let mut filling = Filling::start(
            command.args(["--limit-rate", "150KiB/s", "--concurrency", "1"]),
            served.beside("events"),
        );
        assert!(filling.told("layer_committed", 2));
        filling.supervisor.kill();
        device.wait_until_free();
        served.registry.forget();
        let text = succeed(onto(&served, &device, 256 * MIB).args(["--output", "json"]));
        assert!(text.matches("\"event\":\"layer_present\"").count() >= 2, "{text}");
        succeed(larder().arg("verify").arg(&device.path));
    });
}

#[case]
fn a_device_that_holds_something_is_not_touched() {
    with_disks(|| {
        let served = Served::new([image(1, 10)]);
        let dir = tempfile::tempdir().unwrap();
        let device = Device::new(dir.path(), 400 * MIB);
        let path = device.path.display().to_string();
        for make in [
            format!("mkfs.ext4 -q {path}"),
            format!("mkfs.xfs -q -f {path}"),
            format!("printf '\\125\\252' | dd of={path} bs=1 seek=510 conv=notrunc status=none"),
            format!("mkswap -q {path}"),
            format!("printf precious | dd of={path} bs=1 seek=3000000 conv=notrunc status=none"),
            format!("printf precious | dd of={path} bs=1 seek=419430000 conv=notrunc status=none"),
        ] {
            succeed(Command::new("sh").args(["-c", &make]));
            let before = device.content();
            let said = exits(73, &mut onto(&served, &device, 400 * MIB));
            assert!(said.contains("--format-device"), "{make}: {said}");
            assert!(device.content() == before, "{make}");
            succeed(Command::new("blkdiscard").arg("--zeroout").arg(&device.path));
        }
        fs::write(&device.path, random(1, 5 << 20)).unwrap();
        succeed(onto(&served, &device, 400 * MIB).arg("--format-device"));
        succeed(larder().arg("verify").arg(&device.path));
        // The volume of another job is not overwritten.
        exits(73, onto(&served, &device, 400 * MIB).arg("--no-tar-split"));
        // The path is not a device.
        let mut command = served.build(&served.beside("file"), 400 * MIB);
        fs::write(served.beside("file"), "data").unwrap();
        let said = exits(73, command.args(["--volume-kind", "block", "--format-device"]));
        assert!(said.contains("not a block device"), "{said}");
        assert_eq!(fs::read(served.beside("file")).unwrap(), b"data");
    });
}

#[case]
fn a_mounted_file_system_is_a_volume_of_its_size() {
    with_disks(|| {
        let served = Served::new([image(3, 400)]);
        let kind = |volume: &Path, size: u64| {
            let mut command = served.build(volume, size);
            command.args(["--volume-kind", "mounted"]);
            command
        };
        let disk = FileSystem::new(Kind::Ext4 { inodes: 2000 }, 64 * MIB);
        succeed(&mut kind(&disk.path(), 60 * MIB));
        succeed(larder().arg("verify").arg(disk.path()));

        let small = FileSystem::new(Kind::Ext4 { inodes: 2000 }, 64 * MIB);
        let said = exits(73, &mut kind(&small.path(), 128 * MIB));
        assert!(said.contains("--size is 128 MiB"), "{said}");
        fs::create_dir(small.path().join("directory")).unwrap();
        let said = exits(73, &mut kind(&small.path().join("directory"), 32 * MIB));
        assert!(said.contains("not a mount point"), "{said}");
        let said = exits(73, &mut kind(&small.path(), 60 * MIB));
        assert!(said.contains("does not belong to Larder"), "{said}");

        // The file system is larger than the cap, so the builder enforces the cap.
        let large = FileSystem::new(Kind::Ext4 { inodes: 2000 }, 256 * MIB);
        let said = exits(73, &mut kind(&large.path(), MIB));
        assert!(said.contains("are left"), "{said}");
        // The file system is not larger, so the kernel enforces the limit.
        let full = FileSystem::new(Kind::Ext4 { inodes: 20 }, 64 * MIB);
        let said = exits(73, &mut kind(&full.path(), 60 * MIB));
        assert!(said.contains("inodes are left"), "{said}");
    });
}

#[case]
fn a_disk_volume_does_not_take_a_device_for_a_directory() {
    with_disks(|| {
        let served = Served::new([image(1, 10)]);
        let dir = tempfile::tempdir().unwrap();
        let device = Device::new(dir.path(), 64 * MIB);
        exits(64, &mut build(&served, &device.path, 64 * MIB));
        wait_for_release(&served.volume());
    });
}
