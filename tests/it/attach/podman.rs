//! podman on a node with attached volumes: nothing is fetched, and missing volumes do not break podman.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use larder::volume::store;
use larder_model::digest::Digest;
use larder_model::job::LayerFormat;
use larder_model::seal::CacheManifest;
use larder_sys::mounts::Mounts;
use larder_testing::image::{Format, Image, busybox};
use larder_testing::layer::LayerBuilder;

use super::mounts::exec_start;
use crate::harness::node::Node;
use crate::harness::served::{Served, cache};
use crate::harness::{Need, exits, isolated, larder, succeed};

const NEEDS: [Need; 4] =
    [Need::Program("podman"), Need::Program("crun"), Need::Program("busybox"), Need::Erofs];
const SIZE: u64 = 256 << 20;

/// Returns an image with a whiteout, and with a directory that a layer implies.
fn image(name: &str) -> Image {
    let lower = LayerBuilder::new().file("etc/name", name).file("gone", "x").gzip();
    let upper = LayerBuilder::new().file(".wh.gone", "").file("etc/more", "more").gzip();
    Image::builder(Format::Oci).layer(busybox().unwrap()).layers([lower.into(), upper.into()]).build()
}

const SHOW: &str = "cat /etc/name /etc/more; test -e /gone || echo; echo x > /etc/name";

#[case]
fn images_of_all_attached_volumes_are_there() {
    isolated(&NEEDS, || {
        let (mut served, node) = (Served::new([image("one "), image("two ")]), Node::with_podman());
        let references = served.references();
        let mut places = Vec::new();
        for (form, name) in [(LayerFormat::Overlay, "a"), (LayerFormat::Erofs, "b")] {
            served = served.with(form);
            let volume = served.beside(name);
            succeed(&mut served.build(&volume, SIZE));
            served.registry.forget();
            let at = node.place(name);
            succeed(node.attach(&volume, &at).args(["--runtime", "podman"]));
            for (reference, text) in references.iter().zip(["one more\n", "two more\n"]) {
                assert_eq!(node.printed(reference, SHOW), text, "{form:?}");
            }
            assert_eq!(served.registry.served_total(), 0);
            places.push(at);
        }
        let (first, second) = (&places[0], &places[1]);
        let conf = node.path("/etc/containers/storage.conf");
        let text = fs::read_to_string(&conf).unwrap();
        assert!(text.contains(&format!("{0}\", \"{0}.s\"", first.display())), "{text}");

        // If an open file makes a detach fail, the configuration stays as it is.
        let file = fs::File::open(first.join("cache.json")).unwrap();
        exits(75, &mut node.detach(first));
        drop(file);
        assert_eq!(fs::read_to_string(&conf).unwrap(), text);
        succeed(node.attach(&served.beside("a"), first).args(["--runtime", "podman"]));

        // A volume that a container uses cannot be removed.
        let mut podman = node.container(&["--interactive"], &references[0], &["/bin/cat"]);
        let mut container = podman.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !stands_on(first) && !stands_on(second) {
            assert!(
                Instant::now() < deadline && container.try_wait().unwrap().is_none(),
                "podman did not start"
            );
            sleep(Duration::from_millis(20));
        }
        let used = if stands_on(first) { first } else { second };
        let said = exits(75, &mut node.detach(used));
        assert!(said.contains("uses it"), "{said}");
        // It exits at the end of its input.
        drop(container.stdin.take());
        assert!(container.wait().unwrap().success());
        succeed(&mut node.detach(first));
        assert!(
            !first.exists()
                && !fs::read_to_string(&conf).unwrap().contains(&format!("{}\"", first.display()))
        );
        assert_eq!(node.printed(&references[1], SHOW), "two more\n");
        succeed(&mut node.detach(second));
        assert!(!conf.exists() && !second.exists());
        assert!(node.images().is_empty());
    });
}

/// Reports whether a container uses the attached volume. Also checks podman's mount namespace.
fn stands_on(at: &Path) -> bool {
    let mounts = Mounts::read().unwrap();
    [at, &at.with_extension("s")].iter().any(|store| mounts.overlay_on(store).is_some())
}

