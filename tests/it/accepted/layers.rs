//! Layers of other tools, in both formats, compared with the results of podman and GNU tar.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::{LayerBuilder, SparseForm};

use super::*;
use crate::harness::containerd::Containerd;
use crate::harness::filesystem::{FileSystem, Kind};
use crate::harness::podman::Podman;
use crate::harness::registry::Registry;
use crate::harness::tree::{Tolerance, differences};
use crate::harness::{Need, exits, isolated, run_within};

const REGISTRY: Need = Need::Program("docker-registry");
const NEEDS: &[Need] =
    &[REGISTRY, Need::Program("podman"), Need::Program("containerd"), Need::Program("ctr"), Need::Erofs];

/// Known deviations of podman: times of directories, and the root (docs/reference/runtimes.md).
const PODMAN: Tolerance<'_> = Tolerance { directory_times: true, directories: &[String::new()] };

/// Returns the tree that podman creates from an image.
fn by_podman(reference: &str) -> Tree {
    let podman = Podman::new();
    podman.pull(reference);
    scan(&podman.mount(reference))
}

/// Returns the tree that containerd creates from an image.
fn by_containerd(reference: &str) -> Tree {
    let containerd = Containerd::start();
    scan(&containerd.pull_and_mount(reference))
}

/// Creates files with every arrangement of data and holes that GNU tar packs differently.
fn sparse_files(dir: &Path) {
    const MIB: u64 = 1 << 20;
    for (name, size, data) in [
        ("all-hole", 4 * MIB, &[][..]),
        ("ends-in-a-hole", 4 * MIB, &[(0, 5000)]),
        ("begins-with-a-hole", 4 * MIB, &[(4 * MIB - 4096, 4096)]),
        ("between", 4 * MIB, &[(MIB, 8192)]),
        ("odd-size", 4 * MIB + 13, &[(2 * MIB, 4096), (4 * MIB, 13)]),
        (
            "many",
            4 * MIB,
            &[(0, 4096), (MIB, 4096), (2 * MIB, 4096), (3 * MIB, 4096), (3 * MIB + 65536, 4096)],
        ),
        ("far", 64 * MIB, &[(64 * MIB - 1, 1)]),
    ] {
        let file = File::create(dir.join(name)).unwrap();
        file.set_len(size).unwrap();
        for (offset, length) in data {
            file.write_all_at(&vec![b'x'; *length], *offset).unwrap();
        }
    }
}

/// GNU tar ends the map of each file with a region of length 0.
#[case]
fn sparse_files_of_gnu_tar() {
    isolated(NEEDS, || {
        let dir = tempfile::tempdir().unwrap();
        let files = dir.path().join("files");
        fs::create_dir(&files).unwrap();
        sparse_files(&files);
        let registry = Registry::open();
        for (name, options) in [
            ("gnu", &["--format=gnu"][..]),
            ("posix-0.0", &["--format=posix", "--sparse-version=0.0"]),
            ("posix-0.1", &["--format=posix", "--sparse-version=0.1"]),
            ("posix-1.0", &["--format=posix", "--sparse-version=1.0"]),
        ] {
            let tar = dir.path().join(name);
            let mut pack = Command::new("tar");
            pack.arg("-S").args(options).arg("-cf").arg(&tar).arg("-C").arg(&files).arg(".");
            succeed(&mut pack);
            let unpacked = dir.path().join(format!("{name}-unpacked"));
            fs::create_dir(&unpacked).unwrap();
            succeed(Command::new("tar").arg("-xpf").arg(&tar).arg("-C").arg(&unpacked));
            let layer = Layer::new(fs::read(&tar).unwrap(), "tar", None);
            let image = Image::builder(Format::Oci).layer(layer).build();
            let reference = registry.push(&image, "sparse", name);
            let want = scan(&unpacked);
            for form in FORMS {
                let volume = dir.path().join(format!("{name}-{form}"));
                build(&volume, form, &reference);
                let found = seen(&volume, form, &image);
                assert_eq!(
                    differences(&want, &found, Tolerance::default()),
                    Vec::<String>::new(),
                    "{name} {form}"
                );
            }
            // Go, and therefore podman, cannot read sparse files in GNU's own format in a layer.
            if name == "posix-1.0" {
                let found = by_podman(&reference);
                assert_eq!(differences(&want, &found, PODMAN), Vec::<String>::new(), "{name}");
            }
        }
    });
}

/// A file that is one large hole is verified without reading its bytes.
#[case]
fn holes_are_not_read() {
    isolated(&[REGISTRY], || {
        let builder =
            LayerBuilder::new().sparse(SparseForm::OldGnu, "disk", 60 << 30, &[((60 << 30) - 1, b"x")]);
        let linked = LayerBuilder::new().hardlink("again", "disk");
        let image =
            Image::builder(Format::Oci).layers([builder.gzip(), linked.gzip()].map(Layer::from)).build();
        let registry = Registry::open();
        let reference = registry.push(&image, "hole", "1");
        let dir = tempfile::tempdir().unwrap();
        for form in FORMS {
            let volume = dir.path().join(form);
            let mut build = larder();
            build.arg("build").arg("--volume").arg(&volume).args([
                "--layer-format",
                form,
                "--sizing",
                "warn",
            ]);
            succeed(build.args(["--size", "64MiB", &reference]));
            let done = run_within(larder().arg("verify").arg(&volume), Duration::from_secs(30));
            assert!(done.status.success(), "{form}: {done:?}");
        }
    });
}

