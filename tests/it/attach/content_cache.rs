//! Volumes for containerd's own EROFS snapshotter: a directory of links, a configuration, and the cases that
//! are refused.
//!
//! Debian has no containerd with such a snapshotter. The `containerd` and the `mkfs.erofs` of these tests are
//! fakes that only print a version and an option. The tests read the files that larder writes for them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use larder_model::digest::Digest;
use larder_model::job::LayerFormat;
use larder_sys::dm_verity;
use larder_testing::image::{Format, Image};
use larder_testing::layer::LayerBuilder;
use nix::mount::{MsFlags, mount};
use tempfile::TempDir;
use toml::Table;

use crate::harness::served::{Served, cache};
use crate::harness::{Need, exits, isolated, larder, succeed};

const SIZE: u64 = 64 << 20;
const DROP_IN: &str = "/etc/containerd/conf.d/99-larder.toml";
const SNAPSHOTS: &str = "/var/lib/containerd/io.containerd.snapshotter.v1.erofs/snapshots";

/// A machine with containerd 2.4 that does not run.
struct Machine(TempDir);

impl Machine {
    fn new() -> Self {
        let machine = Machine(tempfile::tempdir().unwrap());
        for path in ["/etc/containerd", "/var/lib/containerd"] {
            fs::create_dir_all(path).unwrap();
            mount(Some("test"), path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        }
        fs::write("/etc/containerd/config.toml", "version = 3\nimports = ['conf.d/*.toml']\n").unwrap();
        machine.fake("containerd", "containerd github.com/containerd/containerd/v2 v2.4.0 0");
        machine
    }

    /// Mounts a program that prints a line over one in /usr/bin.
    fn fake(&self, name: &str, line: &str) {
        let (fake, place) = (self.0.path().join(name), Path::new("/usr/bin").join(name));
        fs::write(&fake, format!("#!/bin/sh\n# A fake, of a test of larder.\necho '{line}'\n")).unwrap();
        fs::set_permissions(&fake, Permissions::from_mode(0o755)).unwrap();
        mount(Some(&fake), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn larder(&self, command: &str, what: &Path) -> Command {
        let mut larder = larder();
        larder.env("LARDER_STATE__DIR", self.at("state")).arg(command).arg(what);
        larder
    }

    fn attach(&self, volume: &Path, name: &str, snapshotter: &str) -> Command {
        let mut attach = self.larder("attach", volume);
        attach.args(["--runtime", "containerd", "--no-unit", "--containerd", "/no/such/socket"]);
        attach.args(["--snapshotter", snapshotter, "--at"]).arg(self.at(name));
        attach
    }

    /// Returns the path where containerd looks up a layer.
    fn layer(&self, diff_id: &Digest) -> PathBuf {
        let hex = diff_id.hex();
        self.at("state").join("erofs/sha256").join(&hex[..2]).join(format!("{hex}.erofs"))
    }

    fn leads_to(&self, diff_id: &Digest) -> Option<PathBuf> {
        let target = fs::read_link(self.layer(diff_id)).ok()?;
        assert!(target.is_file(), "{}", target.display());
        Some(target.ancestors().nth(4).unwrap().to_owned())
    }

    fn is_untouched(&self) -> bool {
        !self.at("a").exists() && !self.at("state").join("attached").exists() && !Path::new(DROP_IN).exists()
    }
}

fn image(name: &str) -> Image {
    let layer = |text: String| LayerBuilder::new().file("file", &text).gzip().into();
    Image::builder(Format::Oci).layers([layer("shared".into()), layer(name.to_owned())]).build()
}

/// Builds a volume of EROFS images of some of the images.
fn build(served: &Served, name: &str, without: usize, more: &[&str]) -> PathBuf {
    let (volume, left_out) = (served.beside(name), &served.references()[without..]);
    let build = served.build(&volume, SIZE);
    let mut command = Command::new(build.get_program());
    command
        .args(build.get_args().filter(|word| !left_out.iter().any(|reference| *word == reference.as_str())));
    succeed(command.args(more));
    volume
}

fn drop_in() -> Table {
    fs::read_to_string(DROP_IN).unwrap().parse().unwrap()
}

#[case]
fn each_layer_leads_to_an_attached_volume() {
    isolated(&[Need::Erofs], || {
        let served = Served::new([image("one"), image("two")]).with(LayerFormat::Erofs);
        let (both, one) = (build(&served, "both", 2, &[]), build(&served, "one", 1, &[]));
        let layers = cache(&both).content.layers;
        let machine = Machine::new();
        let leads = || layers.iter().map(|layer| machine.leads_to(&layer.diff_id)).collect::<Vec<_>>();
        let to = |names: [&str; 3]| names.map(|name| (!name.is_empty()).then(|| machine.at(name))).to_vec();
        succeed(&mut machine.attach(&both, "a", "erofs"));
        assert_eq!(leads(), to(["a", "a", "a"]));
        let caches = &drop_in()["plugins"]["io.containerd.snapshotter.v1.erofs"]["layer_content_caches"];
        assert_eq!(caches.as_array().unwrap().len(), 1);
        assert_eq!(caches[0].as_str(), machine.at("state").join("erofs").to_str());

        // Creates a snapshot of containerd that uses a layer.
        let linked = |number: usize| {
            let snapshot = Path::new(SNAPSHOTS).join(number.to_string());
            fs::create_dir_all(&snapshot).unwrap();
            symlink(machine.layer(&layers[number].diff_id), snapshot.join("layer.erofs")).unwrap();
            snapshot
        };
        let (shared, alone) = (linked(0), linked(2));
        let before = fs::read_to_string(DROP_IN).unwrap();
        succeed(&mut machine.attach(&one, "b", "erofs"));
        assert_eq!(leads(), to(["b", "b", "a"]));
        assert_eq!(fs::read_to_string(DROP_IN).unwrap(), before);
        // No containerd runs that could report which image uses the layer.
        let said = exits(69, &mut machine.larder("detach", &both));
        assert!(said.contains("--force"), "{said}");
        assert_eq!(leads(), to(["b", "b", "a"]));
        fs::remove_dir_all(alone).unwrap();
        succeed(&mut machine.larder("detach", &both));
        assert_eq!(leads(), to(["b", "b", ""]));
        assert!(
            fs::metadata(shared.join("layer.erofs")).unwrap().is_file(),
            "an upgrade must not break snapshots"
        );
        exits(69, &mut machine.larder("detach", &one));
        fs::remove_dir_all(&shared).unwrap();
        succeed(&mut machine.larder("detach", &one));
        assert!(!machine.at("state").join("erofs").exists() && !Path::new(DROP_IN).exists());
    });
}

#[case]
fn volumes_for_different_snapshotters_keep_working() {
    isolated(&[Need::Erofs], || {
        let served = Served::new([image("one")]).with(LayerFormat::Erofs);
        let (first, second) = (build(&served, "first", 1, &[]), build(&served, "second", 1, &[]));
        let machine = Machine::new();
        for order in [["erofs", "larder"], ["larder", "erofs"]] {
            for (snapshotter, (volume, name)) in order.iter().zip([(&first, "a"), (&second, "b")]) {
                succeed(&mut machine.attach(volume, name, snapshotter));
            }
            let drop_in = drop_in();
            let plugins = &drop_in["plugins"];
            assert_eq!(
                plugins["io.containerd.cri.v1.images"]["snapshotter"].as_str(),
                Some("larder"),
                "{order:?}"
            );
            assert!(plugins["io.containerd.snapshotter.v1.erofs"]["layer_content_caches"].is_array());
            assert!(drop_in["proxy_plugins"]["larder"].is_table());
            for volume in [&first, &second] {
                let output = machine.larder("detach", volume).output().unwrap();
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success() && said.contains("systemctl restart containerd"), "{said}");
            }
            assert!(!Path::new(DROP_IN).exists());
        }
    });
}

#[case]
fn settings_name_what_the_node_can_do() {
    isolated(&[Need::Erofs], || {
        let served = Served::new([image("one")]).with(LayerFormat::Erofs);
        let volume = build(&served, "v", 1, &["--verity"]);
        let diff_id = cache(&volume).content.layers[0].diff_id.clone();
        let machine = Machine::new();
        for (help, can) in [("mkfs.erofs 1.5: -zX", false), ("mkfs.erofs 1.7: --tar=X", true)] {
            machine.fake("mkfs.erofs", help);
            let output = machine.attach(&volume, "a", "erofs").output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
            let is_set = said.lines().any(|line| line.trim_start().starts_with("differ = \"erofs\""));
            assert_eq!((is_set, said.contains("erofs-utils 1.7")), (can, !can), "{said}");
            // containerd uses the hash tree of each image that has one, and cannot mount it without
            // dm-verity.
            let has_verity = dm_verity::is_supported(Path::new("/"));
            assert_eq!(said.contains("no dm-verity"), !has_verity, "{said}");
            let tree = machine.layer(&diff_id).with_extension("erofs.dmverity");
            assert_eq!(tree.exists(), has_verity);
            succeed(&mut machine.larder("detach", &volume));
        }
    });
}

#[case]
fn images_that_differ_by_diff_id_are_named() {
    isolated(&[Need::Erofs], || {
        let lower = LayerBuilder::new().mode(0o700).dir("etc").gzip();
        let upper = LayerBuilder::new().file("etc/name", "one\n").gzip();
        let depends = Image::builder(Format::Oci).layers([lower.into(), upper.into()]).build();
        let served = Served::new([depends, image("one")]).with(LayerFormat::Erofs);
        let volume = build(&served, "v", 2, &[]);
        let machine = Machine::new();
        let said = succeed(machine.attach(&volume, "a", "erofs").arg("--dry-run"));
        let note = said.lines().find(|line| line.contains("by diff ID without")).unwrap();
        assert!(note.contains(&served.references()[0]) && !note.contains(&served.references()[1]), "{note}");
    });
}

#[case]
fn what_cannot_work_is_refused_before_anything_is_changed() {
    isolated(&[Need::Erofs], || {
        let served = Served::new([image("one")]).with(LayerFormat::Erofs);
        let volume = build(&served, "v", 1, &[]);
        let machine = Machine::new();
        let said = exits(64, machine.attach(&volume, "a", "erofs").arg("--preload"));
        assert!(said.contains("--preload needs `larder snapshotter`") && machine.is_untouched(), "{said}");
        let said = exits(69, machine.attach(&volume, "a", "larder").arg("--preload"));
        assert!(said.contains("/no/such/socket") && machine.is_untouched(), "{said}");
        let known = machine.at("filesystems");
        fs::write(&known, "nodev\tproc\n\text4\n").unwrap();
        mount(Some(&known), "/proc/filesystems", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let said = exits(64, &mut machine.attach(&volume, "a", "erofs"));
        assert!(said.contains("modprobe erofs") && machine.is_untouched(), "{said}");
    });
}
