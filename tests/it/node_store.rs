//! Volumes as additional image stores of the real podman and buildah: directly, and through a view if the
//! layers are EROFS images.

mod configured;
mod hostile;

use std::fs;
use std::path::{Path, PathBuf};

use larder::node::podman::config::{self, Change, Consumers};
use larder::node::{limits, view};
use larder_model::class::Class;
use larder_model::job::LayerFormat;
use larder_testing::image::{Format, Image, Layer, busybox};
use larder_testing::layer::LayerBuilder;

use crate::harness::node::Node;
use crate::harness::served::{Served, cache};
use crate::harness::{Need, isolated, skopeo, succeed};

const SIZE: u64 = 128 << 20;
const NEEDS: [Need; 3] = [Need::Erofs, Need::Program("podman"), Need::Program("busybox")];
const PODMAN: Consumers = Consumers { podman: true, crio: false };

/// Lists all files, with their content.
const EVERYTHING: &str = "\
find / -xdev ! -path '/etc/host*' ! -path /etc/resolv.conf | sort | while read -r path; do \
stat -c '%n %f %u %g %t:%T' \"$path\"; readlink \"$path\"; done; \
find / -xdev -type f ! -path '/etc/host*' ! -path /etc/resolv.conf | sort | while read -r path; do md5sum \"$path\"; done; true";

/// Returns two images on one base. Layers of the first depend on lower layers in every way. The last layer of
/// both is the same, on different parents.
fn images() -> [Image; 2] {
    let base = LayerBuilder::new()
        .mode(0o700)
        .owner(3, 4)
        .dir("kept")
        .owner(0, 0)
        .mode(0o4755)
        .file("kept/tool", "a tool")
        .mode(0o644)
        .file("noted", "a note")
        .file("gone", "whited out")
        .symlink("link", "noted")
        .dir("opaque")
        .file("opaque/old", "hidden");
    let middle = LayerBuilder::new()
        .file("kept/extra", "in a directory that this layer implies")
        .hardlink("alias", "kept/tool")
        .hardlink("deep/alias", "noted")
        .whiteout("gone")
        .whiteout("link")
        .dir("opaque")
        .opaque("opaque")
        .file("opaque/new", "shown");
    let top = LayerBuilder::new().whiteout("deep").dir("srv").file("srv/top", "top");
    let shared = || LayerBuilder::new().file("kept/shared", "shared");
    let other = LayerBuilder::new().dir("kept").file("elsewhere/file", "x");
    let image = |layers: Vec<Layer>| Image::builder(Format::Oci).layers(layers).build();
    let base_layer = || busybox().unwrap();
    [
        image(vec![
            base_layer(),
            base.gzip().into(),
            middle.zstd().into(),
            top.gzip().into(),
            shared().gzip().into(),
        ]),
        image(vec![base_layer(), other.gzip().into(), shared().gzip().into()]),
    ]
}

/// Returns an image of busybox and `depth` layers. Every third layer removes a file of the one before.
fn deep(depth: usize) -> Image {
    let layers = (0..depth).map(|number| {
        let layer = LayerBuilder::new().file(format!("file-{number}"), number.to_string());
        match number % 3 {
            2 => layer.whiteout(&format!("file-{}", number - 1)).gzip().into(),
            _ => layer.gzip().into(),
        }
    });
    Image::builder(Format::Oci).layer(busybox().unwrap()).layers(layers).build()
}

fn change(node: &Node, stores: &[&Path]) -> Change {
    let stores: Vec<PathBuf> = stores.iter().map(|store| store.to_path_buf()).collect();
    config::change(&larder::node::podman::node::Node::read(&node.root()).unwrap(), PODMAN, &stores)
}

/// Creates the directory `at` and makes it a view of the volume.
fn attach(volume: &Path, at: &Path) {
    fs::create_dir_all(at).unwrap();
    view::make(volume, &cache(volume).content, at).unwrap();
}

fn mountinfo() -> String {
    fs::read_to_string("/proc/thread-self/mountinfo").unwrap()
}

/// Builds volumes of the same images in both formats, and stops the registry.
fn both_forms(images: impl IntoIterator<Item = Image>) -> (Served, [PathBuf; 2]) {
    let mut served = Served::new(images);
    let volumes = [LayerFormat::Overlay, LayerFormat::Erofs].map(|form| (served.beside(form.word()), form));
    for (volume, form) in &volumes {
        served = served.with(*form);
        succeed(&mut served.build(volume, SIZE));
    }
    served.registry.forget();
    (served, volumes.map(|(volume, _)| volume))
}

