//! The state of containerd after a detach: it lists only images that can start.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use larder::caches::attachments::Attachments;
use larder_model::job::LayerFormat;
use larder_model::runtime::Containerd;
use larder_testing::image::{Format, Image};
use larder_testing::layer::LayerBuilder;

use super::attached::NodePaths;
use super::containers::{NEEDS, Node, SIZE, fetched, image};
use super::preload::pause;
use crate::harness::served::Served;
use crate::harness::{Need, exits, isolated, succeed};

/// Returns `larder attach` without `--preload`.
fn attach(place: &NodePaths, node: &Node, volume: &Path, name: &str) -> Command {
    let mut attach = place.larder(node, "attach", volume);
    attach.args(["--runtime", "containerd", "--no-unit", "--containerd"]);
    attach.arg(node.containerd.socket()).arg("--at").arg(place.at(name));
    attach
}

fn start(place: &NodePaths, sandbox: &str) -> Node {
    Node::start_importing(&place.dir.path().join("etc/containerd"), sandbox)
}

/// Runs an image in a pod and returns the lines of `file`.
fn pod_prints(node: &Node, name: &str, reference: &str, file: &str) -> Vec<String> {
    let (cri, logs, name) = (node.cri(), tempfile::tempdir().unwrap(), node.name(name));
    let pod = cri.pod(&name, logs.path());
    let said = cri.run(&pod, &name, logs.path(), reference, &format!("cat {file}"));
    cri.end(&pod);
    said
}

/// Builds a volume of some of the images.
fn build(served: &Served, name: &str, without: &[&String]) -> std::path::PathBuf {
    let volume = served.beside(name);
    let build = served.build(&volume, SIZE);
    let mut command = Command::new(build.get_program());
    let is_left_out = |word: &std::ffi::OsStr| without.iter().any(|left_out| word == left_out.as_str());
    succeed(command.args(build.get_args().filter(|word| !is_left_out(word))));
    volume
}

/// Returns an image with a shell that shares no layer with others.
fn apart() -> Image {
    let program = fs::read(succeed(Command::new("sh").args(["-c", "command -v busybox"])).trim()).unwrap();
    let layer = LayerBuilder::new().mode(0o755).file("bin/busybox", program).file("apart", "apart\n");
    let layer = layer.symlink("bin/sh", "busybox").symlink("bin/cat", "busybox").gzip();
    Image::builder(Format::Oci).layer(layer.into()).build()
}

#[case]
fn images_are_pulled_again_when_their_volume_went() {
    isolated(&[&NEEDS[..], &[Need::Erofs]].concat(), || {
        for form in [LayerFormat::Overlay, LayerFormat::Erofs] {
            let served = Served::new([pause(), image("cached", 2), image("newer", 1), apart()]).with(form);
            let references = served.references();
            let [sandbox, cached, newer, apart] = &references[..] else { panic!() };
            let volume = build(&served, "v", &[newer, apart]);
            let place = NodePaths::new();
            let mut node = start(&place, sandbox);
            succeed(&mut attach(&place, &node, &volume, "a"));
            node.containerd.restart();
            fetched(&served);
            for reference in [cached, newer] {
                node.pull(reference);
            }
            // The layer that only the newer image has.
            assert_eq!(fetched(&served).0, served.images[2].layers[1].blob.len() as u64, "{form:?}");
            // All blobs of this one are in containerd's content store.
            let pull = ["images", "pull", "--plain-http", "--snapshotter", "larder", apart];
            succeed(&mut node.containerd.k8s(&pull));
            assert_eq!(pod_prints(&node, "before", cached, "/file-1"), ["cached 1"]);

            let before = node.images();
            let said = exits(75, &mut place.detach(&node, &volume));
            for needing in [sandbox, cached, newer] {
                assert!(said.contains(needing.as_str()), "{said}");
            }
            assert!(!said.contains(apart.as_str()) && said.contains("--remove-images"), "{said}");
            assert_eq!(node.images(), before);
            assert_eq!(pod_prints(&node, "refused", newer, "/file-0"), ["newer 0"], "nothing must change");

            let said = place.detach(&node, &volume).arg("--remove-images").output().unwrap();
            let notes = String::from_utf8_lossy(&said.stderr).into_owned();
            assert!(said.status.success() && notes.contains(cached.as_str()), "{notes}");
            assert!(notes.contains("systemctl restart containerd"), "{notes}");
            // CRI adds a record for its ID.
            let names = node.images().into_iter().filter(|name| !name.starts_with("sha256:"));
            assert_eq!(names.collect::<Vec<_>>().join(" "), *apart, "{form:?}");
            node.until_cri_knows(1);
            for round in ["at once", "restarted"] {
                if round == "restarted" {
                    node.containerd.restart();
                }
                let cri = node.cri();
                for reference in [cached, newer] {
                    assert!(round == "restarted" || cri.image(reference).is_none(), "{round}: {reference}");
                    node.pull(reference);
                }
                let name = round.replace(' ', "-");
                assert_eq!(pod_prints(&node, &name, cached, "/file-1"), ["cached 1"], "{round}");
                assert_eq!(pod_prints(&node, &name, newer, "/file-0"), ["newer 0"], "{round}");
                assert_eq!(pod_prints(&node, &name, apart, "/apart"), ["apart"], "{round}");
            }
            assert!(!place.drop_in().exists());
        }
    });
}

