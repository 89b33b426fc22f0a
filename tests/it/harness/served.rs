//! Images in a registry that counts requests and injects faults, and builds from it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use larder_model::job::LayerFormat;
use larder_model::seal::CacheManifest;
use larder_testing::image::Image;
use larder_testing::registry::Registry;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::larder;

/// Images `app-0:1`, `app-1:1` … in one registry, and a directory for a volume.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) registry: Registry,
    pub(crate) images: Vec<Image>,
    dir: TempDir,
    form: LayerFormat,
}

impl Served {
    pub(crate) fn new(images: impl IntoIterator<Item = Image>) -> Self {
        Served::at(Ipv4Addr::LOCALHOST.into(), images)
    }

    /// Does the same as [`Served::new`], on another address of this machine.
    pub(crate) fn at(address: IpAddr, images: impl IntoIterator<Item = Image>) -> Self {
        let mut registry = Registry::spawn_at(address);
        let images: Vec<_> = images.into_iter().collect();
        for (number, image) in images.iter().enumerate() {
            image.push(&mut registry, &format!("app-{number}"), "1").unwrap();
        }
        Served { registry, images, dir: tempfile::tempdir().unwrap(), form: LayerFormat::default() }
    }

    /// Sets the layer format of builds.
    #[must_use]
    pub(crate) fn with(self, form: LayerFormat) -> Self {
        Served { form, ..self }
    }

    /// Returns a path on the machine's own file system that does not exist yet.
    pub(crate) fn volume(&self) -> PathBuf {
        self.dir.path().join("volume")
    }

    /// Returns a path next to the volume.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn references(&self) -> Vec<String> {
        (0..self.images.len()).map(|number| format!("{}/app-{number}:1", self.registry.host())).collect()
    }

    /// Returns a build of all images into `volume` with a cap of `size` bytes, without the 3x rule.
    pub(crate) fn build(&self, volume: &Path, size: u64) -> Command {
        let mut larder = larder();
        larder.env("LARDER_REGISTRY__BACKOFF_MAX_SECONDS", "1").env("LARDER_REGISTRY__RETRIES", "1");
        larder.arg("build").arg("--volume").arg(volume).args(["--sizing", "warn"]);
        larder.args(["--size", &format!("{size}B")]).args(self.references());
        if self.form != LayerFormat::default() {
            larder.args(["--layer-format", self.form.word()]);
        }
        larder
    }
}

/// Returns bytes that do not compress, always the same for one seed.
pub(crate) fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ seed.wrapping_mul(0xd134_2543_de82_ef95);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(|_| next()).take(len).collect()
}

pub(crate) fn cache(volume: &Path) -> CacheManifest {
    CacheManifest::parse(&fs::read(volume.join("cache.json")).unwrap()).unwrap()
}

/// Reports whether the volume has no unfinished layer.
pub(crate) fn nothing_staged(volume: &Path) -> bool {
    match fs::read_dir(volume.join(".larder/staging")) {
        Ok(mut names) => names.next().is_none(),
        Err(_) => true,
    }
}

/// Returns the path, inode number and change time of everything below `root`. A write of any kind changes
/// this.
pub(crate) fn change_times(root: &Path) -> Vec<(PathBuf, u64, (i64, i64))> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.push((path, metadata.ino(), (metadata.ctime(), metadata.ctime_nsec())));
    }
    found.sort_unstable();
    found
}

/// A process of the test. Killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Running(Child);

impl Running {
    /// Starts `command` and discards its output.
    pub(crate) fn start(command: &mut Command) -> Self {
        Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Takes over a child that was started elsewhere.
    pub(crate) fn of(child: Child) -> Self {
        Running(child)
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.0.id()).unwrap())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// Kills it and waits until it is gone, together with all processes that it started. The kernel ends
    /// those a moment later.
    pub(crate) fn kill(&mut self) {
        let below = if self.has_ended() { Vec::new() } else { descendants(self.pid().as_raw()) };
        let _ = self.0.kill();
        let _ = self.0.wait();
        let started = Instant::now();
        // An orphan that has ended can stay a zombie until its new parent reaps it.
        let alive = |pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
        };
        while below.iter().any(alive) {
            assert!(started.elapsed() < Duration::from_secs(10), "its children outlived it");
            sleep(Duration::from_millis(2));
        }
    }

    /// Returns the exit code of a process that ends within `limit`; `None` if a signal ended it.
    pub(crate) fn code_within(&mut self, limit: Duration) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(started.elapsed() < limit, "still running after {limit:?}");
            sleep(Duration::from_millis(2));
        }
    }

    /// Waits until `ready` returns true. Returns false if the process ended first.
    #[must_use = "a build that ended cannot be killed"]
    pub(crate) fn until(&mut self, ready: impl Fn() -> bool) -> bool {
        let started = Instant::now();
        while !ready() {
            if self.has_ended() {
                return false;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "the build made no progress");
            sleep(Duration::from_micros(500));
        }
        true
    }
}

/// Waits until no process of a build into `volume` is left. The children of a killed process end a moment
/// later.
pub(crate) fn until_gone(volume: &Path) {
    let volume = volume.to_str().unwrap();
    let started = Instant::now();
    let works = || {
        fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            // A process that has ended has no command line.
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            line.starts_with(b"larder\0") && String::from_utf8_lossy(&line).contains(volume)
        })
    };
    while works() {
        assert!(started.elapsed() < Duration::from_secs(10), "children outlived a killed build");
        sleep(Duration::from_millis(2));
    }
}

/// Returns all descendants of `pid`.
pub(crate) fn descendants(pid: i32) -> Vec<i32> {
    let all =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let parents: Vec<(i32, i32)> = all
        .filter_map(|pid: i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
            Some((pid, parent.trim().parse().ok()?))
        })
        .collect();
    let mut found = vec![pid];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found.split_off(1)
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}
