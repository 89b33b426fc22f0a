//! Tests of the harness itself, without larder: a failure here is a problem of the machine, not of the
//! builder.

use std::fs;
use std::process::Command;
use std::time::Duration;

use larder_testing::image::{self, Format, Image};

use crate::harness::cgroup::MemoryCgroup;
use crate::harness::filesystem::{FileSystem, Kind};
use crate::harness::podman::Podman;
use crate::harness::registry::{PASSWORD, Registry, USER};
use crate::harness::{Need, exits, isolated, skopeo, succeed};

const REGISTRY: Need = Need::Program("docker-registry");

fn shell() -> Image {
    let busybox = image::busybox().unwrap();
    Image::builder(Format::Oci).layer(busybox).build()
}

#[case]
fn podman_and_skopeo_read_an_additional_store() {
    isolated(&[REGISTRY, Need::Program("podman"), Need::Program("skopeo"), Need::Program("busybox")], || {
        let registry = Registry::open();
        let image = shell();
        let reference = registry.push(&image, "shell", "1");
        let puller = Podman::new();
        puller.pull(&reference);
        let blob = (image.layers[0].digest.to_string(), image.layers[0].blob.len() as u64);
        assert!(registry.blobs_served().contains(&blob), "{:?}", registry.blobs_served());
        registry.stop();
        let store = puller.primary_store();
        let printed = Podman::new().run(&store, &reference, &["/bin/echo", "hello"]);
        assert_eq!(printed, "hello\n");
        let dir = tempfile::tempdir().unwrap();
        let copied = skopeo::copy_out(&store, &reference, dir.path());
        assert_eq!(copied, [image.layers[0].diff_id.clone()]);
    });
}

#[case]
fn registries_require_authentication() {
    let programs = ["htpasswd", "openssl", "skopeo", "busybox"].map(Need::Program);
    isolated(&[&[REGISTRY], &programs[..]].concat(), || {
        for registry in [Registry::with_password(), Registry::with_tokens(Duration::from_secs(300))] {
            let image = shell();
            let reference = registry.push(&image, "team/shell", "1");
            let inspect = || {
                let mut skopeo = Command::new("skopeo");
                skopeo.args(["inspect", "--tls-verify=false"]);
                skopeo.arg(format!("docker://{reference}"));
                skopeo
            };
            exits(1, inspect().args(["--creds", "nobody:wrong"]));
            let shown = succeed(inspect().args(["--creds", &format!("{USER}:{PASSWORD}")]));
            assert!(shown.contains(&image.manifest.digest.to_string()), "{shown}");
        }
    });
}

#[case]
fn small_file_systems_run_full() {
    isolated(&[Need::Program("mkfs.ext4"), Need::Program("mkfs.xfs")], || {
        for kind in [Kind::Ext4 { inodes: 64 }, Kind::Xfs, Kind::Tmpfs] {
            let disk = FileSystem::new(kind, 320 << 20);
            fs::write(disk.path().join("fits"), "x").unwrap();
            let too_much = fs::write(disk.path().join("too much"), vec![1; 321 << 20]);
            assert!(too_much.is_err(), "{kind:?}");
        }
        let disk = FileSystem::new(Kind::Ext4 { inodes: 64 }, 32 << 20);
        let made = (0..100).take_while(|n| fs::create_dir(disk.path().join(n.to_string())).is_ok());
        assert!(made.count() < 64);
    });
}

#[case]
fn memory_is_limited() {
    isolated(&[Need::MemoryCgroup], || {
        let cgroup = MemoryCgroup::new("self", 32 << 20);
        let mut hog = Command::new("sh");
        hog.args(["-c", "head -c 200m /dev/zero | tail -c 100m | wc -c"]);
        let output = cgroup.wrap(&hog).output().unwrap();
        assert!(cgroup.peak() <= 32 << 20);
        assert_ne!(String::from_utf8_lossy(&output.stdout).trim(), "104857600");
    });
}
