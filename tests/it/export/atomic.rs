//! An output file is complete or does not exist.

use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::*;
use crate::harness::filesystem::{FileSystem, Kind};
use crate::harness::layers::Node;
use crate::harness::served::{Running, random};

/// Builds a sealed volume whose export takes a while.
fn large() -> (Served, PathBuf) {
    let member = |seed| Member::new("big", Node::File(random(seed, 24 << 20)));
    let layers = (0..2).map(|seed| layer(&[member(seed)], Packing::Plain));
    let served = Served::new([Image::builder(Format::Oci).layers(layers).build()]);
    let volume = served.volume();
    succeed(&mut served.build(&volume, 256 << 20));
    (served, volume)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[case]
fn a_killed_export_leaves_nothing_under_its_name() {
    isolated(&[], || {
        let (served, volume) = large();
        let dir = served.beside("out");
        fs::create_dir(&dir).unwrap();
        let out = dir.join("x");
        let (mut killed, mut delay) = (0, Duration::from_millis(5));
        while killed < 8 {
            let mut export = Running::start(&mut export(&volume, &out, "oci-archive", "gzip"));
            sleep(delay);
            let ended = export.has_ended();
            export.kill();
            if ended {
                assert!(killed > 0, "the export is too fast for this test");
                fs::remove_file(&out).unwrap();
                delay = Duration::from_millis(5);
                continue;
            }
            assert_eq!(names(&dir), [""; 0], "after {delay:?}");
            killed += 1;
            delay = delay * 3 / 2;
        }
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let mut export = Running::start(&mut export(&volume, &out, "oci-archive", "gzip"));
            sleep(Duration::from_millis(150));
            export.signal(signal);
            let code = export.code_within(Duration::from_secs(20));
            assert_eq!(code, Some(if signal == Signal::SIGINT { 130 } else { 143 }));
            assert_eq!(names(&dir), [""; 0]);
        }
    });
}

#[case]
fn a_killed_export_of_a_layout_is_cleared_by_the_next() {
    isolated(&[], || {
        let (served, volume) = large();
        let dir = served.beside("out");
        fs::create_dir(&dir).unwrap();
        let out = dir.join("x");
        let blobs = dir.join(".x.larder-tmp/blobs/sha256");
        let export_it = || export(&volume, &out, "oci-layout", "gzip");
        let mut running = Running::start(&mut export_it());
        assert!(running.until(|| blobs.exists()));
        exits(75, &mut export_it());
        running.kill();
        assert_eq!(names(&dir), [".x.larder-tmp"]);
        fs::write(blobs.join("left"), "over").unwrap();
        let mut running = Running::start(&mut export_it());
        assert!(running.until(|| blobs.exists() && !blobs.join("left").exists()));
        running.signal(Signal::SIGINT);
        assert_eq!(running.code_within(Duration::from_secs(20)), Some(130));
        assert_eq!(names(&dir), [""; 0]);
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join("left"), "over").unwrap();
        succeed(&mut export_it());
        assert_eq!(names(&dir), ["x"]);
        assert!(!out.join("blobs/sha256/left").exists());
    });
}

#[case]
fn what_is_there_is_replaced_by_force_only() {
    isolated(&[Need::Program("busybox")], || {
        let (served, volume) = sealed();
        let file = served.beside("file");
        fs::write(&file, "mine").unwrap();
        let said = exits(73, &mut export(&volume, &file, "docker-archive", ""));
        assert!(said.contains("--force"), "{said}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
        succeed(export(&volume, &file, "docker-archive", "").arg("--force"));
        assert!(fs::metadata(&file).unwrap().len() > 1 << 20);

        let layout = served.beside("layout");
        succeed(&mut export(&volume, &layout, "oci-layout", "none"));
        exits(73, &mut export(&volume, &layout, "oci-layout", "zstd"));
        succeed(export(&volume, &layout, "oci-layout", "zstd").arg("--force"));
        assert!(fs::read_to_string(layout.join("index.json")).unwrap().contains("app-0"));
        assert!(!served.beside(".layout.larder-tmp").exists());
        // Never replace a file by a directory, a directory by a file, or a foreign directory by a layout.
        exits(73, export(&volume, &layout, "oci-archive", "").arg("--force"));
        exits(73, export(&volume, &file, "oci-layout", "").arg("--force"));
        exits(73, export(&volume, &volume, "oci-layout", "").arg("--force"));
        succeed(larder().arg("verify").arg(&volume));
    });
}

#[case]
fn a_full_disk_is_reported_and_left_empty() {
    isolated(&[], || {
        let (served, volume) = large();
        for kind in [Kind::Tmpfs, Kind::Ext4 { inodes: 64 }] {
            let disk = FileSystem::new(kind, 20 << 20);
            let before = names(&disk.path());
            for (format, compression) in
                [("oci-archive", "gzip"), ("docker-archive", ""), ("oci-layout", "none")]
            {
                let said = exits(73, &mut export(&volume, &disk.path().join("out"), format, compression));
                assert!(said.contains("No space left"), "{said}");
                assert_eq!(names(&disk.path()), before, "{kind:?} {format}");
            }
        }
        drop(served);
    });
}

/// Content that was changed after sealing is never exported.
#[case]
fn a_changed_volume_is_not_exported() {
    isolated(&[Need::Program("busybox")], || {
        let (served, volume) = sealed();
        let out = served.beside("out");
        let refused = |what: &str| {
            for (format, compression) in ARCHIVES.into_iter().chain([("oci-layout", "gzip")]) {
                let said = exits(65, &mut export(&volume, &out, format, compression));
                assert!(
                    !out.exists() && !served.beside(".out.larder-tmp").exists(),
                    "{what} {format}: {said}"
                );
            }
        };
        let layers = cache(&volume).content.layers;
        let greeting = volume.join("overlay").join(layers[2].chain_id.hex()).join("diff/etc/greeting");
        let text = fs::read_to_string(&greeting).unwrap();
        fs::write(&greeting, text.replace("hello", "hullo")).unwrap();
        refused("another content");
        fs::write(&greeting, "longer than it was before, by far").unwrap();
        refused("another length");
        fs::remove_file(&greeting).unwrap();
        refused("a file that is gone");
        std::os::unix::fs::symlink("/etc/hostname", &greeting).unwrap();
        refused("a link in its place");
        fs::remove_file(&greeting).unwrap();
        fs::write(&greeting, &text).unwrap();
        let split = volume.join(format!("overlay-layers/{}.tar-split.gz", layers[0].chain_id.hex()));
        let bytes = fs::read(&split).unwrap();
        fs::write(&split, &bytes[..bytes.len() / 2]).unwrap();
        refused("half a tar-split file");
        fs::write(&split, &bytes).unwrap();
        let config = volume.join("oci/blobs/sha256").join(served.images[0].config.digest.hex());
        let bytes = fs::read(&config).unwrap();
        fs::write(&config, [&bytes[..], b" "].concat()).unwrap();
        refused("another config");
    });
}
