//! Builders that are killed, and disks that lose power.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use larder_model::digest::Digest;
use larder_testing::registry::Fault;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::served::{Served, cache};
use crate::harness::{exits, larder, succeed};
use crate::served::{Filling, SIZE, build, events, image, wait_for_release, with_disks};

const LAYERS: u64 = 6;

/// Runs the same command to its end. Returns the blobs that were fetched, in whole or in part.
fn resumed(served: &Served, volume: &Path) -> BTreeSet<Digest> {
    served.registry.heal();
    served.registry.forget();
    succeed(&mut build(served, volume, SIZE));
    succeed(larder().arg("verify").arg(volume));
    let layers = &served.images[0].layers;
    let fetched = layers.iter().filter(|layer| served.registry.served(&layer.digest) > 0);
    fetched.map(|layer| layer.digest.clone()).collect()
}

/// Kills the supervisor or the extractor after `count` events of a kind, and resumes. Returns false if the
/// build ended before.
fn killed(served: &Served, extractor: bool, kind: &str, count: usize) -> bool {
    let volume = served.volume();
    let _ = fs::remove_dir_all(&volume);
    let mut filling = Filling::start(&mut build(served, &volume, SIZE), served.beside("events"));
    let in_time = filling.told(kind, count);
    match filling.extractor().filter(|_| extractor) {
        Some(pid) => {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            let code = filling.supervisor.code_within(Duration::from_secs(20));
            assert!(matches!(code, Some(70 | 0)), "{code:?}");
        }
        None => filling.supervisor.kill(),
    }
    let sealed = volume.join("cache.json").exists();
    // A command right after a kill waits for the kernel.
    let fetched = resumed(served, &volume);
    wait_for_release(&volume);
    eprintln!(
        "{kind} {count}, extractor {extractor}: in time {in_time}, sealed {sealed}, {} fetched",
        fetched.len()
    );
    if sealed {
        assert!(fetched.is_empty());
    }
    if kind == "layer_committed" && in_time {
        assert!(
            fetched.len() <= usize::try_from(LAYERS).unwrap() - count,
            "{fetched:?} of {count} committed"
        );
    }
    in_time
}

#[case]
fn killed_at_every_stage() {
    with_disks(|| {
        let served = Served::new([image(LAYERS, 400)]);
        for extractor in [false, true] {
            for kind in ["started", "planned", "sealed", "result"] {
                assert!(
                    killed(&served, extractor, kind, 1) || kind == "result",
                    "{kind}: the build had ended"
                );
            }
            let mut landed = 0;
            for count in 1..=usize::try_from(LAYERS).unwrap() {
                landed += u32::from(killed(&served, extractor, "layer_committed", count));
            }
            assert!(landed > 0, "every build ended before the kill");
        }
    });
}

#[case]
fn killed_while_the_disk_is_made() {
    with_disks(|| {
        let served = Served::new([image(2, 100)]);
        let volume = served.volume();
        let mut landed = 0;
        for place in ["", ".larder", ".larder/disk.img", "disk.img"] {
            let mut filling = Filling::start(&mut build(&served, &volume, SIZE), served.beside("events"));
            landed += u32::from(filling.supervisor.until(|| volume.join(place).exists()));
            filling.supervisor.kill();
            resumed(&served, &volume);
            wait_for_release(&volume);
            fs::remove_dir_all(&volume).unwrap();
        }
        assert!(landed > 0, "every build ended before the kill");
    });
}

/// Starts a build that commits all but the last layer, whose blob stalls.
fn all_but_the_last(served: &Served, synced: bool) -> Filling {
    let last = served.images[0].layers.last().unwrap().digest.clone();
    // Each fault applies once.
    let stall = || served.registry.fault(Fault::StallAt { digest: last.clone(), offsets: vec![10_000] });
    stall();
    let mut filling = Filling::start(&mut build(served, &served.volume(), SIZE), served.beside("events"));
    assert!(filling.told("layer_committed", usize::try_from(LAYERS).unwrap() - 1));
    if synced {
        stall();
        filling.supervisor.signal(Signal::SIGTERM);
        assert_eq!(filling.supervisor.code_within(Duration::from_secs(20)), Some(143));
        filling = Filling::start(&mut build(served, &served.volume(), SIZE), served.beside("events"));
        assert!(filling.told("layer_started", 1));
    }
    filling
}

/// Copies the disk in its current state to a directory of the same name elsewhere.
fn power_cut(served: &Served, name: &str) -> PathBuf {
    let copy = served.beside(name).join("volume");
    fs::create_dir_all(copy.join(".larder")).unwrap();
    succeed(Command::new("cp").arg("--sparse=always").arg(served.volume().join("disk.img")).arg(&copy));
    copy
}

