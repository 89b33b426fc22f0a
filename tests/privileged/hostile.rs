//! Directories and disks with hostile content.

use std::fs;
use std::os::unix::fs::{FileExt as _, chown, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::served::{Served, change_times, random};
use crate::harness::{exits, larder, succeed};
use crate::served::{MIB, SIZE, build, image, wait_for_release, with_disks};

#[case]
fn directories_of_others_are_not_touched() {
    with_disks(|| {
        let served = Served::new([image(1, 10)]);
        let volume = served.volume();
        type Fill = fn(&Path);
        let fills: [Fill; 6] = [
            |dir| fs::write(dir.join("precious"), "data").unwrap(),
            |dir| fs::write(dir.join("disk.img"), "data").unwrap(),
            |dir| fs::write(dir.join("cache.json"), "{}").unwrap(),
            |dir| fs::write(dir.join(".larder"), "not a directory").unwrap(),
            |dir| symlink("/", dir.join(".larder")).unwrap(),
            |dir| {
                fs::create_dir(dir.join(".larder")).unwrap();
                fs::write(dir.join("precious"), "data").unwrap();
            },
        ];
        for fill in fills {
            fs::create_dir(&volume).unwrap();
            fill(&volume);
            let before = change_times(&volume);
            let said = exits(73, &mut build(&served, &volume, SIZE));
            assert!(said.contains("does not belong to a disk of Larder"), "{said}");
            assert_eq!(change_times(&volume), before);
            fs::remove_dir_all(&volume).unwrap();
        }
        // The reverse: a volume of kind directory, and a build of kind disk.
        succeed(&mut served.build(&volume, SIZE));
        let before = change_times(&volume);
        let said = exits(73, &mut build(&served, &volume, SIZE));
        assert!(said.contains("kind directory"), "{said}");
        assert_eq!(change_times(&volume), before);
        assert_eq!(served.registry.requests("precious"), 0);
    });
}

#[case]
fn links_in_the_place_of_directory_and_disk_are_not_followed() {
    with_disks(|| {
        let served = Served::new([image(1, 10)]);
        let (volume, elsewhere) = (served.volume(), served.beside("elsewhere"));
        fs::create_dir(&elsewhere).unwrap();
        symlink(&elsewhere, &volume).unwrap();
        let said = exits(73, &mut build(&served, &volume, SIZE));
        assert!(said.contains("symbolic link"), "{said}");
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
        fs::remove_file(&volume).unwrap();

        let precious = served.beside("precious");
        fs::write(&precious, random(1, 4 << 20)).unwrap();
        fs::create_dir_all(volume.join(".larder")).unwrap();
        type Place = fn(&Path, &Path);
        let places: [Place; 4] = [
            |precious, disk| symlink(precious, disk).unwrap(),
            |precious, disk| fs::hard_link(precious, disk).unwrap(),
            |_, disk| fs::create_dir(disk).unwrap(),
            |_, disk| nix::unistd::mkfifo(disk, nix::sys::stat::Mode::S_IRWXU).unwrap(),
        ];
        for place in places {
            let disk = volume.join("disk.img");
            place(&precious, &disk);
            let before = fs::metadata(&precious).unwrap().modified().unwrap();
            let said = exits(73, &mut build(&served, &volume, SIZE));
            assert!(said.contains("not a disk of Larder"), "{said}");
            assert_eq!(fs::metadata(&precious).unwrap().modified().unwrap(), before);
            if disk.is_dir() { fs::remove_dir(disk).unwrap() } else { fs::remove_file(disk).unwrap() }
        }
        // A symbolic link at the path of a new disk.
        symlink(&precious, volume.join(".larder/disk.img")).unwrap();
        succeed(&mut build(&served, &volume, SIZE));
        assert_eq!(fs::read(&precious).unwrap(), random(1, 4 << 20));
    });
}

#[case]
fn a_foreign_disk_is_neither_formatted_nor_mounted() {
    with_disks(|| {
        let served = Served::new([image(1, 10)]);
        let volume = served.volume();
        fs::create_dir_all(volume.join(".larder")).unwrap();
        let disk = volume.join("disk.img");
        let foreign = |how: &str| {
            fs::File::create(&disk).unwrap().set_len(SIZE).unwrap();
            match how {
                "noise" => fs::write(&disk, random(2, 1 << 20)).unwrap(),
                "xfs" => {
                    fs::File::create(&disk).unwrap().set_len(400 * MIB).unwrap();
                    succeed(Command::new("mkfs.xfs").args(["-q", "-f"]).arg(&disk));
                }
                "ext4" => {
                    succeed(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk));
                }
                _ => {}
            }
        };
        for how in ["zeros", "noise", "xfs", "ext4"] {
            foreign(how);
            let (before, times) = (fs::read(&disk).unwrap(), change_times(&disk.with_file_name(".larder")));
            let said = exits(73, &mut build(&served, &volume, 512 * MIB));
            assert!(said.contains("not a disk of Larder"), "{how}: {said}");
            assert!(fs::read(&disk).unwrap() == before, "{how}");
            drop(times);
        }
        // A disk of another owner could change while it is mounted.
        fs::remove_dir_all(&volume).unwrap();
        succeed(&mut build(&served, &volume, SIZE));
        chown(&disk, Some(1000), Some(1000)).unwrap();
        let said = exits(73, larder().arg("verify").arg(&volume));
        assert!(said.contains("user 1000"), "{said}");
    });
}