#[case]
fn containers_of_a_view_see_what_those_of_directories_see() {
    isolated(&[&NEEDS[..], &[Need::Program("skopeo")]].concat(), || {
        let (served, [directories, volume]) = both_forms(images());
        let content = cache(&volume).content;
        assert!(content.layers.iter().any(|layer| layer.image.as_ref().unwrap().fixup_size.is_some()));
        let place = tempfile::tempdir().unwrap();
        let at = place.path().join("v");
        let before = mountinfo();
        attach(&volume, &at);
        let after = mountinfo();
        // Attaching it again changes nothing.
        attach(&volume, &at);
        assert_eq!(mountinfo(), after);
        assert!(view::is_there(&at).unwrap());
        let mounted = || after.lines().filter(|line| line.contains(place.path().to_str().unwrap()));
        assert!(mounted().count() > content.layers.len());
        for line in mounted() {
            let options = line.split(' ').nth(5).unwrap();
            assert!(options.starts_with("ro,nosuid,nodev,noexec"), "{line}");
        }
        fs::write(at.join("new"), "x").unwrap_err();

        let references = served.references();
        let plain = place.path().join("plain");
        attach(&directories, &plain);
        // Together, in either order, because they use the same names for some trees.
        let stores: [&[&Path]; 5] =
            [&[&directories], &[&at], &[&directories, &plain], &[&directories, &at], &[&at, &directories]];
        let seen: Vec<Vec<String>> = stores
            .map(|stores| {
                let node = Node::with_podman();
                node.apply(&change(&node, stores));
                // The view of a volume of directories has no images.
                let listed = stores.iter().filter(|store| **store != plain).count();
                assert_eq!(node.images().len(), 2 * listed);
                references.iter().map(|reference| node.printed(reference, EVERYTHING)).collect()
            })
            .to_vec();
        for other in &seen[1..] {
            for (want, found) in seen[0].iter().zip(other) {
                assert_eq!(want, found);
            }
        }
        let found = &seen[1][0];
        for line in ["/kept 41c0 3 4 0:0", "/alias 81a4 0 0 0:0", "/kept/shared 81a4 0 0 0:0", "/opaque/new"]
        {
            assert!(found.contains(line), "{line}\n{found}");
        }
        for gone in ["/gone", "/link", "/opaque/old", "/deep"] {
            assert!(!found.contains(&format!("{gone} ")), "{gone}\n{found}");
        }
        // Copied out bit for bit, including the layers that consist of two EROFS images.
        let node = Node::with_podman();
        for (reference, image) in references.iter().zip(&served.images) {
            let copied = skopeo::copy_out(&at, reference, &node.root());
            fs::remove_dir_all(node.root().join("layout")).unwrap();
            assert_eq!(copied, image.layers.iter().map(|layer| layer.diff_id.clone()).collect::<Vec<_>>());
        }
        assert!(served.registry.seen().is_empty(), "{:?}", served.registry.seen());
        for at in [&at, &plain, &plain] {
            view::remove(at).unwrap();
        }
        assert_eq!(mountinfo(), before);
        fs::remove_dir_all(&volume).unwrap();
    });
}

#[case]
fn a_view_in_use_stays() {
    isolated(&NEEDS, || {
        let (served, [_, volume]) = both_forms(images());
        let place = tempfile::tempdir().unwrap();
        let at = place.path().join("v");
        attach(&volume, &at);
        let node = Node::with_podman();
        node.apply(&change(&node, &[&at]));
        let there = mountinfo();
        // A process has a file open, in any of the mounts.
        let base = cache(&volume).content.layers[0].diff_id.hex().to_owned();
        let open = fs::File::open(at.join("overlay").join(base).join("diff/bin/sh")).unwrap();
        for _ in 0..3 {
            assert_eq!(view::remove(&at).unwrap_err().class(), Class::Busy);
            assert_eq!(mountinfo(), there);
        }
        drop(open);
        let mut running = node.container(
            &["-i"],
            &served.references()[0],
            &["/bin/sh", "-c", "echo up; read -r line; cat /noted"],
        );
        let mut running =
            running.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut up = [0; 3];
        std::io::Read::read_exact(running.stdout.as_mut().unwrap(), &mut up).unwrap();
        let error = view::remove(&at).unwrap_err();
        assert_eq!(error.class(), Class::Busy);
        assert!(error.to_string().contains("uses it"), "{error}");
        assert_eq!(mountinfo(), there);
        drop(running.stdin.take());
        let output = running.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "a note");
        view::remove(&at).unwrap();
        assert!(!view::is_there(&at).unwrap());
    });
}

