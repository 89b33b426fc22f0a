//! A disk from an order to a container that runs from it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use larder_model::digest::Digest;
use larder_testing::image::{self, Format, Image};
use larder_testing::layer::LayerBuilder;
use serde_json::Value;

use crate::harness::filesystem::unmount;
use crate::harness::layers::{Member, Packing, layer};
use crate::harness::podman::Podman;
use crate::harness::registry::Registry;
use crate::harness::served::{Served, change_times, random};
use crate::harness::tree::{Tolerance, differences, scan};
use crate::harness::{Need, exits, isolated, larder, skopeo, succeed};
use crate::served::{MIB, SIZE, build, events, image, occupied, wait_for_release, with_disks};

fn app() -> Image {
    let changes = [
        Member::whiteout("tmp/.wh..wh..opq"),
        Member::file("usr/bin/tool", "#!/bin/sh\nid -u\n").mode(0o4755),
        Member::hard_link("usr/bin/tool2", "usr/bin/tool").mode(0o4755),
        Member::file("data/owned", "owned").owner(1000, 1001).xattr("user.note", b"kept"),
    ];
    let last = [Member::file("etc/greeting", "hello from the disk\n")];
    let layers = [image::busybox().unwrap(), layer(&changes, Packing::Gzip), layer(&last, Packing::Zstd)];
    Image::builder(Format::Oci).layers(layers).build()
}

/// Mounts a sealed disk as a node would, with the machine's own mount(8).
fn mounted(image: &Path, at: &Path) {
    fs::create_dir_all(at).unwrap();
    succeed(Command::new("mount").args(["-o", "ro,noload,loop"]).arg(image).arg(at));
}

fn described(volume: &Path) -> Value {
    serde_json::from_slice(&fs::read(volume.join("image.json")).unwrap()).unwrap()
}

#[case]
fn a_container_runs_from_a_sealed_disk() {
    let needs = [
        Need::Program("docker-registry"),
        Need::Program("podman"),
        Need::Program("skopeo"),
        Need::Program("busybox"),
        Need::Program("mkfs.ext4"),
    ];
    isolated(&needs, || {
        let registry = Registry::open();
        let image = app();
        let reference = registry.push(&image, "team/app", "1");
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        let mut build = larder();
        build.args(["build", "--volume-kind", "disk", "--size", "256MiB", "--verify-after", &reference]);
        let said = succeed(build.arg("--volume").arg(&volume));
        assert!(said.contains("sealed"), "{said}");
        registry.stop();
        wait_for_release(dir.path());

        let disk = volume.join("disk.img");
        let facts = fs::metadata(&disk).unwrap();
        assert_eq!((facts.len(), facts.permissions().mode() & 0o777), (256 * MIB, 0o400));
        assert!(occupied(&disk) < 64 * MIB, "a sealed disk returns its unused space");
        let names = |dir: &Path| {
            let mut names: Vec<_> =
                fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&volume), [".larder", "cache.json", "disk.img", "image.json"]);
        succeed(larder().arg("verify").arg(&volume));
        succeed(larder().arg("verify").arg(&disk));
        let inspected = succeed(larder().arg("inspect").arg("--json").arg(&volume));
        let beside: Value = serde_json::from_slice(&fs::read(volume.join("cache.json")).unwrap()).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&inspected).unwrap(), beside);
        wait_for_release(dir.path());

        // skopeo's helper unmounts everything below its directory.
        let node = tempfile::tempdir().unwrap();
        let at = node.path().join("m");
        mounted(&disk, &at);
        let script =
            "cat /etc/greeting; /usr/bin/tool; stat -c %a:%h /usr/bin/tool2; stat -c %u:%g /data/owned";
        let printed = Podman::new().run(&at, &reference, &["/bin/sh", "-c", script]);
        assert_eq!(printed, "hello from the disk\n0\n4755:2\n1000:1001\n");
        let diff_ids: Vec<Digest> = image.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        assert_eq!(skopeo::copy_out(&at, &reference, dir.path()), diff_ids);
        assert_eq!(fs::read(at.join("cache.json")).unwrap(), fs::read(volume.join("cache.json")).unwrap());
        unmount(&at);
    });
}

