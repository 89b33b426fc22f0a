//! `larder match`: finds the best cache of this node and of a daemon.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use chrono::Utc;
use larder::caches::attachments::{Attachment, Attachments};
use larder::caches::layout::Layout;
use larder_model::image_cache::CacheId;
use larder_testing::image::{Format, Image, Layer, push_index};
use larder_testing::layer::LayerBuilder;
use larder_testing::registry::Registry;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::daemon::{Daemon, ROOMY, Tenant};
use crate::harness::served::{cache, random};
use crate::harness::{Need, exits, isolated, larder, succeed};

const A: Tenant = Tenant("team-a");
const LIMIT: Duration = Duration::from_secs(60);

fn image(seed: u64, bytes: usize) -> Image {
    let layer = Layer::from(LayerBuilder::new().file("data", random(seed, bytes)).gzip());
    Image::builder(Format::Oci).layer(layer).build()
}

/// A node: a state directory, and a registry of images of different sizes.
struct Node {
    registry: Registry,
    dir: TempDir,
}

impl Node {
    fn new() -> Self {
        let mut registry = Registry::spawn();
        for (name, bytes) in [("small", 1000), ("large", 50_000), ("other", 2000)] {
            image(bytes as u64, bytes).push(&mut registry, name, "1").unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let text = format!("state.dir = '{}'\n", dir.path().join("state").display());
        fs::write(dir.path().join("larder.toml"), text).unwrap();
        Node { registry, dir }
    }

    fn state(&self) -> Layout {
        Layout::new(self.dir.path().join("state"))
    }

    fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.registry.host())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Builds a volume of images, sealed `age` seconds after the epoch.
    fn build(&self, volume: &Path, images: &[&str], age: u64) {
        let mut larder = larder();
        larder.arg("build").arg("--volume").arg(volume).args(["--size", "64MiB", "--sizing", "warn"]);
        succeed(larder.args(images.iter().map(|image| self.reference(image))));
        sealed(volume, age);
    }

    /// Returns the path of the volume of a daemon's cache.
    fn of_daemon(&self, id: CacheId, generation: u32) -> PathBuf {
        let tenant = "team-a".parse().unwrap();
        fs::create_dir_all(self.state().volumes(&tenant)).unwrap();
        self.state().volume(&tenant, &id, generation)
    }

    fn command(&self, images: &[&str]) -> Command {
        let mut command = bare();
        command.arg("--config").arg(self.path("larder.toml")).arg("match");
        command.args(images.iter().map(|image| self.reference(image)));
        command
    }

    fn found(&self, images: &[&str], more: &[&str]) -> Value {
        let text = succeed(self.command(images).arg("--json").args(more));
        serde_json::from_str::<Value>(&text).unwrap()["match"].clone()
    }
}

fn sealed(volume: &Path, age: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(age);
    File::options().write(true).open(volume.join("cache.json")).unwrap().set_modified(time).unwrap();
}

