//! `larder attach` and `larder detach` with containerd: its configuration file, its images, and volumes in
//! use.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use larder_model::job::LayerFormat;
use tempfile::TempDir;

use super::containers::{NEEDS, Node, SIZE, image};
use crate::harness::served::Served;
use crate::harness::{Need, exits, isolated, larder, succeed};

/// A node's root for the files of `attach`, and mount points for volumes.
pub(super) struct NodePaths {
    pub(super) dir: TempDir,
}

impl NodePaths {
    pub(super) fn new() -> Self {
        NodePaths { dir: tempfile::tempdir().unwrap() }
    }

    pub(super) fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn drop_in(&self) -> PathBuf {
        self.dir.path().join("etc/containerd/conf.d/99-larder.toml")
    }

    pub(super) fn larder(&self, node: &Node, command: &str, what: &Path) -> Command {
        let mut larder = larder();
        larder.env("LARDER_STATE__DIR", node.snapshotter.state());
        larder.arg(command).arg(what).arg("--node-root").arg(self.dir.path());
        larder
    }

    /// Returns an attach that also registers the images in containerd.
    pub(super) fn attach(&self, node: &Node, volume: &Path, name: &str) -> Command {
        let mut attach = self.larder(node, "attach", volume);
        attach.args(["--runtime", "containerd", "--preload", "--no-unit"]);
        attach.arg("--containerd").arg(node.containerd.socket()).arg("--at").arg(self.at(name));
        attach
    }

    pub(super) fn detach(&self, node: &Node, what: &Path) -> Command {
        self.larder(node, "detach", what)
    }
}

#[case]
fn containers_start_from_what_is_attached() {
    isolated(&[&NEEDS[..], &[Need::Erofs]].concat(), || {
        for form in [LayerFormat::Overlay, LayerFormat::Erofs] {
            let served = Served::new([image("shared", 2), image("alone", 2)]).with(form);
            let (node, place) = (Node::start_with_sandbox("none"), NodePaths::new());
            let references = served.references();
            let (both, one) = (served.beside("both"), served.beside("one"));
            succeed(&mut served.build(&both, SIZE));
            let build = served.build(&one, SIZE);
            let mut command = Command::new(build.get_program());
            succeed(command.args(build.get_args().filter(|word| **word != *references[1].as_str())));
            served.registry.forget();

            let said = succeed(place.attach(&node, &both, "a").arg("--dry-run"));
            assert!(
                said.contains("[proxy_plugins.larder]") && said.contains("images    registered"),
                "{said}"
            );
            assert!(!place.drop_in().exists());
            succeed(&mut place.attach(&node, &both, "a"));
            succeed(&mut place.attach(&node, &both, "a"));
            succeed(&mut place.attach(&node, &one, "b"));
            assert_eq!(fs::metadata(place.drop_in()).unwrap().permissions().mode() & 0o777, 0o600);
            for (reference, name) in references.iter().zip(["shared", "alone"]) {
                let printed = node.printed(reference, "cat /file-0 /file-1");
                assert_eq!(printed, format!("{name} 0\n{name} 1\n"));
            }
            assert_eq!(served.registry.served_total(), 0, "nothing must be fetched, not even a manifest");

            // A container uses the image that only this volume has.
            let script = "trap 'exit 0' TERM; while true; do sleep 1 & wait; done";
            succeed(&mut node.run(&["--detach"], &references[1], "long", script));
            let said = exits(75, &mut place.detach(&node, &both));
            assert!(said.contains(&format!("container {}", node.name("long"))), "{said}");
            assert!(place.at("a").join("cache.json").is_file());
            assert_eq!(node.printed(&references[1], "cat /file-1"), "alone 1\n", "nothing must change");
            node.end("long");
            succeed(&mut place.detach(&node, &both));
            assert!(!place.at("a").exists() && place.drop_in().exists());

            // The image that both volumes have now comes from the other one.
            succeed(&mut node.run(&["--detach"], &references[0], "long", script));
            let listed = succeed(&mut node.containerd.k8s(&["images", "ls", "--quiet"]));
            assert!(listed.contains("app-0") && !listed.contains("app-1"), "{listed}");
            exits(75, &mut place.detach(&node, &place.at("b")));
            succeed(&mut place.attach(&node, &both, "a"));
            if form == LayerFormat::Erofs {
                // The container uses the image file of the volume that was there when it started.
                exits(75, &mut place.detach(&node, &place.at("b")));
                node.end("long");
                succeed(&mut place.detach(&node, &place.at("b")));
            } else {
                succeed(&mut place.detach(&node, &place.at("b")));
                exits(75, &mut place.detach(&node, &both));
                node.end("long");
            }
            succeed(&mut place.detach(&node, &both));
            assert!(!place.drop_in().exists());
            assert_eq!(succeed(&mut node.containerd.k8s(&["images", "ls", "--quiet"])), "");
        }
    });
}

#[case]
fn a_containerd_that_cannot_be_asked() {
    isolated(&NEEDS, || {
        let served = Served::new([image("one", 1)]);
        let (mut node, place, volume) = (Node::start_with_sandbox("none"), NodePaths::new(), served.volume());
        succeed(&mut served.build(&volume, SIZE));
        succeed(&mut place.attach(&node, &volume, "a"));
        node.containerd.kill();
        let said = exits(69, &mut place.detach(&node, &volume));
        assert!(said.contains("--force"), "{said}");
        assert!(place.at("a").join("cache.json").is_file());
        // At boot containerd does not run yet, and its file stays as it is.
        let drop_in = fs::read_to_string(place.drop_in()).unwrap();
        nix::mount::umount2(&place.at("a"), nix::mount::MntFlags::MNT_DETACH).unwrap();
        let mut boot = place.larder(&node, "attach", &volume);
        boot.args(["--runtime", "containerd", "--no-unit"]).arg("--containerd").arg(node.containerd.socket());
        succeed(boot.arg("--at").arg(place.at("a")));
        assert_eq!(fs::read_to_string(place.drop_in()).unwrap(), drop_in);
        node.containerd.restart();
        assert_eq!(node.printed(&served.references()[0], "cat /file-0"), "one 0\n");
        node.containerd.kill();
        succeed(place.detach(&node, &volume).arg("--force"));
        assert!(!place.at("a").exists());
    });
}

#[case]
fn an_operator_s_configuration_is_kept() {
    isolated(&NEEDS, || {
        let served = Served::new([image("one", 1)]);
        let (node, place, volume) = (Node::start_with_sandbox("none"), NodePaths::new(), served.volume());
        succeed(&mut served.build(&volume, SIZE));
        let main = place.dir.path().join("etc/containerd/config.toml");
        fs::create_dir_all(main.parent().unwrap()).unwrap();
        let theirs = "version = 2\n[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'mine'\n";
        fs::write(&main, theirs).unwrap();
        let output = place.attach(&node, &volume, "a").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("imports = ["), "{said}");
        let text = fs::read_to_string(place.drop_in()).unwrap();
        assert!(text.contains("sandbox_image = \"mine\""), "{text}");
        assert_eq!(fs::read_to_string(&main).unwrap(), theirs);
        succeed(&mut place.detach(&node, &volume));
        assert!(!place.drop_in().exists());
        assert_eq!(fs::read_to_string(&main).unwrap(), theirs);
    });
}