#[case]
fn signals_leave_a_disk_that_resumes() {
    with_disks(|| {
        for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
            let served = Served::new([image(LAYERS, 100)]);
            let mut filling = all_but_the_last(&served, false);
            filling.supervisor.signal(signal);
            assert_eq!(filling.supervisor.code_within(Duration::from_secs(20)), Some(code));
            wait_for_release(&served.volume());
            let last = served.images[0].layers.last().unwrap().digest.clone();
            assert_eq!(resumed(&served, &served.volume()), BTreeSet::from([last]));
        }
    });
}

#[case]
fn after_a_power_cut_only_what_was_synced_counts() {
    with_disks(|| {
        let served = Served::new([image(LAYERS, 100)]);
        let filling = all_but_the_last(&served, true);
        let copy = power_cut(&served, "copy");
        drop(filling);
        let last = served.images[0].layers.last().unwrap().digest.clone();
        assert_eq!(resumed(&served, &copy), BTreeSet::from([last]), "synced layers must be kept");
        assert_eq!(cache(&copy).content.layers.len(), usize::try_from(LAYERS).unwrap());
    });
}

#[case]
fn after_a_power_cut_nothing_else_counts() {
    with_disks(|| {
        let served = Served::new([image(LAYERS, 100)]);
        let filling = all_but_the_last(&served, false);
        let copy = power_cut(&served, "copy");
        drop(filling);
        assert_eq!(resumed(&served, &copy).len(), usize::try_from(LAYERS).unwrap());
    });
}

/// Synced data that is damaged nevertheless: the disk is not trusted, and is formatted again.
#[case]
fn a_damaged_layer_after_a_power_cut_is_found() {
    with_disks(|| {
        let served = Served::new([image(LAYERS, 100)]);
        let filling = all_but_the_last(&served, true);
        let copy = power_cut(&served, "copy");
        drop(filling);
        // The content of the first layer's file, whose first bytes occur only once on the disk.
        let needle = crate::harness::served::random(0, 100 << 10)[..512].to_vec();
        let disk = copy.join("disk.img");
        let mut bytes = fs::read(&disk).unwrap();
        let at = bytes.windows(512).step_by(512).position(|window| window == needle).unwrap() * 512;
        bytes[at + 100] ^= 1;
        fs::write(&disk, bytes).unwrap();
        served.registry.heal();
        served.registry.forget();
        let text = succeed(build(&served, &copy, SIZE).args(["--output", "json"]));
        let warned = events(&text).iter().any(|event| {
            event["event"] == "warning"
                && event["message"].as_str().unwrap().contains("formatting the disk again")
        });
        assert!(warned, "{text}");
        succeed(larder().arg("verify").arg(&copy));
    });
}

/// Copies taken at any time, block by block while the disk is written, have a state that the disk never had.
#[case]
fn copies_taken_in_mid_build_resume_or_are_refused() {
    with_disks(|| {
        let served = Served::new([image(LAYERS, 2000)]);
        let mut copies = Vec::new();
        for limit in ["3MiB/s", "8MiB/s"] {
            let _ = fs::remove_dir_all(served.volume());
            let mut command = build(&served, &served.volume(), SIZE);
            let mut filling = Filling::start(command.args(["--limit-rate", limit]), served.beside("events"));
            assert!(filling.supervisor.until(|| served.volume().join("disk.img").exists()));
            while !filling.supervisor.has_ended() && copies.len() < 24 {
                copies.push(power_cut(&served, &format!("copy-{}", copies.len())));
            }
        }
        assert!(copies.len() > 4);
        for copy in copies {
            let output = build(&served, &copy, SIZE).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(matches!(output.status.code(), Some(0 | 73)), "{:?} {said}", output.status);
            if output.status.success() {
                succeed(larder().arg("verify").arg(&copy));
            } else {
                assert!(said.contains("not a disk of Larder"), "{said}");
                assert!(!copy.join("cache.json").exists());
            }
        }
    });
}

#[case]
fn a_disk_with_a_broken_file_system_is_formatted_again() {
    with_disks(|| {
        let served = Served::new([image(LAYERS, 100)]);
        drop(all_but_the_last(&served, false));
        wait_for_release(&served.volume());
        // Everything after the superblock.
        let disk = served.volume().join("disk.img");
        let mut bytes = fs::read(&disk).unwrap();
        bytes[4096..8 << 20].fill(0xa5);
        fs::write(&disk, bytes).unwrap();
        assert_eq!(resumed(&served, &served.volume()).len(), usize::try_from(LAYERS).unwrap());
    });
}

#[case]
fn a_second_builder_is_turned_away() {
    with_disks(|| {
        let served = Served::new([image(LAYERS, 100)]);
        let filling = all_but_the_last(&served, false);
        let said = exits(75, &mut build(&served, &served.volume(), SIZE));
        assert!(said.contains("locked"), "{said}");
        let said = exits(73, larder().arg("verify").arg(served.volume()));
        assert!(said.contains("not sealed"), "{said}");
        let said = exits(75, larder().arg("verify").arg(served.volume().join("disk.img")));
        assert!(said.contains("locked"), "{said}");
        drop(filling);
        resumed(&served, &served.volume());
    });
}