/// Returns the number of layers in the node's own store.
fn own_layers(node: &Node) -> usize {
    let layers = fs::read(node.root().join("var/lib/containers/storage/overlay-layers/layers.json")).unwrap();
    serde_json::from_slice::<Vec<serde_json::Value>>(&layers).unwrap().len()
}

#[case]
fn buildah_builds_on_images_of_a_store() {
    isolated(&[&NEEDS[..], &[Need::Program("buildah")]].concat(), || {
        let (served, [directories, volume]) = both_forms(images());
        let place = tempfile::tempdir().unwrap();
        let at = place.path().join("v");
        attach(&volume, &at);
        let build = |node: &Node, reference: &str, line: &str| {
            let file = place.path().join("Containerfile");
            fs::write(&file, format!("FROM {reference}\nRUN {line}\n")).unwrap();
            let mut buildah = node.command("buildah");
            buildah.args([
                "bud",
                "--pull-never",
                "--isolation=chroot",
                "--tag",
                "localhost/built:1",
                "--file",
            ]);
            succeed(buildah.arg(&file).arg(place.path()));
        };
        let [first, second] = &served.references()[..] else { panic!() };
        let node = Node::with_podman();
        node.apply(&change(&node, &[&at]));
        build(&node, first, "cat /kept/extra > /srv/built && rm /srv/top");
        let printed = node.printed("localhost/built:1", "cat /srv/built; ls /srv");
        assert_eq!(printed, "in a directory that this layer impliesbuilt\n");
        // The lower layers are not copied.
        assert_eq!(own_layers(&node), 1);
        drop(node);
        // Layers of directories have other names. Without a view all layers are copied except the base, whose
        // name is its diff ID.
        let node = Node::with_podman();
        node.apply(&change(&node, &[&directories]));
        build(&node, second, "cat /kept/shared > /built");
        assert_eq!(node.printed("localhost/built:1", "cat /built"), "shared");
        assert_eq!(own_layers(&node), 3);
        drop(node);
        view::remove(&at).unwrap();
        attach(&directories, &at);
        let node = Node::with_podman();
        node.apply(&change(&node, &[&directories, &at]));
        for (reference, line, printed) in [
            (first, "cat /kept/extra > /built && rm /srv/top", "in a directory that this layer implies"),
            (second, "cat /kept/shared > /built", "shared"),
        ] {
            build(&node, reference, line);
            assert_eq!(node.printed("localhost/built:1", "cat /built; ls /srv 2>/dev/null || true"), printed);
        }
        assert_eq!(own_layers(&node), 2);
        drop(node);
        view::remove(&at).unwrap();
        assert!(served.registry.seen().is_empty(), "{:?}", served.registry.seen());
    });
}

/// The maximum supported number of layers, at the longest path that is documented to work.
#[case]
fn images_of_many_layers_start_at_the_longest_mount_point() {
    isolated(&NEEDS, || {
        let (served, volumes) = both_forms([deep(119)]);
        let reference = &served.references()[0];
        for volume in &volumes {
            let content = cache(volume).content;
            assert_eq!(limits::deepest(&content), 120);
            let most = limits::longest_mount_point(&content).unwrap();
            let at = PathBuf::from(format!("/{}", "n".repeat(most - 1)));
            limits::check(&content, &at).unwrap();
            fs::create_dir(&at).unwrap();
            match content.layer_format {
                LayerFormat::Overlay => {
                    let flags = nix::mount::MsFlags::MS_BIND;
                    nix::mount::mount(Some(volume), &at, None::<&str>, flags, None::<&str>).unwrap();
                }
                LayerFormat::Erofs => view::make(volume, &content, &at).unwrap(),
            }
            let node = Node::with_podman();
            node.apply(&change(&node, &[&at]));
            let printed = node.printed(reference, "cat /file-0 /file-60 /file-118; ls / | grep -c file-");
            assert_eq!(printed, "06011880\n");
            drop(node);
            match content.layer_format {
                LayerFormat::Overlay => nix::mount::umount(&at).unwrap(),
                LayerFormat::Erofs => view::remove(&at).unwrap(),
            }
            fs::remove_dir(&at).unwrap();
        }
        assert!(served.registry.seen().is_empty());
    });
}
