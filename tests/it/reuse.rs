//! Reuse of layers from other volumes: copied instead of fetched, fetched once by concurrent builders, and
//! fetched anyway if the copy is unusable.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use larder::volume::lease::Lease;
use larder_model::digest::Digest;
use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use larder_testing::registry::{Fault, Registry};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::served::{Running, cache, random};
use crate::harness::{exits, isolated, larder, succeed};

const SIZE: u64 = 64 << 20;
const TIMEOUT: Duration = Duration::from_secs(60);

/// A directory of shared layers, and images `app-0:1` … in a registry.
struct Shared {
    dir: TempDir,
    registry: Registry,
    images: Vec<Image>,
}

impl Shared {
    fn new(images: impl IntoIterator<Item = Image>) -> Self {
        let mut registry = Registry::spawn();
        let images: Vec<_> = images.into_iter().collect();
        for (number, image) in images.iter().enumerate() {
            image.push(&mut registry, &format!("app-{number}"), "1").unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("volumes")).unwrap();
        Shared { dir, registry, images }
    }

    fn volume(&self, name: &str) -> PathBuf {
        self.dir.path().join("volumes").join(name)
    }

    fn build(&self, name: &str, image: usize) -> Command {
        let mut command = larder();
        command.env("LARDER_REGISTRY__BACKOFF_MAX_SECONDS", "1").env("LARDER_REGISTRY__RETRIES", "1");
        command.arg("build").arg("--share").arg(self.dir.path()).arg("--volume").arg(self.volume(name));
        command.args(["--sizing", "warn", "--output", "json", "--size", &format!("{SIZE}B")]);
        command.arg(format!("{}/app-{image}:1", self.registry.host()));
        command
    }

    /// Builds to the end and verifies the sealed volume. Returns the events.
    fn built(&self, name: &str, image: usize) -> Events {
        let events = Events::parse(&succeed(&mut self.build(name, image)));
        succeed(larder().arg("verify").arg(self.volume(name)));
        events
    }

    fn entry(&self, layer: &Layer) -> PathBuf {
        let name = layer.diff_id.to_string().replace(':', "-");
        self.dir.path().join("layers").join(name)
    }

    /// Returns the entry that records the location of a layer.
    fn entry_json(&self, layer: &Layer) -> Value {
        serde_json::from_slice(&fs::read(self.entry(layer)).unwrap_or_default()).unwrap_or_default()
    }

    /// Returns how often the registry served each layer of an image, in whole blobs.
    fn times_served(&self, image: usize) -> Vec<f64> {
        let layers = &self.images[image].layers;
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let times = |layer: &Layer| self.registry.served(&layer.digest) as f64 / layer.blob.len() as f64;
        layers.iter().map(times).collect()
    }
}

struct Events(Vec<Value>);