/// ext4 limits a file to 65,000 hard links. A layer as an EROFS image has no such limit.
#[case]
fn more_hard_links_than_a_file_system_has() {
    isolated(&[REGISTRY], || {
        let mut layer = LayerBuilder::new().dir("d").file("d/first", "x");
        for number in 0..65_100 {
            layer = layer.hardlink(format!("d/{number}"), "d/first");
        }
        let image = Image::builder(Format::Oci).layer(Layer::from(layer.gzip())).build();
        let registry = Registry::open();
        let reference = registry.push(&image, "links", "1");
        let ext4 = FileSystem::new(Kind::Ext4 { inodes: 4096 }, 256 << 20);
        for (form, code) in [("overlay", 73), ("erofs", 0)] {
            let mut build = larder();
            build.arg("build").arg("--volume").arg(ext4.path().join(form)).args(["--layer-format", form]);
            let said = exits(code, build.args(["--sizing", "warn", "--size", "128MiB", &reference]));
            assert!(
                code == 0 || (said.contains("65,000") && said.contains("--layer-format erofs")),
                "{said}"
            );
            assert!(!said.contains("report it"), "{said}");
        }
    });
}

/// Rootless podman packs the attributes of its own overlay mount into images.
#[case]
fn notes_of_an_overlay_mount_of_a_user() {
    isolated(NEEDS, || {
        let new = LayerBuilder::new;
        let base = new().dir("./").dir("d").file("d/below", "below").file("f", "lower");
        let top = new()
            .xattr("user.overlay.opaque", "y")
            .xattr("user.overlay.impure", "y")
            .xattr("user.note", "kept")
            .dir("d")
            .xattr("user.overlay.origin", "")
            .file("d/above", "above")
            .xattr("user.overlay.redirect", "/etc")
            .dir("e")
            .xattr("user.overlay.metacopy", "")
            .xattr("user.overlay.whiteout", "y")
            .file("f", "");
        let image = Image::builder(Format::Oci).layers([base.gzip(), top.gzip()].map(Layer::from)).build();
        let registry = Registry::open();
        let reference = registry.push(&image, "rootless", "1");
        // Without root they are markers. With root, podman and containerd keep them as data.
        let [mut want, mut other] = [by_podman(&reference), by_containerd(&reference)];
        for entry in want.values_mut().chain(other.values_mut()) {
            entry.xattrs.retain(|name, _| !name.starts_with("user.overlay."));
        }
        assert_eq!(differences(&want, &other, PODMAN), Vec::<String>::new());
        assert!(want.contains_key("d/below") && want["d"].xattrs.contains_key("user.note"));
        let dir = tempfile::tempdir().unwrap();
        for form in FORMS {
            let volume = dir.path().join(form);
            build(&volume, form, &reference);
            let found = seen(&volume, form, &image);
            assert_eq!(differences(&want, &found, PODMAN), Vec::<String>::new(), "{form}");
        }
        // A user's overlay mount evaluates such attributes, and shows the same.
        let diff_ids: Vec<Digest> = image.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let view = View::mount_as_user(&dir.path().join("overlay"), &diff_ids);
        assert_eq!(differences(&want, &scan(&view.path()), PODMAN), Vec::<String>::new());
    });
}

#[case]
fn whiteouts_of_names_of_full_length() {
    isolated(NEEDS, || {
        let names: Vec<String> = (251..=255).map(|length| "n".repeat(length)).collect();
        let mut base = LayerBuilder::new().dir("./").file("stays", "x");
        let mut top = LayerBuilder::new();
        for name in &names {
            base = base.pax("path", name).file("short", "x");
            top = top.pax("path", format!(".wh.{name}")).file("short", "");
        }
        let image = Image::builder(Format::Oci).layers([base.gzip(), top.gzip()].map(Layer::from)).build();
        let registry = Registry::open();
        let reference = registry.push(&image, "long", "1");
        let want = by_podman(&reference);
        assert_eq!(differences(&want, &by_containerd(&reference), PODMAN), Vec::<String>::new());
        assert_eq!(want.keys().map(String::as_str).collect::<Vec<_>>(), ["", "stays"]);
        let dir = tempfile::tempdir().unwrap();
        for form in FORMS {
            let volume = dir.path().join(form);
            build(&volume, form, &reference);
            let found = seen(&volume, form, &image);
            assert_eq!(differences(&want, &found, PODMAN), Vec::<String>::new(), "{form}");
        }
    });
}