#[case]
fn an_upgrade_needs_no_consent() {
    isolated(&[&NEEDS[..], &[Need::Erofs]].concat(), || {
        for form in [LayerFormat::Overlay, LayerFormat::Erofs] {
            let served = Served::new([pause(), image("cached", 2), image("old", 1)]).with(form);
            let references = served.references();
            let [sandbox, cached, old] = &references[..] else { panic!() };
            let (before, after) = (build(&served, "before", &[]), build(&served, "after", &[old]));
            let place = NodePaths::new();
            let mut node = start(&place, sandbox);
            succeed(&mut attach(&place, &node, &before, "a"));
            node.containerd.restart();
            node.pull(cached);
            assert_eq!(pod_prints(&node, "before", cached, "/file-1"), ["cached 1"]);
            succeed(&mut attach(&place, &node, &after, "b"));
            // No image needs the layer that only the old volume has.
            succeed(&mut place.detach(&node, &before));
            fetched(&served);
            assert_eq!(pod_prints(&node, "after", cached, "/file-1"), ["cached 1"], "{form:?}");
            assert_eq!(fetched(&served), (0, 0), "{form:?}");
            // An image needs the layer that only this volume has.
            succeed(&mut attach(&place, &node, &before, "a"));
            node.pull(old);
            let said = exits(75, &mut place.detach(&node, &before));
            assert!(said.contains(old.as_str()) && !said.contains(cached.as_str()), "{said}");
            succeed(place.detach(&node, &before).arg("--remove-images"));
            assert_eq!(pod_prints(&node, "last", cached, "/file-0"), ["cached 0"], "{form:?}");
            exits(75, &mut place.detach(&node, &after));
            succeed(place.detach(&node, &after).arg("--remove-images"));
            assert!(node.images().is_empty(), "{:?}", node.images());
        }
    });
}

/// `attach` as the agent of a cluster's node runs it: the operator has configured containerd.
#[case]
fn a_containerd_without_a_configuration_is_queried() {
    isolated(&NEEDS, || {
        let served = Served::new([pause(), image("cached", 1)]);
        let references = served.references();
        let volume = build(&served, "v", &[]);
        let (node, place) = (Node::start_with_sandbox(&references[0]), NodePaths::new());
        let mut attach = place.larder(&node, "attach", &volume);
        succeed(attach.args(["--runtime", "podman", "--no-unit", "--at"]).arg(place.at("a")));
        node.pull(&references[1]);
        let socket = place.dir.path().join("run/containerd/containerd.sock");
        fs::create_dir_all(socket.parent().unwrap()).unwrap();
        symlink(node.containerd.socket(), &socket).unwrap();
        let said = exits(75, &mut place.detach(&node, &volume));
        assert!(said.contains(references[1].as_str()), "{said}");
        succeed(place.detach(&node, &volume).arg("--remove-images"));
        assert!(node.images().is_empty(), "{:?}", node.images());
        node.pull(&references[1]);
        assert_eq!(pod_prints(&node, "after", &references[1], "/file-0"), ["cached 0"]);
    });
}

