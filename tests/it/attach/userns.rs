//! Containers in private user namespaces, on an attached volume.

use larder_model::job::LayerFormat;
use larder_testing::image::{Format, Image, busybox};
use larder_testing::layer::LayerBuilder;

use crate::harness::node::Node;
use crate::harness::served::Served;
use crate::harness::{Need, exits, isolated, succeed};

const NEEDS: [Need; 5] = [
    Need::Program("podman"),
    Need::Program("crun"),
    Need::Program("busybox"),
    Need::Program("mkfs.ext4"),
    Need::Erofs,
];
const SIZE: u64 = 256 << 20;

fn image() -> Image {
    let lower = LayerBuilder::new().file("etc/name", "one ").file("gone", "x").gzip();
    let upper = LayerBuilder::new().owner(7, 8).mode(0o600).file("etc/more", "more").whiteout("gone").gzip();
    Image::builder(Format::Oci).layer(busybox().unwrap()).layers([lower.into(), upper.into()]).build()
}

/// Owners are those of the image, with an ID that is not root on the host.
const SHOW: &str = "cat /etc/name /etc/more; stat -c ' %u:%g %a' /etc/more; test -e /gone || awk '$1 == 0 {print ($2 > 0)}' /proc/self/uid_map";

#[case]
fn layers_of_directories_are_mapped() {
    isolated(&NEEDS, || {
        let (served, node) = (Served::new([image()]), Node::with_podman().with_ids());
        let reference = &served.references()[0];
        for kind in ["directory", "disk"] {
            let volume = served.beside(kind);
            succeed(served.build(&volume, SIZE).args(["--volume-kind", kind]));
            served.registry.forget();
            let at = node.place(kind);
            let said = succeed(node.attach(&volume, &at).args(["--runtime", "podman", "--dry-run"]));
            assert!(!said.contains("--userns"), "{said}");
            succeed(node.attach(&volume, &at).args(["--runtime", "podman"]));
            assert_eq!(node.images().len(), 1, "an image must be listed once");
            let mut podman = node.container(&["--userns=auto"], reference, &["/bin/sh", "-c", SHOW]);
            assert_eq!(succeed(&mut podman), "one more 7:8 600\n1\n", "{kind}");
            assert!(served.registry.seen().is_empty());
            succeed(&mut node.detach(&at));
        }
    });
}

#[case]
fn attaching_erofs_images_prints_the_limitation() {
    isolated(&NEEDS, || {
        let (served, node) =
            (Served::new([image()]).with(LayerFormat::Erofs), Node::with_podman().with_ids());
        let (volume, at) = (served.volume(), node.place("icv"));
        succeed(&mut served.build(&volume, SIZE));
        for runtime in ["podman", "crio"] {
            let said = exits(0, node.attach(&volume, &at).args(["--runtime", runtime]));
            assert!(
                said.contains("note: podman and CRI-O cannot start containers in a user namespace"),
                "{said}"
            );
            assert!(said.contains("--layer-format overlay"), "{said}");
        }
        succeed(node.attach(&volume, &at).args(["--runtime", "podman"]));
        let reference = &served.references()[0];
        assert_eq!(node.printed(reference, "cat /etc/name"), "one ");
        // If this starts one day, the documented limitation is obsolete.
        let said = exits(127, &mut node.container(&["--userns=auto"], reference, &["/bin/cat", "/etc/name"]));
        assert!(said.contains("not found") || said.contains("No such file"), "{said}");
        succeed(&mut node.detach(&at));
    });
}