#[case]
fn a_node_that_starts_again() {
    isolated(&NEEDS, || {
        let (served, node) = (Served::new([image("one ")]).with(LayerFormat::Erofs), Node::with_podman());
        let (volume, at) = (served.volume(), node.place("icv"));
        succeed(served.build(&volume, SIZE).args(["--volume-kind", "disk"]));
        succeed(node.attach(&volume, &at).args(["--runtime", "podman"]));
        let reference = &served.references()[0];
        assert_eq!(node.printed(reference, SHOW), "one more\n");
        // Unmount everything that a reboot unmounts.
        nix::mount::umount2(&at.with_extension("s"), nix::mount::MntFlags::MNT_DETACH).unwrap();
        nix::mount::umount(&at).unwrap();
        assert!(node.images().is_empty(), "an unmounted store must not break podman");
        succeed(&mut exec_start(&node));
        assert_eq!(node.printed(reference, SHOW), "one more\n");
        succeed(&mut node.detach(&volume));
    });
}

/// Versions of Larder before this rule cached such images.
#[case]
fn a_volume_that_podman_cannot_read_is_not_attached() {
    isolated(&NEEDS, || {
        let (served, node) = (Served::new([image("one ")]), Node::with_podman());
        let (volume, at) = (served.volume(), node.place("icv"));
        succeed(&mut served.build(&volume, SIZE));
        let mut content = cache(&volume).content;
        let known = &mut content.images[0];
        let text = |digest: &Digest| fs::read_to_string(volume.join(store::blob_path(digest))).unwrap();
        let put = |text: String| {
            let digest = Digest::sha256(text.as_bytes());
            fs::write(volume.join(store::blob_path(&digest)), text).unwrap();
            digest
        };
        let config = text(&known.config);
        let created = "2026-01-02T03:04:05Z";
        assert!(config.contains(created));
        let odd = put(config.replace(created, "2026-01-02 03:04:05Z"));
        let manifest = text(&known.manifest).replace(&known.config.to_string(), &odd.to_string());
        (known.config, known.manifest) = (odd, put(manifest));
        let sealed = CacheManifest::new(content).unwrap();
        fs::write(volume.join("cache.json"), serde_json::to_vec_pretty(&sealed).unwrap()).unwrap();
        for runtime in ["podman", "crio"] {
            let said = exits(65, node.attach(&volume, &at).args(["--runtime", runtime, "--no-unit"]));
            assert!(said.contains("its field created"), "{said}");
            assert!(!at.exists() && !node.path("/etc/containers/storage.conf").exists());
        }
        exits(65, larder().arg("verify").arg(&volume));
    });
}

/// CRI-O reads its configuration when it starts. No CRI-O runs here: a file with its name makes this a node
/// that might have one. podman with the old configuration takes its place, because it reads stores with the
/// same library.
#[case]
fn a_store_that_crio_still_knows_is_empty() {
    isolated(&NEEDS, || {
        let (served, node) = (Served::new([image("one ")]), Node::with_podman());
        let (volume, at) = (served.volume(), node.place("icv"));
        succeed(&mut served.build(&volume, SIZE));
        fs::write(node.path("usr/bin/crio"), "a name, and not CRI-O").unwrap();
        succeed(node.attach(&volume, &at).args(["--runtime", "crio", "--no-unit"]));
        let conf = node.path("/etc/containers/storage.conf");
        let old = fs::read(&conf).unwrap();
        assert_eq!(node.images(), served.references());
        let said = exits(0, &mut node.detach(&at));
        assert!(said.contains("systemctl restart crio"), "{said}");
        assert!(!conf.exists() && !at.join("cache.json").exists());
        fs::write(&conf, old).unwrap();
        assert!(node.images().is_empty());
        // The remaining files do not break anything.
        succeed(node.attach(&volume, &at).args(["--runtime", "crio", "--no-unit"]));
        assert_eq!(node.images(), served.references());
        fs::remove_file(node.path("usr/bin/crio")).unwrap();
        succeed(&mut node.detach(&at));
        assert!(!at.exists());
    });
}