/// The snapshotter also serves layers of volumes that were attached for containerd's EROFS snapshotter.
/// Debian's containerd has no such snapshotter, so the test writes the record.
#[case]
fn a_volume_for_another_snapshotter_is_queried_as_well() {
    isolated(&NEEDS, || {
        let served = Served::new([pause(), image("cached", 1)]).with(LayerFormat::Erofs);
        let references = served.references();
        let volume = build(&served, "v", &[]);
        let (node, place) = (Node::start_with_sandbox(&references[0]), NodePaths::new());
        let at = node.snapshotter.attach(&volume, "v");
        let records = Attachments::new(node.snapshotter.state().join("attached"));
        let mut record = records.list().unwrap().remove(0);
        let (address, snapshotter) = (node.containerd.socket(), Containerd::EROFS.to_owned());
        record.containerd = Some(Containerd { address, snapshotter, ..Containerd::default() });
        records.note(&record).unwrap();
        node.pull(&references[1]);
        let said = exits(75, &mut place.detach(&node, &at));
        assert!(said.contains(references[1].as_str()), "{said}");
        succeed(place.detach(&node, &at).arg("--remove-images"));
        assert!(node.images().is_empty(), "{:?}", node.images());
    });
}

/// A lease or a label of another client keeps snapshots without an image.
#[case]
fn what_no_image_has_is_swept() {
    isolated(&NEEDS, || {
        let served = Served::new([pause(), image("cached", 2)]);
        let references = served.references();
        let volume = build(&served, "v", &[]);
        let (node, place) = (Node::start_with_sandbox(&references[0]), NodePaths::new());
        succeed(&mut attach(&place, &node, &volume, "a"));
        node.pull(&references[1]);
        let snapshots = |arguments: &[&str]| {
            let all = [&["snapshots", "--snapshotter", "larder"], arguments].concat();
            succeed(&mut node.containerd.k8s(&all))
        };
        let listed = snapshots(&["ls"]);
        let top = listed.lines().rfind(|line| line.contains("Committed")).unwrap();
        let top = top.split_whitespace().next().unwrap();
        snapshots(&["label", top, "containerd.io/gc.root=held"]);
        succeed(place.detach(&node, &volume).arg("--remove-images"));
        node.until_nothing_is_left();
        assert_eq!(snapshots(&["ls"]).lines().count(), 1);
        node.pull(&references[1]);
        assert_eq!(node.printed(&references[1], "cat /file-1"), "cached 1\n");
    });
}

/// Layers that were unpacked before the volume was attached do not depend on it.
#[case]
fn a_container_from_before_does_not_hold_a_volume() {
    isolated(&NEEDS, || {
        let served = Served::new([pause(), image("cached", 1)]);
        let references = served.references();
        let volume = build(&served, "v", &[]);
        for runtime in ["containerd", "podman"] {
            let (node, place) = (Node::start_with_sandbox(&references[0]), NodePaths::new());
            node.snapshotter.link_default_socket();
            node.pull(&references[1]);
            let script = "trap 'exit 0' TERM; while true; do sleep 1 & wait; done";
            succeed(&mut node.run(&["--detach"], &references[1], "long", script));
            let mut attach = place.larder(&node, "attach", &volume);
            attach.args(["--no-unit", "--runtime", runtime, "--containerd"]).arg(node.containerd.socket());
            succeed(attach.arg("--at").arg(place.at("a")));
            let before = node.images();
            succeed(&mut place.detach(&node, &volume));
            assert_eq!(node.images(), before);
            node.end("long");
            assert_eq!(node.printed(&references[1], "cat /file-0"), "cached 0\n");
        }
    });
}

