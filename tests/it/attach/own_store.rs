//! Images and containers in the node's own store that depend on an attached volume.

use std::fs;
use std::path::Path;
use std::process::Command;

use larder_model::job::LayerFormat;
use larder_testing::image::{Format, Image, busybox};
use larder_testing::layer::LayerBuilder;

use crate::harness::node::Node;
use crate::harness::registry::Registry;
use crate::harness::served::Served;
use crate::harness::{Need, exits, isolated, larder, succeed};

const NEEDS: [Need; 6] = [
    Need::Program("docker-registry"),
    Need::Program("podman"),
    Need::Program("buildah"),
    Need::Program("crun"),
    Need::Program("busybox"),
    Need::Erofs,
];
const SIZE: u64 = 256 << 20;

fn image(last: &str) -> Image {
    let lower = LayerBuilder::new().file("etc/name", "one ").gzip();
    let upper = LayerBuilder::new().file("etc/last", last).gzip();
    Image::builder(Format::Oci).layer(busybox().unwrap()).layers([lower.into(), upper.into()]).build()
}

/// Returns `larder detach` on the node itself, whose root is its file system.
fn detach_here(node: &Node, source: &Path) -> Command {
    let mut larder = larder();
    larder.env("LARDER_STATE__DIR", node.state()).arg("detach").arg(source);
    larder
}

#[case]
fn they_are_named_and_kept_until_the_operator_agrees() {
    isolated(&NEEDS, || {
        for form in [LayerFormat::Overlay, LayerFormat::Erofs] {
            let served = Served::new([image("old")]).with(form);
            // Images outside the cache: a newer tag, and one that shares no layer.
            let registry = Registry::open();
            let newer = registry.push(&image("new"), "app", "2");
            let (volume, again, node) = (served.volume(), served.beside("again"), Node::with_podman());
            succeed(&mut served.build(&volume, SIZE));
            succeed(&mut served.build(&again, SIZE));
            let cached = served.references()[0].clone();
            let at = node.place("icv");
            let attach = |volume: &Path, at: &Path| {
                succeed(node.attach(volume, at).args(["--runtime", "podman", "--no-unit"]));
            };
            attach(&volume, &at);
            node.enter();
            let detach = || detach_here(&node, &at);

            let podman = |args: &[&str]| succeed(node.command("podman").args(args));
            podman(&["pull", "--quiet", "--tls-verify=false", &newer]);
            podman(&["create", "--name", "stopped", "--network=none", &cached]);
            let file = node.path("Containerfile");
            fs::write(&file, format!("FROM {cached}\nRUN cat /etc/last > /built\n")).unwrap();
            let mut buildah = node.command("buildah");
            buildah.args([
                "bud",
                "--pull-never",
                "--isolation=chroot",
                "--tag",
                "localhost/built:1",
                "--file",
            ]);
            succeed(buildah.arg(&file).arg(node.root()));
            assert_eq!(node.printed("localhost/built:1", "cat /built"), "old");
            let own =
                Image::builder(Format::Oci).layer(LayerBuilder::new().file("own", "x").gzip().into()).build();
            let own = registry.push(&own, "own", "1");
            podman(&["pull", "--quiet", "--tls-verify=false", &own]);

            let known = node.images();
            let said = exits(75, &mut detach());
            for name in ["localhost/built:1", newer.as_str(), "stopped", "--remove-images"] {
                assert!(said.contains(name), "{name} {form:?}: {said}");
            }
            assert!(!said.contains(&own) && said.trim_end().lines().count() <= 3, "{said}");
            assert_eq!(node.images(), known, "nothing must change");
            assert_eq!(node.printed("localhost/built:1", "cat /built"), "old");

            // With another root, the node's programs are not run. The output lists their commands.
            let said = exits(75, &mut node.detach(&at));
            assert!(said.contains("crictl rm --force ") && said.contains("crictl rmi "), "{said}");
            fs::copy("/usr/bin/podman", node.path("usr/bin/podman")).unwrap();
            let said = exits(75, &mut node.detach(&at));
            assert!(said.contains("podman rm --force ") && said.contains("podman rmi --force "), "{said}");

            // An upgrade: images whose layers another volume also has are kept.
            let other = node.place("icv2");
            attach(&again, &other);
            succeed(&mut detach());
            assert_eq!(node.printed("localhost/built:1", "cat /built"), "old", "{form:?}");
            assert_eq!(node.printed(&newer, "cat /etc/last"), "new");

            let at = other;
            exits(75, &mut detach_here(&node, &at));
            succeed(detach_here(&node, &at).arg("--remove-images"));
            assert_eq!(node.images(), std::slice::from_ref(&own), "an independent image must stay");
            assert_eq!(podman(&["ps", "--all", "--quiet"]), "");
            assert!(!at.exists());
        }
    });
}
