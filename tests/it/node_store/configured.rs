//! The configuration that registers stores, read by the real podman and buildah.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use larder::node::podman::{config, node, skeleton};
use larder::node::view;
use larder_testing::image::{Format, Image, busybox};
use larder_testing::layer::LayerBuilder;
use nix::mount::{MsFlags, mount, umount};

use super::{NEEDS, PODMAN, attach, both_forms, change};
use crate::harness::node::Node;
use crate::harness::{Need, exits, isolated, succeed};

fn small() -> [Image; 2] {
    ["one", "two"].map(|name| {
        let layer = LayerBuilder::new().file(name, name);
        Image::builder(Format::Oci).layers([busybox().unwrap(), layer.gzip().into()]).build()
    })
}

fn bind(from: &Path, over: &Path) {
    fs::create_dir_all(over).unwrap();
    mount(Some(from), over, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(None::<&str>, over, None::<&str>, read_only, None::<&str>).unwrap();
}

/// Returns the names of images without duplicates, because an image in two stores is listed twice.
fn known(node: &Node) -> Vec<String> {
    let mut names = node.images();
    names.dedup();
    names
}

#[case]
fn one_file_makes_all_stores_known() {
    isolated(&[&NEEDS[..], &[Need::Program("buildah")]].concat(), || {
        let (served, [directories, volume]) = both_forms(small());
        let (_more, [_, other]) = both_forms(super::images());
        let place = tempfile::tempdir().unwrap();
        let [first, second, third] = ["a", "b", "c"].map(|name| place.path().join(name));
        bind(&directories, &first);
        attach(&other, &second);
        attach(&volume, &third);

        let node = Node::with_podman();
        // The real program reports its old version.
        fs::copy("/usr/bin/podman", node.root().join("usr/bin/podman")).unwrap();
        let found = node::Node::read(&node.root()).unwrap();
        assert_eq!(found.programs, [node::Program { name: "podman", is_new: false }]);
        assert!(node.images().is_empty());
        let many = change(&node, &[&first, &second, &third]);
        assert!(many.advice.is_empty(), "{many:?}");
        node.apply(&many);
        // An image in two stores is the same image.
        assert_eq!(known(&node).len(), 4, "{:?}", node.images());
        let info = succeed(node.command("podman").args([
            "info",
            "--format",
            "{{.Store.GraphDriverName}} {{.Store.GraphRoot}}",
        ]));
        assert_eq!(info, "overlay /var/lib/containers/storage\n");
        let listed = succeed(node.command("buildah").args(["images", "--format", "{{.Name}}"]));
        let listed: BTreeSet<&str> = listed.lines().collect();
        assert_eq!(listed.len(), 4, "{listed:?}");
        for (number, reference) in served.references().iter().enumerate() {
            let file = ["one", "two"][number];
            assert_eq!(node.printed(reference, &format!("cat /{file}")), file);
        }
        assert_eq!(
            change(&node, &[&first, &second, &third]),
            many,
            "a repeated change must not change anything"
        );
        // Remove one store.
        node.apply(&change(&node, &[&second, &third]));
        umount(&first).unwrap();
        assert_eq!(node.printed(&served.references()[1], "cat /two"), "two");
        node.apply(&change(&node, &[]));
        assert!(!node.root().join("etc/containers/storage.conf").exists());
        assert!(node.images().is_empty());
        view::remove(&third).unwrap();
        view::remove(&second).unwrap();
    });
}

#[case]
fn the_line_for_the_operator_works() {
    isolated(&NEEDS, || {
        let (served, [_, volume]) = both_forms(small());
        let place = tempfile::tempdir().unwrap();
        let at = place.path().join("v");
        attach(&volume, &at);
        let node = Node::with_podman();
        let theirs = "[storage]\ndriver = \"overlay\"\nrunroot = \"/run/containers/storage\"\n\
                      graphroot = \"/var/lib/containers/storage\"\n[storage.options]\n";
        let path = node.root().join("etc/containers/storage.conf");
        fs::write(&path, theirs).unwrap();
        let advised = change(&node, &[&at]);
        node.apply(&advised);
        assert_eq!(fs::read_to_string(&path).unwrap(), theirs);
        assert!(node.images().is_empty());
        let (_, line) = advised.advice[0].rsplit_once("the line ").unwrap();
        fs::write(&path, format!("{theirs}{line}\n")).unwrap();
        assert_eq!(known(&node).len(), 2);
        assert_eq!(node.printed(&served.references()[0], "cat /one"), "one");
        assert!(change(&node, &[&at]).advice.is_empty());
    });
}

/// Alternatives that would avoid a file instead of `storage.conf`, if a future podman supported them.
#[case]
fn this_podman_reads_nothing_else() {
    isolated(&NEEDS, || {
        let (_served, [directories, _]) = both_forms(small());
        let option = format!("overlay.imagestore={}", directories.display());
        let drop_in = |found: node::Node| {
            let change = config::change(
                &node::Node { programs: vec![node::Program { name: "podman", is_new: true }], ..found },
                PODMAN,
                std::slice::from_ref(&directories),
            );
            change.files.into_iter().find_map(|(_, text)| text).unwrap()
        };
        for (name, text) in [
            ("storage.conf.d/90-larder.conf", None),
            (
                "containers.conf.d/90-larder.conf",
                Some(format!("[engine]\nenv = [\"STORAGE_OPTS={option}\"]\n")),
            ),
        ] {
            let node = Node::with_podman();
            let path = node.root().join("etc/containers").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let text = text.unwrap_or_else(|| drop_in(node::Node::read(&node.root()).unwrap()));
            fs::write(path, text).unwrap();
            assert!(node.images().is_empty(), "podman now supports {name}: use it");
        }
    });
}

#[case]
fn a_store_that_is_not_mounted_is_no_obstacle() {
    isolated(&NEEDS, || {
        let (served, [_, volume]) = both_forms(small());
        let place = tempfile::tempdir().unwrap();
        let at = place.path().join("v");
        let node = Node::with_podman();
        node.apply(&change(&node, &[&at]));
        let images = |node: &Node| {
            let mut podman = node.command("podman");
            podman.arg("images");
            podman
        };
        // The failure that must be avoided.
        let said = exits(125, &mut images(&node));
        assert!(said.contains("can't stat imageStore dir"), "{said}");
        let flags = MsFlags::MS_RDONLY;
        fs::create_dir(&at).unwrap();
        mount(Some("x"), &at, Some("tmpfs"), flags, None::<&str>).unwrap();
        let said = exits(125, &mut images(&node));
        assert!(said.contains("read-only file system"), "{said}");
        umount(&at).unwrap();

        for read_only in [false, true] {
            skeleton::make(&at).unwrap();
            if read_only {
                bind(&at, &at);
            }
            assert!(node.images().is_empty());
            if read_only {
                umount(&at).unwrap();
            }
        }
        let before: Vec<_> = listing(&at);
        attach(&volume, &at);
        assert_eq!(node.printed(&served.references()[0], "cat /one"), "one");
        view::remove(&at).unwrap();
        assert!(node.images().is_empty());
        assert_eq!(listing(&at), before);
        node.apply(&change(&node, &[]));
        skeleton::remove(&at).unwrap();
        fs::remove_dir(&at).unwrap();
        assert!(node.images().is_empty());
    });
}

fn listing(at: &Path) -> Vec<String> {
    let found = succeed(Command::new("find").arg(at).arg("-printf").arg("%P %m\n"));
    let mut lines: Vec<String> = found.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}