#[case]
fn a_disk_has_the_content_of_a_directory() {
    with_disks(|| {
        let served = Served::new([image(4, 300)]);
        let (disk, directory) = (served.volume(), served.beside("directory"));
        succeed(&mut build(&served, &disk, SIZE));
        succeed(&mut served.build(&directory, SIZE));
        assert_eq!(
            fs::read(disk.join("cache.json")).unwrap(),
            fs::read(directory.join("cache.json")).unwrap()
        );
        let at = served.beside("m");
        mounted(&disk.join("disk.img"), &at);
        let tolerance = Tolerance { directory_times: true, ..Tolerance::default() };
        let of = |volume: &Path| {
            let mut found = scan(&volume.join("overlay"));
            // A whiteout has no defined time.
            found.values_mut().for_each(|entry| entry.mtime = None);
            found
        };
        let differ = differences(&of(&directory), &of(&at), tolerance);
        assert!(differ.is_empty(), "{differ:#?}");
        unmount(&at);
    });
}

#[case]
fn the_same_job_again_writes_nothing_and_another_is_refused() {
    with_disks(|| {
        let served = Served::new([image(2, 100)]);
        let volume = served.volume();
        succeed(&mut build(&served, &volume, SIZE));
        let (before, requests) = (change_times(&volume), served.registry.seen().len());
        let text = succeed(build(&served, &volume, SIZE).args(["--output", "json", "--verify-after"]));
        let kinds: Vec<_> = events(&text).iter().map(|e| e["event"].as_str().unwrap().to_owned()).collect();
        assert_eq!(kinds, ["started", "sealed", "result"]);
        assert_eq!((change_times(&volume), served.registry.seen().len()), (before.clone(), requests));
        let said = exits(73, build(&served, &volume, SIZE).arg("--no-tar-split"));
        assert!(said.contains("another job"), "{said}");
        let said = exits(73, &mut served.build(&volume, SIZE));
        assert!(said.contains("--volume-kind disk"), "{said}");
        assert_eq!(change_times(&volume), before);
        wait_for_release(&volume);
    });
}

#[case]
fn events_are_those_of_any_build_and_the_seal_comes_last() {
    with_disks(|| {
        let served = Served::new([image(3, 100)]);
        let result = served.beside("result");
        let mut command = build(&served, &served.volume(), SIZE);
        let text = succeed(command.args(["--output", "json", "--result-file"]).arg(&result));
        let all = events(&text);
        let kinds: Vec<_> = all.iter().map(|event| event["event"].as_str().unwrap()).collect();
        assert_eq!((kinds[0], &kinds[kinds.len() - 2..]), ("started", &["sealed", "result"][..]));
        assert_eq!(kinds.iter().filter(|kind| **kind == "layer_committed").count(), 3);
        let cache: Value =
            serde_json::from_slice(&fs::read(served.volume().join("cache.json")).unwrap()).unwrap();
        assert_eq!(all[all.len() - 1]["digest"], cache["digest"]);
        let line: Value = serde_json::from_slice(&fs::read(result).unwrap()).unwrap();
        assert_eq!((&line["status"], &line["exit_code"]), (&"ok".into(), &0.into()));
    });
}

#[case]
fn a_job_names_the_kind_too() {
    with_disks(|| {
        let served = Served::new([image(1, 10)]);
        let job = serde_json::json!({
            "images": served.references(), "size": "64MiB", "volume_kind": "disk", "result_file": served.beside("result"),
        });
        fs::write(served.beside("job"), job.to_string()).unwrap();
        let mut command = larder();
        command
            .args(["build", "--sizing", "warn", "--shrink", "--sparse", "--job"])
            .arg(served.beside("job"));
        succeed(command.arg("--volume").arg(served.volume()));
        assert!(served.beside("result").exists());
        succeed(larder().arg("verify").arg(served.volume()));
    });
}

#[case]
fn a_shrunk_disk_is_as_large_as_what_it_holds() {
    with_disks(|| {
        let served = Served::new([image(3, 4000)]);
        let volume = served.volume();
        succeed(build(&served, &volume, 1 << 30).arg("--shrink"));
        let disk = volume.join("disk.img");
        let (size, occupied) = (fs::metadata(&disk).unwrap().len(), occupied(&disk));
        eprintln!("12 MB in a disk of 1 GiB: shrunk to {size} bytes, which occupy {occupied} on the host");
        // The host's own metadata of the file counts, too.
        assert!(size < 40 * MIB && occupied <= size + (64 << 10), "{size} {occupied}");
        let facts = described(&volume);
        assert_eq!((&facts["size"], &facts["shrunk"]), (&size.into(), &true.into()));
        succeed(larder().arg("verify").arg(&volume));
        succeed(Command::new("e2fsck").arg("-fn").arg(&disk));
        for path in [&volume, &disk] {
            assert!(succeed(larder().arg("prefetch").arg("--all").arg(path)).contains(" files, "));
            assert!(succeed(larder().args(["inspect", "--extents"]).arg(path)).contains("extents"));
            wait_for_release(&volume);
        }
        // The same job finds it sealed, whatever its size.
        succeed(build(&served, &volume, 1 << 30).arg("--shrink"));
    });
}