/// After the loss of a disk, images that depend on it are removed, and no others.
#[case]
fn images_of_a_volume_that_is_lost() {
    isolated(&NEEDS, || {
        let served = Served::new([pause(), image("lost", 1), image("kept", 1)]);
        let references = served.references();
        let [sandbox, lost, kept] = &references[..] else { panic!() };
        let (one, other) = (build(&served, "one", &[kept]), build(&served, "other", &[lost]));
        let (node, place) = (Node::start_with_sandbox(sandbox), NodePaths::new());
        succeed(&mut attach(&place, &node, &one, "a"));
        succeed(&mut attach(&place, &node, &other, "b"));
        for reference in [lost, kept] {
            node.pull(reference);
        }
        nix::mount::umount2(&place.at("a"), nix::mount::MntFlags::MNT_DETACH).unwrap();
        let said = exits(75, &mut place.detach(&node, &place.at("a")));
        assert!(said.contains(lost.as_str()) && !said.contains(kept.as_str()), "{said}");
        succeed(place.detach(&node, &place.at("a")).arg("--remove-images"));
        assert!(!node.images().contains(lost));
        assert_eq!(node.printed(kept, "cat /file-0"), "kept 0\n");
        node.pull(lost);
        assert_eq!(node.printed(lost, "cat /file-0"), "lost 0\n");
        succeed(place.detach(&node, &place.at("b")).arg("--remove-images"));
    });
}

#[case]
fn a_containerd_that_never_used_it_need_not_run() {
    isolated(&NEEDS, || {
        let served = Served::new([pause(), image("cached", 1)]);
        let references = served.references();
        let volume = build(&served, "v", &[]);
        let place = NodePaths::new();
        let mut node = start(&place, &references[0]);
        succeed(&mut attach(&place, &node, &volume, "a"));
        node.containerd.kill();
        succeed(&mut place.detach(&node, &volume));
        assert!(!place.at("a").exists() && !place.drop_in().exists());
        // As soon as containerd has an image of the volume, detach must be able to query it.
        node.containerd.restart();
        succeed(&mut attach(&place, &node, &volume, "a"));
        node.containerd.restart();
        node.pull(&references[1]);
        node.containerd.kill();
        let said = exits(69, &mut place.detach(&node, &volume));
        assert!(said.contains("--force"), "{said}");
        node.containerd.restart();
        succeed(place.detach(&node, &volume).arg("--remove-images"));
    });
}

#[case]
fn a_preload_needs_a_containerd_that_was_restarted() {
    isolated(&NEEDS, || {
        let served = Served::new([pause(), image("cached", 1)]);
        let references = served.references();
        let volume = build(&served, "v", &[]);
        let place = NodePaths::new();
        let mut node = start(&place, &references[0]);
        let said = exits(64, attach(&place, &node, &volume, "a").arg("--preload"));
        assert!(
            said.contains("systemctl restart containerd") && said.contains("without --preload"),
            "{said}"
        );
        let attached = node.snapshotter.state().join("attached");
        assert!(!place.at("a").exists() && !place.drop_in().exists() && !attached.exists());
        succeed(&mut attach(&place, &node, &volume, "a"));
        node.containerd.restart();
        fetched(&served);
        succeed(attach(&place, &node, &volume, "a").arg("--preload"));
        assert_eq!(node.printed(&references[1], "cat /file-0"), "cached 0\n");
        assert_eq!(fetched(&served), (0, 0));
        // Preloaded images are removed with the volume, without consent.
        succeed(&mut place.detach(&node, &volume));
        assert!(node.images().is_empty(), "{:?}", node.images());
    });
}