fn bare() -> Command {
    let mut command = larder();
    for variable in ["LARDER_HOST", "LARDER_TOKEN", "LARDER_ACCESS_KEY", "LARDER_SECRET_KEY", "LARDER_CA"] {
        command.env_remove(variable);
    }
    command
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[case]
fn the_best_volume_of_the_node() {
    isolated(&[], || {
        let node = Node::new();
        let said = exits(64, &mut node.command(&["small:1"]));
        assert!(said.contains("no cache contains any"), "{said}");

        let (ours, named, mounted) = (CacheId::random(), node.path("named"), node.path("mounted"));
        node.build(&node.of_daemon(ours, 1), &["small:1", "large:1"], 10);
        node.build(&named, &["small:1"], 30);
        node.build(&mounted, &["small:1", "other:1"], 20);

        // Only the newest sealed volume of each cache of the daemon is examined, and no entries with other
        // names.
        let found = node.found(&["small:1"], &[]);
        assert_eq!((&found["place"], &found["tenant"]), (&"state".into(), &"team-a".into()));
        assert_eq!(found["id"], ours.to_string());
        assert_eq!(found["volume"], text(&node.of_daemon(ours, 1)));
        assert_eq!(found["sealed_at"], "1970-01-01T00:00:10Z");
        node.build(&node.of_daemon(ours, 2), &["large:1"], 10);
        fs::create_dir_all(node.of_daemon(ours, 3)).unwrap();
        exits(64, &mut node.command(&["small:1"]));
        assert_eq!(node.found(&["large:1"], &[])["volume"], text(&node.of_daemon(ours, 2)));

        // The order is: most images, then most bytes, then the newest.
        let volumes = ["--volume", text(&named), "--volume", text(&mounted)];
        assert_eq!(node.found(&["small:1"], &volumes)["volume"], text(&named));
        let found = node.found(&["small:1", "other:1", "absent:1", "absent:1"], &volumes);
        assert_eq!(
            (&found["volume"], &found["images"], &found["of"]),
            (&text(&mounted).into(), &2.into(), &3.into())
        );
        assert_eq!(found["missing"], Value::from(vec![node.reference("absent:1")]));
        assert_eq!(found["bytes"], cache(&mounted).content.totals.compressed_size);
        assert_eq!(node.found(&["small:1", "large:1"], &volumes)["volume"], text(&node.of_daemon(ours, 2)));

        // An attached volume is found without being named, also while it is not mounted. It wins ties.
        let at = node.path("at");
        let records = Attachments::new(node.state().attached());
        records.note(&Attachment::new(&mounted, &at, Utc::now())).unwrap();
        let found = node.found(&["other:1"], &[]);
        assert_eq!((&found["place"], &found["at"]), (&"attached".into(), &text(&at).into()));
        assert_eq!(found["volume"], text(&mounted));
        sealed(&named, 20);
        assert_eq!(
            node.found(&["small:1"], &volumes)["volume"],
            text(&mounted),
            "attached must win over named"
        );
        sealed(&named, 21);
        assert_eq!(
            node.found(&["small:1"], &volumes)["volume"],
            text(&named),
            "newer must win over attached"
        );

        let mut another = Attachment::new(&mounted, &at, Utc::now());
        another.cache = Some(cache(&named).digest);
        records.note(&another).unwrap();
        let said = exits(64, &mut node.command(&["other:1"]));
        assert!(said.contains("not what was attached"), "{said}");
        records.forget(&at).unwrap();
        records.note(&Attachment::new(&mounted, &at, Utc::now())).unwrap();

        let said = succeed(node.command(&["other:1", "absent:1"]).args(volumes));
        for line in [format!("attached at {}", at.display()), "1 of 2".into(), node.reference("absent:1")] {
            assert!(said.contains(&line), "{said}");
        }
    });
}

#[case]
fn missing_images_are_listed_for_users_who_must_not_pull() {
    isolated(&[], || {
        let node = Node::new();
        let volume = node.path("volume");
        node.build(&volume, &["small:1"], 10);
        let of = |images: &[&str]| {
            let mut command = node.command(images);
            command.args(["--require", "--volume", text(&volume)]);
            command
        };
        succeed(&mut of(&["small:1"]));
        let said = exits(64, &mut of(&["small:1", "large:1", "other:1"]));
        let missing = format!("not cached: {}, {}", node.reference("large:1"), node.reference("other:1"));
        assert!(said.contains(&missing) && said.contains("1 of 3"), "{said}");
        let said = exits(64, of(&["small:1", "large:1"]).arg("--json"));
        let json: Value = serde_json::from_str(&said[..said.rfind("}\n").unwrap() + 1]).unwrap();
        assert_eq!(
            json["match"]["missing"].as_array().unwrap().len(),
            1,
            "the match must be printed nevertheless"
        );
        let said = exits(64, of(&["large:1"]).arg("--json"));
        assert!(said.contains("\"match\": null"), "{said}");
    });
}

#[case]
fn digests_of_image_and_index_are_held_and_other_machines_images_are_not() {
    isolated(&[], || {
        let mut node = Node::new();
        let indexed = image(7, 3000);
        let index = push_index(&mut node.registry, Format::Oci, &[&indexed], "indexed", "1").unwrap().digest;
        let volume = node.path("volume");
        node.build(&volume, &["indexed:1"], 10);
        let manifest = cache(&volume).content.images[0].manifest.clone();
        let named = ["--volume", text(&volume)];
        for held in [format!("indexed@{index}"), format!("indexed@{manifest}"), format!("indexed:9@{index}")]
        {
            assert_eq!(node.found(&[&held], &named)["images"], 1, "{held}");
        }
        for not in [format!("small@{manifest}"), "indexed:2".to_owned()] {
            exits(64, node.command(&[&not]).args(named));
        }
        exits(64, node.command(&["indexed:1"]).args(named).args(["--platform", "linux/s390x"]));
    });
}

#[case]
fn unreadable_volumes_are_reported() {
    isolated(&[], || {
        let node = Node::new();
        let (id, volume) = (CacheId::random(), node.path("volume"));
        node.build(&volume, &["small:1"], 10);
        node.build(&node.of_daemon(id, 1), &["small:1"], 10);
        let seal = node.of_daemon(id, 1).join("cache.json");
        let text = fs::read_to_string(&seal).unwrap();
        fs::write(&seal, text.replace("small", "large")).unwrap();
        fs::create_dir_all(node.state().attached()).unwrap();
        fs::write(node.state().attached().join("0.json"), "{").unwrap();
        let named = ["--volume", volume.to_str().unwrap()];
        let mut command = node.command(&["small:1"]);
        let output = command.args(named).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert_eq!(said.matches("skipping a volume").count(), 2, "{said}");
        assert!(said.contains("0.json") && said.contains("changed after the seal"), "{said}");
        // A named volume must exist.
        exits(64, node.command(&["small:1"]).args(["--volume", "/nowhere"]));
        exits(65, node.command(&["small:1"]).arg("--volume").arg(node.of_daemon(id, 1)));
        exits(73, node.command(&["small:1"]).arg("--volume").arg(node.dir.path()));
    });
}

#[case]
fn an_unreadable_daemon_state_is_skipped() {
    isolated(&[Need::Program("setpriv"), Need::Root], || {
        let node = Node::new();
        let volume = node.path("volume");
        node.build(&volume, &["small:1"], 10);
        node.build(&node.of_daemon(CacheId::random(), 1), &["small:1", "other:1"], 10);
        fs::create_dir_all(node.state().attached()).unwrap();
        for (path, mode) in [(node.dir.path(), 0o755), (node.state().root(), 0o700), (&volume, 0o755)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        // A user without rights cannot run a binary below a home directory of root.
        let binary = node.path("larder");
        succeed(Command::new("cp").arg(larder().get_program()).arg(&binary));
        let nobody = |more: &[&str]| {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps", "-all"]);
            command.env_remove("LARDER_HOST").arg(&binary).arg("--config").arg(node.path("larder.toml"));
            command.arg("match").arg(node.reference("small:1")).args(more);
            command
        };
        let said = exits(64, &mut nobody(&[]));
        assert!(!said.contains("skipping"), "what is not for this user is no news: {said}");
        let said = succeed(&mut nobody(&["--volume", text(&volume)]));
        assert!(said.contains("on this node") && said.contains("1 of 1"), "{said}");
    });
}

#[case]
fn a_disk_is_searched() {
    isolated(&[Need::Root], || {
        let node = Node::new();
        let disk = node.path("disk");
        let mut build = larder();
        build.args(["build", "--volume-kind", "disk", "--sparse", "--size", "64MiB", "--sizing", "warn"]);
        succeed(build.arg("--volume").arg(&disk).arg(node.reference("small:1")));
        for path in [disk.clone(), disk.join("disk.img")] {
            assert_eq!(node.found(&["small:1"], &["--volume", text(&path)])["volume"], text(&path));
        }
    });
}

#[case]
fn a_daemon_is_queried_only_if_named() {
    isolated(&[], || {
        let node = Node::new();
        let daemon = Daemon::start(&[A], ROOMY);
        let (small, large) = (node.reference("small:1"), node.reference("large:1"));
        let id = daemon.order(A, "web", &[small.clone(), large.clone()]);
        daemon.settle(A, &id, "Available", LIMIT);
        let ask = |config: &Path, images: &[&str]| {
            let mut command = bare();
            command.env("LARDER_TOKEN", A.token()).arg("--config").arg(config).args(["match", "--json"]);
            command.args(images.iter().map(|image| node.reference(image)));
            command
        };
        let found = |command: &mut Command| {
            daemon.explain(|| serde_json::from_str::<Value>(&succeed(command)).unwrap()["match"].clone())
        };
        let elsewhere = node.path("larder.toml");

        // Without the name of a daemon, none is queried.
        exits(64, &mut ask(&elsewhere, &["small:1"]));
        for by_flag in [true, false] {
            let mut command = ask(&elsewhere, &["small:1", "other:1"]);
            match by_flag {
                true => command.args(["--host", &daemon.endpoint()]),
                false => command.env("LARDER_HOST", daemon.endpoint()),
            };
            let found = found(&mut command);
            assert_eq!((&found["place"], &found["id"]), (&"daemon".into(), &id.as_str().into()), "{found}");
            assert_eq!((&found["name"], &found["volume"]), (&"web".into(), &Value::Null));
            assert_eq!((&found["images"], &found["of"]), (&1.into(), &2.into()));
            assert_eq!(found["missing"], Value::from(vec![node.reference("other:1")]));
        }
        let mut require = ask(&elsewhere, &["small:1", "other:1"]);
        let said = exits(64, require.args(["--require", "--host", &daemon.endpoint()]));
        assert!(said.contains(&format!("not cached: {}", node.reference("other:1"))), "{said}");

        // Its volume is on this host.
        let found_here = found(ask(&daemon.config(), &["small:1"]).args(["--host", &daemon.endpoint()]));
        assert_eq!((&found_here["place"], &found_here["id"]), (&"state".into(), &id.as_str().into()));
        assert_eq!(
            found_here["volume"].as_str().unwrap(),
            text(&Layout::new(daemon.state()).volume(&"team-a".parse().unwrap(), &id.parse().unwrap(), 1))
        );

        // By bytes the daemon's cache wins. The local volume wins as soon as it has more of the images.
        let volume = node.path("volume");
        let with = |command: &mut Command| {
            found(command.args(["--host", &daemon.endpoint(), "--volume", text(&volume)]))["place"].clone()
        };
        node.build(&volume, &["small:1", "other:1"], 10);
        assert_eq!(with(&mut ask(&elsewhere, &["small:1", "large:1"])), "daemon");
        assert_eq!(
            with(&mut ask(&elsewhere, &["small:1"])),
            "daemon",
            "the daemon's cache has as many bytes and is newer"
        );
        assert_eq!(with(&mut ask(&elsewhere, &["small:1", "other:1"])), "named");

        // If a named daemon does not answer, the command fails, because that daemon might have the best
        // cache.
        exits(69, ask(&elsewhere, &["small:1"]).args(["--host", "http://127.0.0.1:1"]));
    });
}
