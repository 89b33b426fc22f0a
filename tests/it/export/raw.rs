//! The raw image of a disk: export, import, and mounting it as it is.

use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::time::Duration;

use super::*;
use crate::harness::filesystem::unmount;
use crate::harness::podman::Podman;
use crate::harness::served::Running;

const NEEDS: [Need; 2] = [Need::Program("busybox"), Need::Program("mkfs.ext4")];
const SIZE: u64 = 64 << 20;

/// Builds a sealed disk of two images.
fn disk() -> (Served, PathBuf) {
    let plain = Image::builder(Format::Docker).layer(image::busybox().unwrap()).label("n", "2").build();
    let served = Served::new([three_layers(Packing::Gzip), plain]);
    let volume = served.volume();
    succeed(served.build(&volume, SIZE).args(["--volume-kind", "disk"]));
    (served, volume)
}

#[case]
fn an_image_comes_back_and_runs() {
    isolated(&[&NEEDS[..], &[Need::Program("podman")]].concat(), || {
        let (served, volume) = disk();
        let raw = served.beside("disk.raw");
        let printed = succeed(export(&volume, &raw, "raw", "").args(["--output", "json"]));
        let report: serde_json::Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(report["size"], SIZE);
        let sums = fs::read_to_string(served.beside("disk.raw.sha256")).unwrap();
        assert_eq!(format!("sha256:{}", sums.split(' ').next().unwrap()), report["sha256"].as_str().unwrap());
        succeed(
            Command::new("sha256sum").args(["--check", "disk.raw.sha256"]).current_dir(raw.parent().unwrap()),
        );
        let bytes = fs::read(&raw).unwrap();
        assert!(bytes == fs::read(volume.join("disk.img")).unwrap());
        let streamed = export(&volume, Path::new("-"), "raw", "").output().unwrap();
        assert!(streamed.status.success() && streamed.stdout == bytes);

        let back = served.beside("back");
        succeed(&mut import(&raw, &back));
        succeed(larder().arg("verify").arg(&back));
        for (format, compression) in [("oci-archive", "none"), ("docker-archive", "")] {
            let (one, two) = (served.beside("one"), served.beside("two"));
            succeed(export(&volume, &one, format, compression).arg("--force"));
            succeed(export(&back, &two, format, compression).arg("--force"));
            assert!(fs::read(one).unwrap() == fs::read(two).unwrap(), "{format}");
        }
        let mounted = served.beside("mounted");
        fs::create_dir(&mounted).unwrap();
        succeed(Command::new("mount").args(["-o", "loop,ro,noload"]).arg(&raw).arg(&mounted));
        let printed = Podman::new().run(&mounted, &served.references()[0], &["/bin/sh", "-c", SCRIPT]);
        unmount(&mounted);
        assert_eq!(printed, PRINTED);
    });
}

#[case]
fn holes_stay_holes() {
    isolated(&NEEDS, || {
        let served = Served::new([three_layers(Packing::Gzip)]);
        let volume = served.volume();
        succeed(served.build(&volume, 512 << 20).args(["--volume-kind", "disk", "--sparse"]));
        let (raw, back) = (served.beside("raw"), served.beside("back"));
        succeed(&mut export(&volume, &raw, "raw", ""));
        succeed(&mut import(&raw, &back));
        let allocated = |path: &Path| fs::metadata(path).unwrap().blocks() * 512;
        let original = allocated(&volume.join("disk.img"));
        assert!(original < 64 << 20, "{original}");
        for copy in [&raw, &back.join("disk.img")] {
            assert!(allocated(copy) <= original + (1 << 20), "{} of {original}", allocated(copy));
        }
    });
}

#[case]
fn a_changed_image_is_never_sealed() {
    isolated(&NEEDS, || {
        let (served, volume) = disk();
        let (raw, back) = (served.beside("raw"), served.beside("back"));
        succeed(&mut export(&volume, &raw, "raw", ""));
        let bytes = fs::read(&raw).unwrap();
        // The content of a file, which e2fsck does not check.
        let needle = b"hello from the cache";
        let at = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
        let file = fs::File::options().write(true).open(&raw).unwrap();
        file.write_all_at(b"j", at as u64).unwrap();
        let said = exits(65, &mut import(&raw, &back));
        assert!(said.contains("but its .sha256 file has"), "{said}");
        fs::remove_file(served.beside("raw.sha256")).unwrap();
        let said = exits(65, &mut import(&raw, &back));
        assert!(said.contains("is not imported"), "{said}");
        assert!(!back.join("cache.json").exists() && !back.join("disk.img").exists());
        file.write_all_at(b"h", at as u64).unwrap();
        file.set_len(SIZE / 2).unwrap();
        exits(65, &mut import(&raw, &back));
        assert!(!back.join("cache.json").exists());
        fs::write(&raw, &bytes).unwrap();
        // A failed import does not prevent another one, but a sealed volume does.
        succeed(&mut import(&raw, &back));
        succeed(larder().arg("verify").arg(&back));
        exits(73, &mut import(&raw, &back));
        let other = served.beside("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("mine"), "x").unwrap();
        exits(73, &mut import(&raw, &other));
        assert_eq!(fs::read_dir(&other).unwrap().count(), 1);
    });
}

#[case]
fn a_killed_import_is_done_by_the_next() {
    isolated(&NEEDS, || {
        let (served, volume) = disk();
        let (raw, back) = (served.beside("raw"), served.beside("back"));
        succeed(&mut export(&volume, &raw, "raw", ""));
        for delay in [20, 100, 300] {
            let mut running = Running::start(&mut import(&raw, &back));
            std::thread::sleep(Duration::from_millis(delay));
            running.kill();
            if back.join("cache.json").exists() {
                break;
            }
        }
        if !back.join("cache.json").exists() {
            succeed(&mut import(&raw, &back));
        }
        succeed(larder().arg("verify").arg(&back));
    });
}

#[case]
fn an_archive_becomes_a_disk() {
    isolated(&NEEDS, || {
        let (served, volume) = sealed();
        let archive = served.beside("archive");
        succeed(&mut export(&volume, &archive, "oci-archive", "gzip"));
        let back = served.beside("back");
        let disk = || {
            let mut disk = import(&archive, &back);
            disk.args(["--volume-kind", "disk"]);
            disk
        };
        let said = exits(64, &mut disk());
        assert!(said.contains("--size"), "{said}");
        let mut disk = disk();
        disk.args(["--size", "64MiB", "--shrink"]);
        for reference in served.references() {
            disk.arg("--image").arg(reference);
        }
        succeed(&mut disk);
        succeed(larder().arg("verify").arg(&back));
        let again = served.beside("again");
        succeed(&mut export(&back, &again, "oci-archive", "gzip"));
        assert!(fs::read(archive).unwrap() == fs::read(again).unwrap());
    });
}