/// resize2fs gives a directory the current time if it moves an inode that the directory names.
#[case]
fn a_shrunk_disk_keeps_the_times_of_its_directories() {
    with_disks(|| {
        let layer = (0..300).fold(LayerBuilder::new(), |layer, number| {
            layer.dir(format!("{number}/a/b")).file(format!("{number}/a/b/file"), random(number, 5000))
        });
        let served = Served::new([Image::builder(Format::Oci).layer(layer.gzip().into()).build()]);
        let volume = served.volume();
        succeed(build(&served, &volume, 20 << 30).args(["--sparse", "--shrink"]));
        assert!(fs::metadata(volume.join("disk.img")).unwrap().len() < 100 * MIB);
        succeed(larder().arg("verify").arg(&volume));
    });
}

#[case]
fn a_sealed_disk_returns_what_it_does_not_use() {
    with_disks(|| {
        let served = Served::new([image(2, 1000)]);
        let volume = served.volume();
        succeed(&mut build(&served, &volume, 1 << 30));
        let disk = volume.join("disk.img");
        assert_eq!(fs::metadata(&disk).unwrap().len(), 1 << 30);
        assert!(occupied(&disk) < 40 * MIB, "{}", occupied(&disk));
        succeed(larder().arg("verify").arg(&volume));
    });
}

#[case]
fn a_sparse_disk_takes_what_it_needs() {
    with_disks(|| {
        let served = Served::new([image(2, 1000)]);
        let volume = served.volume();
        succeed(build(&served, &volume, 1 << 30).arg("--sparse"));
        let disk = volume.join("disk.img");
        assert_eq!(fs::metadata(&disk).unwrap().len(), 1 << 30);
        assert!(occupied(&disk) < 40 * MIB, "{}", occupied(&disk));
        assert_eq!(described(&volume)["sparse"], true);
        succeed(larder().arg("verify").arg(&volume));
    });
}

#[case]
fn a_disk_is_named_after_its_volume_and_job() {
    with_disks(|| {
        let served = Served::new([image(1, 10)]);
        let of = |volume: &Path| {
            succeed(build(&served, volume, SIZE).arg("--sparse"));
            let facts = described(volume);
            (facts["uuid"].clone(), facts["label"].clone())
        };
        let first = of(&served.volume());
        assert_ne!(first, of(&served.beside("other")));
        fs::remove_dir_all(served.volume()).unwrap();
        assert_eq!(first, of(&served.volume()));
        let blkid = succeed(Command::new("blkid").arg("-p").arg(served.volume().join("disk.img")));
        assert!(
            blkid.contains(first.0.as_str().unwrap()) && blkid.contains(first.1.as_str().unwrap()),
            "{blkid}"
        );
    });
}

#[case]
fn from_inside_its_own_directory() {
    with_disks(|| {
        let served = Served::new([image(1, 10)]);
        let volume = served.volume();
        fs::create_dir(&volume).unwrap();
        succeed(build(&served, Path::new("."), SIZE).current_dir(&volume));
        succeed(larder().args(["verify", "."]).current_dir(&volume));
        assert!(volume.join("disk.img").exists());
    });
}

#[case]
fn without_e2fsprogs_it_says_so() {
    with_disks(|| {
        let served = Served::new([image(1, 10)]);
        // Larder also looks in the programs' default directory, so hide that.
        let hide = "mount -t tmpfs none /usr/sbin && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", hide, "sh"]).arg(larder().get_program());
        command.args(build(&served, &served.volume(), SIZE).get_args());
        let said = exits(64, command.env("PATH", "/usr/bin:/bin"));
        assert!(said.contains("mkfs.ext4") && said.contains("e2fsprogs"), "{said}");
        assert!(!served.volume().join("disk.img").exists());
    });
}

#[case]
fn without_the_right_to_mount_it_says_so() {
    with_disks(|| {
        let served = Served::new([image(1, 10)]);
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-sys_admin"]).arg(larder().get_program());
        let said = exits(77, command.args(build(&served, &served.volume(), SIZE).get_args()));
        assert!(said.contains("CAP_SYS_ADMIN"), "{said}");
    });
}