#[case]
fn the_files_next_to_a_disk_must_match_it() {
    with_disks(|| {
        let served = Served::new([image(2, 100)]);
        let volume = served.volume();
        succeed(&mut build(&served, &volume, SIZE));
        let path = volume.join("image.json");
        let honest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let lies = [
            ("size", json!(SIZE - 4096)),
            ("uuid", json!("00000000-0000-0000-0000-000000000000")),
            ("label", json!("larder-000000000")),
            ("cache_json", json!(format!("sha256:{}", "0".repeat(64)))),
            ("version", json!(2)),
            ("format", json!("erofs")),
        ];
        let found = |said: &str| assert!(said.contains("not what was sealed"), "{said}");
        for (name, value) in lies {
            let mut lie = honest.clone();
            lie[name] = value;
            fs::write(&path, lie.to_string()).unwrap();
            for command in ["verify", "inspect"] {
                found(&exits(65, larder().arg(command).arg(&volume)));
            }
        }
        fs::write(&path, "[").unwrap();
        found(&exits(65, larder().arg("verify").arg(&volume)));
        fs::write(&path, honest.to_string()).unwrap();
        succeed(larder().arg("verify").arg(&volume));

        // Another seal next to the disk, with and without a matching digest.
        let seal = fs::read(volume.join("cache.json")).unwrap();
        let mut other = seal.clone();
        other.push(b'\n');
        fs::write(volume.join("cache.json"), &other).unwrap();
        found(&exits(65, larder().arg("inspect").arg(&volume)));
        let mut lie = honest.clone();
        lie["cache_json"] = json!(larder_model::digest::Digest::sha256(&other).to_string());
        fs::write(&path, lie.to_string()).unwrap();
        found(&exits(65, larder().arg("inspect").arg(&volume)));
        fs::write(volume.join("cache.json"), &seal).unwrap();
        fs::write(&path, honest.to_string()).unwrap();

        // A flipped bit of the content: the disk can be mounted, and the digest reveals the bit.
        let disk = fs::File::options().read(true).write(true).open(volume.join("disk.img")).unwrap();
        let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
        disk.read_exact_at(&mut bytes, 0).unwrap();
        let needle = &random(0, 100 << 10)[..512];
        let at = bytes.chunks(512).position(|chunk| chunk == needle).unwrap() * 512;
        disk.write_all_at(&[!needle[7]], at as u64 + 7).unwrap();
        exits(65, larder().arg("verify").arg(&volume));
        disk.write_all_at(&[needle[7]], at as u64 + 7).unwrap();
        succeed(larder().arg("verify").arg(&volume));
        wait_for_release(&volume);
    });
}

#[case]
fn a_disk_that_is_attached_elsewhere_is_refused() {
    with_disks(|| {
        let served = Served::new([image(1, 10)]);
        let volume = served.volume();
        succeed(&mut build(&served, &volume, SIZE));
        let disk = volume.join("disk.img");
        let attach = |options: &[&str]| {
            let text = succeed(Command::new("losetup").args(options).args(["--find", "--show"]).arg(&disk));
            text.trim().to_owned()
        };
        let reading = attach(&["--read-only"]);
        succeed(larder().arg("verify").arg(&volume));
        succeed(Command::new("losetup").args(["--detach", &reading]));
        let writing = attach(&[]);
        let said = exits(75, larder().arg("verify").arg(&volume));
        assert!(said.contains(&writing), "{said}");
        succeed(Command::new("losetup").args(["--detach", &writing]));
        succeed(larder().arg("verify").arg(&volume));
        wait_for_release(&volume);
    });
}
