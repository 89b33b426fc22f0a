//! Builds into disks, and their leftovers on the machine.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use serde_json::Value;

use crate::harness::served::{Running, Served, random};
use crate::harness::{Need, isolated};

pub(crate) const MIB: u64 = 1 << 20;
/// Size of the smallest disk of the tests, in bytes.
pub(crate) const SIZE: u64 = 64 * MIB;
pub(crate) const TOOLS: [Need; 1] = [Need::Program("mkfs.ext4")];

/// Runs `test` in a namespace, where no mount outlives it.
pub(crate) fn with_disks(test: impl FnOnce() + Send + 'static) {
    isolated(&TOOLS, test);
}

/// Returns an image whose stacked layers do not compress, with `kib` KiB and a little more in each.
pub(crate) fn image(layers: u64, kib: usize) -> Image {
    let layer = |seed: u64| {
        let builder = LayerBuilder::new().dir("d").file(format!("d/{seed}"), random(seed, kib << 10));
        let builder = builder.file("again", format!("{seed}")).file("again", format!("{seed} again"));
        Layer::from(builder.symlink("d/link", format!("{seed}")).whiteout("d/none").gzip())
    };
    Image::builder(Format::Oci).layers((0..layers).map(layer)).build()
}

/// Returns a build of all images of `served` into a disk of `size` bytes.
pub(crate) fn build(served: &Served, volume: &Path, size: u64) -> Command {
    let mut command = served.build(volume, size);
    command.args(["--volume-kind", "disk"]);
    command
}

/// A running build that writes its events to a file.
pub(crate) struct Filling {
    pub(crate) supervisor: Running,
    events: PathBuf,
}

impl Filling {
    pub(crate) fn start(command: &mut Command, events: PathBuf) -> Self {
        let output = fs::File::create(&events).unwrap();
        let child = command.args(["--output", "json"]).stdout(output).stderr(Stdio::null()).spawn().unwrap();
        Filling { supervisor: Running::of(child), events }
    }

    /// Waits until the build has printed `count` events of this kind. Returns false if the build ended
    /// before.
    pub(crate) fn told(&mut self, kind: &str, count: usize) -> bool {
        let events = self.events.clone();
        let kind = format!("\"event\":\"{kind}\"");
        self.supervisor
            .until(|| fs::read_to_string(&events).unwrap_or_default().matches(&kind).count() >= count)
    }

    /// Returns the process that extracts layers to the disk, if there is one now.
    pub(crate) fn extractor(&self) -> Option<i32> {
        let own = self.supervisor.pid().as_raw().to_string();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_str().unwrap_or_default().parse() else { continue };
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let parent =
                stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1).map(str::to_owned));
            if parent.as_deref() == Some(&own) {
                return Some(pid);
            }
        }
        None
    }
}

/// Parses the events of a finished build.
pub(crate) fn events(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Returns the loop devices whose file is below `dir`.
pub(crate) fn loops(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block").unwrap().flatten() {
        let file = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        if Path::new(file.trim_end().trim_end_matches(" (deleted)")).starts_with(dir) {
            found.push(entry.file_name().into_string().unwrap());
        }
    }
    found
}

/// Waits until the kernel has released everything below `dir`.
pub(crate) fn wait_for_release(dir: &Path) {
    let started = Instant::now();
    while !loops(dir).is_empty() {
        assert!(started.elapsed() < Duration::from_secs(30), "{:?} are still attached", loops(dir));
        sleep(Duration::from_millis(20));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(dir.to_str().unwrap()), "{mounts}");
}

/// Returns the bytes that a file occupies.
pub(crate) fn occupied(file: &Path) -> u64 {
    fs::metadata(file).unwrap().blocks() * 512
}
