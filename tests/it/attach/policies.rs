//! Selection of the volume to attach, and conditions for it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use larder_model::job::LayerFormat;
use larder_testing::image::{Format, Image};
use larder_testing::layer::LayerBuilder;
use serde_json::Value;

use crate::harness::daemon::{Daemon, ROOMY, Tenant};
use crate::harness::node::Node;
use crate::harness::registry::Registry;
use crate::harness::served::Served;
use crate::harness::{Need, exits, isolated, larder, succeed};

const SIZE: u64 = 64 << 20;
/// The daemon has a tenant. Callers on the socket are the operator.
const A: Tenant = Tenant("team-a");

fn image(text: &str) -> Image {
    Image::builder(Format::Oci).layer(LayerBuilder::new().file("etc/motd", text).gzip().into()).build()
}

#[case]
fn a_cache_of_the_daemon_stays_while_it_is_attached() {
    isolated(&[], || {
        let (served, daemon, node) =
            (Served::new([image("a"), image("b")]), Daemon::start(&[A], ROOMY), Node::new());
        let socket = format!("unix://{}", daemon.config().with_file_name("larder.sock").display());
        let cache = |arguments: &[&str]| {
            let mut command = larder();
            command.arg("cache").args(["--host", &socket]).args(arguments);
            command
        };
        let references = served.references();
        daemon.explain(|| succeed(cache(&["create", "web", "--wait"]).arg(&references[0])));
        let at = node.place("icv");
        let with_daemon = |command: &str, source: &str| {
            let mut larder = node.larder(command, Path::new(source));
            larder.env("LARDER_STATE__DIR", daemon.state()).args(["--host", &socket]);
            larder
        };
        exits(64, with_daemon("attach", "none").arg("--at").arg(&at));
        succeed(with_daemon("attach", "web").arg("--at").arg(&at).arg("--no-unit"));
        assert!(at.join("cache.json").is_file());

        succeed(&mut cache(&["rm", "web"]));
        std::thread::sleep(Duration::from_secs(1));
        let listed: Value = serde_json::from_str(&succeed(&mut cache(&["--json", "ls"]))).unwrap();
        assert_eq!(listed["image_caches"][0]["status"], "Deleting", "{listed}");
        assert!(at.join("cache.json").is_file());
        succeed(&mut with_daemon("detach", at.to_str().unwrap()));
    });
}

#[case]
fn the_best_of_what_is_here() {
    isolated(&[], || {
        let (served, node) = (Served::new([image("a"), image("b")]), Node::new());
        let references = served.references();
        let (volume, at) = (served.volume(), node.place("icv"));
        succeed(&mut served.build(&volume, SIZE));
        let attach = |images: &[&str], more: &[&str]| {
            let mut command = larder();
            command.env("LARDER_STATE__DIR", node.state()).args(["attach", "--no-unit", "--node-root"]);
            command.arg(node.root()).arg("--at").arg(&at).arg("--volume").arg(&volume).args(more);
            command.args(images.iter().flat_map(|image| ["--match", image]));
            command
        };
        exits(64, &mut attach(&["other.example.com/x:1"], &[]));
        let said = exits(64, &mut attach(&[&references[0], "other.example.com/x:1"], &["--require"]));
        assert!(said.contains("not cached: other.example.com/x:1"), "{said}");
        exits(64, attach(&[&references[0]], &[]).arg(&volume));
        let said =
            exits(64, &mut attach(&[&references[0]], &["--runtime", "containerd", "--snapshotter", "erofs"]));
        assert!(said.contains("are directories"), "{said}");
        assert!(!at.exists());
        succeed(&mut attach(&[&references[0], "other.example.com/x:1"], &[]));
        succeed(&mut attach(&[&references[0], &references[1]], &["--require"]));
        succeed(&mut node.detach(&volume));
    });
}