impl Events {
    fn parse(text: &str) -> Self {
        Events(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
    }

    fn of(&self, kind: &str) -> Vec<&Value> {
        self.0.iter().filter(|event| event["event"] == kind).collect()
    }

    /// Returns the number of warnings that name a volume.
    fn warned_of(&self, volume: &str) -> usize {
        let named = format!("volume {volume}:");
        self.of("warning").iter().filter(|w| w["message"].as_str().unwrap().contains(&named)).count()
    }
}

fn layer(seed: u64) -> Layer {
    let size = 60_000 + usize::try_from(seed).unwrap() * 10_000;
    let builder = LayerBuilder::new().dir("d").file(format!("d/{seed}"), random(seed, size));
    let builder = builder.file(format!("d/large-{seed}"), vec![b'z'; 3 << 20]);
    // Content that a later member replaces is only in the tar-split file.
    let builder = builder.file("again", random(seed, 9000)).file("again", random(seed + 1, 9000));
    Layer::from(builder.symlink("d/link", format!("{seed}")).whiteout("d/none").gzip())
}

fn image(seeds: &[u64]) -> Image {
    Image::builder(Format::Oci).layers(seeds.iter().map(|seed| layer(*seed))).build()
}

/// Waits until two builds end successfully within [`TIMEOUT`].
fn both_end(mut first: Running, mut second: Running) {
    assert_eq!(first.code_within(TIMEOUT), Some(0));
    assert_eq!(second.code_within(TIMEOUT), Some(0));
}

#[case]
fn only_what_is_new_is_fetched() {
    isolated(&[], || {
        let shared = Shared::new([image(&[0, 1, 2]), image(&[0, 1, 3])]);
        let first = shared.built("a", 0);
        assert_eq!(first.of("layer_reused").len(), 0);
        shared.registry.forget();
        let second = shared.built("b", 1);
        assert_eq!(shared.times_served(1), [0.0, 0.0, 1.0]);
        let reused = second.of("layer_reused");
        assert_eq!(reused.len(), 2);
        assert!(reused.iter().all(|event| event["from"] == "a" && event["size"].as_u64() > Some(3 << 20)));
        let from = |event: &&&Value| event.get("from").is_some();
        assert_eq!(second.of("layer_started").iter().filter(from).count(), 2);
        assert!(second.of("layer_committed").iter().all(|event| event["diff_id"].is_string()));
    });
}

#[case]
fn a_reused_volume_is_the_fetched_one() {
    isolated(&[], || {
        let shared = Shared::new([image(&[0, 1, 2, 1])]);
        shared.built("a", 0);
        shared.built("b", 0);
        assert_eq!(shared.times_served(0), [1.0; 4]);
        let read = |name: &str| fs::read(shared.volume(name).join("cache.json")).unwrap();
        assert_eq!(read("a"), read("b"));
        // A source volume has a lease while it is read, and none afterwards.
        let root = larder_sys::Dir::open(&shared.volume("a")).unwrap();
        assert!(Lease::exclusive(&root).unwrap().is_some());
    });
}

/// Returns the inode number and the link count of a layer's EROFS image.
fn image_of(volume: &Path, layer: &Layer) -> (u64, u64) {
    let hex = layer.diff_id.hex();
    let facts = fs::metadata(volume.join(format!("erofs/sha256/{}/{hex}.erofs", &hex[..2]))).unwrap();
    (facts.ino(), facts.nlink())
}

#[case]
fn images_are_shared_by_copies() {
    isolated(&[], || {
        let shared = Shared::new([image(&[0, 1, 2]), image(&[3, 1, 2]), image(&[0, 2])]);
        let build = |name: &str, number: usize, form: &str| {
            let mut command = shared.build(name, number);
            let events = Events::parse(&succeed(command.args(["--layer-format", form])));
            succeed(larder().arg("verify").arg(shared.volume(name)));
            events
        };
        build("a", 0, "erofs");
        shared.registry.forget();
        let events = build("b", 1, "erofs");
        assert_eq!(shared.times_served(1), [1.0, 0.0, 0.0]);
        assert_eq!(events.of("layer_reused").len(), 2);
        for layer in &shared.images[1].layers[1..] {
            let (a, b) = (image_of(&shared.volume("a"), layer), image_of(&shared.volume("b"), layer));
            assert_ne!(a.0, b.0, "damage to one volume must not reach another");
            assert_eq!((a.1, b.1), (1, 1));
        }
        // Deleting one volume does not affect the other.
        fs::remove_dir_all(shared.volume("a")).unwrap();
        succeed(larder().arg("verify").arg(shared.volume("b")));
        // From EROFS images to directories, and back.
        shared.registry.forget();
        build("c", 1, "overlay");
        assert_eq!(shared.times_served(1), [0.0; 3]);
        fs::remove_dir_all(shared.volume("b")).unwrap();
        build("d", 1, "erofs");
        assert_eq!(shared.times_served(1), [0.0; 3]);
        // A modified copy is not reused.
        let layer = &shared.images[2].layers[1];
        let hex = layer.diff_id.hex();
        fs::remove_dir_all(shared.volume("c")).unwrap();
        fs::remove_dir_all(shared.dir.path().join("layers")).unwrap();
        let name = format!("erofs/sha256/{}/{hex}.erofs", &hex[..2]);
        fs::remove_dir_all(shared.volume("d")).unwrap();
        build("e", 1, "erofs");
        fs::File::options()
            .write(true)
            .open(shared.volume("e").join(&name))
            .unwrap()
            .write_all_at(b"!", 1030)
            .unwrap();
        shared.registry.forget();
        let events = build("f", 2, "erofs");
        assert_eq!(events.warned_of("e"), 1);
        assert_eq!(shared.times_served(2), [1.0, 1.0]);
        assert_eq!(image_of(&shared.volume("f"), layer).1, 1);
    });
}

#[case]
fn builds_at_the_same_time_fetch_once() {
    isolated(&[], || {
        let shared = Shared::new([image(&[0, 1, 2, 3])]);
        // Slow enough that the builds overlap.
        let start = |name: &str| Running::start(shared.build(name, 0).args(["--limit-rate", "100KiB/s"]));
        both_end(start("a"), start("b"));
        assert_eq!(shared.times_served(0), [1.0; 4]);
        for name in ["a", "b"] {
            succeed(larder().arg("verify").arg(shared.volume(name)));
        }
        assert_eq!(cache(&shared.volume("a")), cache(&shared.volume("b")));
    });
}

/// Starts a build that holds the lock of the last layer, whose blob stalls.
fn holds(shared: &Shared, name: &str) -> Running {
    let last = shared.images[0].layers.last().unwrap();
    shared.registry.fault(Fault::StallAt { digest: last.digest.clone(), offsets: vec![10_000] });
    let mut running = Running::start(&mut shared.build(name, 0));
    assert!(running.until(|| {
        let others = &shared.images[0].layers[..shared.images[0].layers.len() - 1];
        let committed = |layer: &Layer| !shared.entry_json(layer)["layer"]["at"].is_null();
        others.iter().all(committed) && shared.registry.served(&last.digest) >= 10_000
    }));
    running
}

#[case]
fn a_killed_lock_holder_is_replaced() {
    isolated(&[], || {
        let shared = Shared::new([image(&[0, 1, 2])]);
        let mut holder = holds(&shared, "a");
        let mut waiter = Running::start(&mut shared.build("b", 0));
        // Committed layers are reused from a volume that is not sealed.
        assert!(
            waiter.until(|| fs::read_dir(shared.volume("b").join("overlay")).is_ok_and(|n| n.count() == 3))
        );
        assert_eq!(shared.times_served(0)[..2], [1.0, 1.0]);
        assert!(!waiter.has_ended(), "it must wait for the lock");
        holder.kill();
        assert_eq!(waiter.code_within(TIMEOUT), Some(0));
        succeed(larder().arg("verify").arg(shared.volume("b")));
        shared.registry.forget();
        shared.built("a", 0);
        assert_eq!(
            shared.times_served(0),
            [0.0; 3],
            "the killed build must reuse the layers of its successor"
        );
    });
}

#[case]
fn a_waiter_can_be_interrupted() {
    isolated(&[], || {
        let shared = Shared::new([image(&[0, 1])]);
        let _holder = holds(&shared, "a");
        let mut waiter = Running::start(&mut shared.build("b", 0));
        assert!(
            waiter.until(|| fs::read_dir(shared.volume("b").join("overlay")).is_ok_and(|n| n.count() == 2))
        );
        waiter.signal(nix::sys::signal::Signal::SIGINT);
        assert_eq!(waiter.code_within(Duration::from_secs(10)), Some(130));
    });
}

#[case]
fn a_missing_volume_is_not_needed() {
    isolated(&[], || {
        let shared = Shared::new([image(&[0, 1])]);
        shared.built("a", 0);
        fs::remove_dir_all(shared.volume("a")).unwrap();
        let events = shared.built("b", 0);
        assert_eq!(events.warned_of("a"), 2);
        assert_eq!(shared.times_served(0), [2.0; 2]);

        // A volume that is being removed counts as missing.
        let root = larder_sys::Dir::open(&shared.volume("b")).unwrap();
        let leaving = Lease::exclusive(&root).unwrap().unwrap();
        assert_eq!(shared.built("c", 0).warned_of("b"), 2);
        drop(leaving);
        assert_eq!(shared.times_served(0), [3.0; 2]);
    });
}

#[case]
fn a_volume_removed_during_reuse_is_not_needed() {
    isolated(&[], || {
        let big = Layer::from(LayerBuilder::new().file("f", vec![b'x'; 48 << 20]).gzip());
        let shared = Shared::new([Image::builder(Format::Oci).layers([big]).build()]);
        shared.built("a", 0);
        let output = shared.dir.path().join("events");
        let events = fs::File::create(&output).unwrap();
        let mut command = shared.build("b", 0);
        let mut running = Running::of(command.stdout(events).stderr(Stdio::null()).spawn().unwrap());
        // The volume is removed despite the lease, at any time: before, during or after the reading.
        let started = || fs::read_to_string(&output).is_ok_and(|text| text.contains("layer_started"));
        assert!(running.until(started), "the build ended before it started a layer");
        fs::remove_dir_all(shared.volume("a")).unwrap();
        assert_eq!(running.code_within(TIMEOUT), Some(0));
        succeed(larder().arg("verify").arg(shared.volume("b")));
    });
}

#[case]
fn a_corrupt_copy_is_found_and_fetched() {
    isolated(&[], || {
        let shared = Shared::new([image(&[0, 1])]);
        shared.built("a", 0);
        let chain = cache(&shared.volume("a")).content.images[0].chain.clone();
        let file = shared.volume("a").join("overlay").join(chain[0].hex()).join("diff/d/0");
        fs::File::options().write(true).open(file).unwrap().write_all_at(b"!", 50_000).unwrap();
        let split = shared.volume("a").join(format!("overlay-layers/{}.tar-split.gz", chain[1].hex()));
        fs::remove_file(split).unwrap();
        shared.registry.forget();
        let events = shared.built("b", 0);
        assert_eq!(events.warned_of("a"), 2);
        assert_eq!(events.of("layer_reused").len(), 0);
        assert_eq!(shared.times_served(0), [1.0; 2]);
        // The entry names the good copy for the next build.
        assert_eq!(shared.built("c", 0).of("layer_reused").len(), 2);
        exits(65, larder().arg("verify").arg(shared.volume("a")));
    });
}

#[case]
fn lies_cost_a_read_at_most() {
    isolated(&[], || {
        let shared = Shared::new([image(&[0, 1, 2, 3, 4]), image(&[9])]);
        shared.built("a", 0);
        let layers = &shared.images[0].layers;
        let honest: Vec<Value> = layers.iter().map(|layer| shared.entry_json(layer)).collect();
        let lie = |at: usize, change: &dyn Fn(&mut Value)| {
            let mut entry = honest[at].clone();
            change(&mut entry["layer"]["at"]);
            fs::write(shared.entry(&layers[at]), entry.to_string()).unwrap();
        };
        lie(0, &|at| at["volume"] = "../../elsewhere".into());
        lie(1, &|at| at["chain_id"] = honest[2]["layer"]["at"]["chain_id"].clone());
        lie(2, &|at| at["size"] = u64::MAX.into());
        lie(3, &|at| at["compression"] = "zstd".into());
        lie(4, &|at| at["blob"] = Digest::sha256(b"other").to_string().into());
        shared.registry.forget();
        let events = shared.built("b", 0);
        assert_eq!(events.warned_of("a"), 3);
        assert_eq!(shared.times_served(0), [1.0; 5]);
        let read = |name: &str| fs::read(shared.volume(name).join("cache.json")).unwrap();
        assert_eq!(read("a"), read("b"));

        // If no build fulfils a promise, the layer is fetched after a while.
        let promise = r#"{"v":1,"layer":{"ready":{"volume":"never"}}}"#;
        fs::write(shared.entry(&shared.images[1].layers[0]), promise).unwrap();
        shared.built("c", 1);
        assert_eq!(shared.times_served(1), [1.0]);

        // A symbolic link at the path of the entry is not followed, and the layer is not shared.
        let precious = shared.dir.path().join("precious");
        fs::write(&precious, "mine").unwrap();
        fs::remove_file(shared.entry(&layers[0])).unwrap();
        std::os::unix::fs::symlink(&precious, shared.entry(&layers[0])).unwrap();
        shared.built("d", 0);
        assert_eq!(fs::read_to_string(precious).unwrap(), "mine");
    });
}

#[case]
fn crossed_orders_end() {
    isolated(&[], || {
        // The larger blob is fetched first, so each build first gets the layer that is the upper one in the
        // other image.
        let shared = Shared::new([image(&[7, 8]), image(&[8, 7])]);
        let start = |name: &str, image| {
            Running::start(shared.build(name, image).args(["--limit-rate", "60KiB/s", "--concurrency", "1"]))
        };
        let mut first = start("a", 0);
        let large = &shared.images[0].layers[1];
        assert!(first.until(|| shared.registry.served(&large.digest) > 0));
        both_end(first, start("b", 1));
        let times = shared.times_served(0);
        assert!(times.iter().sum::<f64>() > 2.0, "the builds waited for each other: {times:?}");
        for name in ["a", "b"] {
            succeed(larder().arg("verify").arg(shared.volume(name)));
        }
    });
}

#[case]
fn a_confined_build_reuses_too() {
    isolated(&[], || {
        let shared = Shared::new([image(&[0, 1])]);
        for (name, reused) in [("a", 0), ("b", 2)] {
            let events = Events::parse(&succeed(&mut shared.build(name, 0)));
            assert_eq!(events.of("layer_reused").len(), reused, "{:?}", events.of("warning"));
            succeed(larder().arg("verify").arg(shared.volume(name)));
        }
        assert_eq!(shared.times_served(0), [1.0; 2]);
    });
}

#[case]
fn a_volume_elsewhere_is_refused() {
    let shared = Shared::new([image(&[0])]);
    let mut command = larder();
    command.args(["build", "--size", "1GiB", "a:1", "--share"]).arg(shared.dir.path());
    let said = exits(64, command.arg("--volume").arg(shared.dir.path().join("elsewhere")));
    assert!(said.contains("--share") && said.contains("is not in"), "{said}");
    let mut command = larder();
    command.args(["build", "--size", "1GiB", "a:1", "--share"]).arg(shared.dir.path());
    exits(64, command.arg("--volume").arg(Path::new(&shared.volume(".hidden"))));
}
