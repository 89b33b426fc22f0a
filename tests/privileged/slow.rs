//! An ext4 without a journal skips every inode that was freed recently, so filling it again is many times
//! slower. Tests that no build is affected.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use larder_testing::registry::Fault;

use crate::harness::served::{Served, random};
use crate::harness::{in_shell, larder, succeed};
use crate::served::{Filling, MIB, build, events, wait_for_release, with_disks};

const FILES: usize = 25_000;
const SIZE: u64 = 512 * MIB;

/// Returns an image with many small files, followed by a large one that does not compress.
fn image() -> Image {
    let new =
        (0..FILES).fold(LayerBuilder::new(), |b, n| b.file(format!("d/{}/{n}", n % 100), format!("{n}")));
    Image::builder(Format::Oci).layer(Layer::from(new.file("last", random(5, 1 << 20)).gzip())).build()
}

/// Runs a build. Returns its processor time and its events. The time includes that of the kernel, which the
/// problem increases.
fn timed(served: &Served, build: &Command) -> (Duration, String) {
    let times = served.beside("times");
    let script = r#"exec 3>&2; TIMEFORMAT="%U %S"; { time "$@" 2>&3; } 2>"$0""#;
    let said = succeed(in_shell(script, &times, build).args(["--output", "json"]));
    let times = fs::read_to_string(times).unwrap();
    let spent = times.split_whitespace().map(|seconds| Duration::from_secs_f64(seconds.parse().unwrap()));
    (spent.sum(), said)
}

/// Checks the time of a second build. The problem makes it fifty times slower; twice or three times is
/// normal.
fn no_trap(what: &str, fresh: Duration, again: Duration) {
    eprintln!("{what}: {again:?} of processor time, on a new disk {fresh:?}");
    assert!(again < 4 * fresh + Duration::from_secs(8), "{what}: {again:?}, on a new disk {fresh:?}");
}

#[case]
fn a_disk_that_was_half_filled_is_filled_as_fast_as_a_new_one() {
    with_disks(|| {
        let served = Served::new([image()]);
        let started = Instant::now();
        let (fresh, _) = timed(&served, &build(&served, &served.beside("fresh"), SIZE));
        let whole = started.elapsed();
        let volume = served.volume();
        let blob = &served.images[0].layers[0];
        let end = blob.blob.len() as u64 - 1000;
        served.registry.fault(Fault::StallAt { digest: blob.digest.clone(), offsets: vec![end] });
        let mut filling = Filling::start(&mut build(&served, &volume, SIZE), served.beside("events"));
        // When no more data arrives, all files but the last exist.
        served.registry.forget();
        assert!(filling.supervisor.until(|| served.registry.served(&blob.digest) >= end));
        std::thread::sleep(Duration::from_secs(3) + whole);
        filling.supervisor.kill();
        wait_for_release(&volume);
        served.registry.heal();
        let (again, _) = timed(&served, &build(&served, &volume, SIZE));
        succeed(larder().arg("verify").arg(&volume));
        no_trap("half filled", fresh, again);
    });
}

#[case]
fn a_copy_that_turns_out_to_be_corrupt_does_not_slow_what_is_fetched() {
    with_disks(|| {
        let served = Served::new([image()]);
        let share = served.beside("share");
        fs::create_dir_all(share.join("volumes")).unwrap();
        let shared = |name: &str| {
            let mut command = build(&served, &share.join("volumes").join(name), SIZE);
            command.arg("--share").arg(&share);
            command
        };
        let (fresh, _) = timed(&served, &shared("a"));
        // A byte of the last file.
        let disk = fs::File::options().read(true).write(true).open(share.join("volumes/a/disk.img")).unwrap();
        let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
        disk.read_exact_at(&mut bytes, 0).unwrap();
        let needle = &random(5, 1 << 20)[(1 << 20) - 4096..];
        let at = bytes.chunks(4096).position(|chunk| chunk == needle).unwrap() * 4096;
        disk.write_all_at(&[!needle[4000]], at as u64 + 4000).unwrap();
        disk.sync_all().unwrap();

        let (again, said) = timed(&served, &shared("b"));
        let warned = |event: &serde_json::Value| {
            event["event"] == "warning" && event["message"].as_str().unwrap().contains("volume a")
        };
        assert!(events(&said).iter().any(warned), "{said}");
        assert!(said.contains("\"layer_committed\""), "{said}");
        succeed(larder().arg("verify").arg(share.join("volumes/b")));
        no_trap("fetched after a corrupt copy", fresh, again);
    });
}