#[case]
fn signed_and_proven() {
    isolated(&[Need::Erofs], || {
        let (node, mut served) = (Node::new(), Served::new([image("a")]));
        let key = |name: &str| {
            let file = served.beside(name);
            let line = succeed(larder().args(["key", "generate"]).arg(&file));
            (file, line.trim().to_owned())
        };
        let ((ours, line), (_, other)) = (key("ours"), key("other"));
        for (form, verity) in
            [(LayerFormat::Overlay, false), (LayerFormat::Erofs, false), (LayerFormat::Erofs, true)]
        {
            served = served.with(form);
            let (volume, at) = (served.beside(&format!("{}-{verity}", form.word())), node.place("icv"));
            let mut build = served.build(&volume, SIZE);
            build.arg("--sign-key").arg(&ours).args(verity.then_some("--verity"));
            succeed(&mut build);
            let said = exits(77, node.attach(&volume, &at).args(["--trust", &other]));
            assert!(said.contains("sign"), "{said}");
            succeed(node.attach(&volume, &at).args(["--trust", &line]));
            // The condition also applies at each boot.
            let unit = fs::read_to_string(super::mounts::unit(&node)).unwrap();
            assert!(unit.contains(&line), "{unit}");
            exits(77, node.attach(&volume, &at).args(["--trust", &other]));
            succeed(&mut node.detach(&at));

            // Flip a bit of a layer.
            let layers = volume.join(if form == LayerFormat::Overlay { "overlay" } else { "erofs/sha256" });
            let file = find(&layers, |path| match form {
                LayerFormat::Overlay => path.ends_with("diff/etc/motd"),
                LayerFormat::Erofs => path.extension().is_some_and(|extension| extension == "erofs"),
            });
            let mut bytes = fs::read(&file).unwrap();
            let last = bytes.iter().rposition(|byte| *byte == b'a').unwrap();
            bytes[last] ^= 1;
            fs::write(&file, bytes).unwrap();
            exits(65, node.attach(&volume, &at).args(["--trust", &line]));
            exits(65, node.attach(&volume, &at).arg("--verify-layers"));
            assert!(!at.exists());
            succeed(node.attach(&volume, &at).args(["--trust", &line, "--trust-metadata-only", "--no-unit"]));
            succeed(&mut node.detach(&at));
        }
    });
}

/// Returns the first file below `dir` that matches.
fn find(dir: &Path, wanted: impl Fn(&Path) -> bool + Copy) -> std::path::PathBuf {
    fn below(dir: &Path, wanted: impl Fn(&Path) -> bool + Copy) -> Option<std::path::PathBuf> {
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).find_map(|path| {
            if path.is_dir() && !path.is_symlink() {
                below(&path, wanted)
            } else {
                wanted(&path).then_some(path)
            }
        })
    }
    below(dir, wanted).unwrap()
}

#[case]
fn a_private_image_needs_read_access() {
    isolated(&[Need::Program("docker-registry"), Need::Program("htpasswd")], || {
        let (node, registry) = (Node::new(), Registry::with_password());
        let reference = registry.push(&image("private"), "team/private", "1");
        let (volume, at) = (node.place("volume"), node.place("icv"));
        let mut build = larder();
        build.arg("build").arg("--volume").arg(&volume).args(["--size", "64MiB", "--sizing", "warn"]);
        succeed(build.arg("--docker-config").arg(registry.docker_config()).arg(&reference));
        let said = exits(77, node.attach(&volume, &at).args(["--access", "verify"]).env("HOME", node.root()));
        assert!(said.contains(&reference), "{said}");
        assert!(!at.exists() && node.configured().is_empty());
        let mut allowed = node.attach(&volume, &at);
        allowed.args(["--access", "verify"]).arg("--docker-config").arg(registry.docker_config());
        succeed(&mut allowed);
        // A registry that is gone does not block a restart.
        drop(registry);
        super::mounts::unmount_as_reboot(&at);
        succeed(&mut super::mounts::exec_start(&node));
        succeed(&mut node.detach(&at));
    });
}
