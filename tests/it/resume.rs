//! Interrupted builds, which the same command resumes.

mod refused;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use chrono::Utc;
use larder_model::digest::Digest;
use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use larder_testing::registry::Fault;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::served::{Running, Served, cache, change_times, nothing_staged, random, until_gone};
use crate::harness::tree::{Tolerance, differences, scan};
use crate::harness::{exits, isolated, larder, succeed};

const SIZE: u64 = 64 << 20;
const TIMEOUT: Duration = Duration::from_secs(10);

/// Returns an image whose layers do not compress, and are stacked.
fn image(layers: u64) -> Image {
    let layer = |seed: u64| {
        let size = 40_000 + usize::try_from(seed).unwrap() * 10_000;
        let builder = LayerBuilder::new().dir("d").file(format!("d/{seed}"), random(seed, size));
        Layer::from(builder.symlink("d/link", format!("{seed}")).whiteout("d/none").gzip())
    };
    Image::builder(Format::Oci).layers((0..layers).map(layer)).build()
}

/// Starts a build that commits everything but its last layer, whose blob stalls in the middle.
fn all_but_the_last(served: &Served) -> Running {
    let last = served.images[0].layers.last().unwrap();
    served.registry.fault(Fault::StallAt { digest: last.digest.clone(), offsets: vec![10_000] });
    let mut running = Running::start(&mut served.build(&served.volume(), SIZE));
    let committed = served.images[0].layers.len() - 1;
    assert!(running.until(|| journal(&served.volume()).committed.len() == committed));
    running
}

/// Runs the same command to its end. The result is sealed and verified, and no blob in `kept` is fetched
/// again.
fn resume(served: &Served, kept: &BTreeSet<Digest>) {
    let volume = served.volume();
    until_gone(&volume);
    served.registry.heal();
    // The registry can still write to the connection of a client that has just ended.
    let quiet = || {
        served.registry.forget();
        sleep(Duration::from_millis(50));
        served.images[0].layers.iter().all(|layer| served.registry.served(&layer.digest) == 0)
    };
    while !quiet() {}
    succeed(&mut served.build(&volume, SIZE));
    succeed(larder().arg("verify").arg(&volume));
    assert!(nothing_staged(&volume));
    for layer in &served.images[0].layers {
        let fetched = served.registry.served(&layer.digest);
        let want = if kept.contains(&layer.digest) { 0 } else { layer.blob.len() as u64 };
        assert_eq!(fetched, want, "bytes of {} with {} committed", layer.digest, kept.len());
    }
}

/// The lines of a journal, as far as their checksums match.
#[derive(Debug, Default)]
struct Journal {
    lines: Vec<Value>,
    /// Blobs of committed layers.
    committed: BTreeSet<Digest>,
}

fn journal_path(volume: &Path) -> PathBuf {
    volume.join(".larder/journal")
}

fn journal(volume: &Path) -> Journal {
    let mut journal = Journal::default();
    for line in fs::read_to_string(journal_path(volume)).unwrap_or_default().split_inclusive('\n') {
        let Some((sum, json)) = line.strip_suffix('\n').and_then(|line| line.split_once(' ')) else { break };
        if sum != &Digest::sha256(json.as_bytes()).hex()[..16] {
            break;
        }
        let line: Value = serde_json::from_str(json).unwrap();
        if let Some(blob) = line["committed"]["layer"]["blob"].as_str() {
            journal.committed.insert(blob.parse().unwrap());
        }
        journal.lines.push(line);
    }
    journal
}

fn rewrite(volume: &Path, lines: &[Value]) {
    let line = |line: &Value| {
        let json = line.to_string();
        format!("{} {json}\n", &Digest::sha256(json.as_bytes()).hex()[..16])
    };
    fs::write(journal_path(volume), lines.iter().map(line).collect::<String>()).unwrap();
}

/// Kills a build as soon as `ready`, and runs it again. Returns false if the build ended before the kill.
fn killed(served: &Served, what: &str, ready: impl Fn(&Path) -> bool) -> bool {
    let volume = served.volume();
    let _ = fs::remove_dir_all(&volume);
    served.registry.forget();
    let mut running = Running::start(&mut served.build(&volume, SIZE));
    let landed = running.until(|| ready(&volume));
    running.kill();
    let journal = journal(&volume);
    eprintln!(
        "{what}: {} committed, sealed: {}",
        journal.committed.len(),
        volume.join("cache.json").exists()
    );
    resume(served, &journal.committed);
    landed
}

#[case]
fn killed_at_every_stage() {
    isolated(&[], || {
        const LAYERS: u64 = 8;
        let served = Served::new([image(LAYERS)]);
        let total: u64 = served.images[0].layers.iter().map(|layer| layer.blob.len() as u64).sum();
        let mut landed = BTreeMap::new();
        let mut count_kill = |stage: &'static str, landed_once: bool| {
            *landed.entry(stage).or_insert(0) += u32::from(landed_once);
        };
        count_kill("start", killed(&served, "volume made", |volume| volume.exists()));
        count_kill("start", killed(&served, "job noted", |volume| volume.join(".larder/job.json").exists()));
        for part in 0..16 {
            let bytes = total * part / 16;
            let what = format!("{bytes} bytes served");
            count_kill("download", killed(&served, &what, |_| served.registry.served_total() > bytes));
        }
        for count in 1..=LAYERS {
            let placed = |volume: &Path| {
                fs::read_dir(volume.join("overlay")).is_ok_and(|names| {
                    // One more entry is the directory of short names.
                    names.count() as u64 > count
                })
            };
            count_kill("commit", killed(&served, &format!("{count} layers placed"), placed));
        }
        for file in ["overlay-layers/layers.json", "oci/index.json", "cache.json"] {
            count_kill("seal", killed(&served, file, |volume| volume.join(file).exists()));
        }
        assert!(landed.values().all(|kills| *kills > 0), "stages without a kill: {landed:?}");
    });
}

#[case]
fn killed_again_and_again() {
    isolated(&[], || {
        let served = Served::new([image(12)]);
        let volume = served.volume();
        let (mut most, mut landed) = (0, 0);
        for _ in 0..12 {
            let mut running = Running::start(&mut served.build(&volume, SIZE));
            landed += u32::from(running.until(|| journal(&volume).committed.len() > most));
            running.kill();
            let now = journal(&volume).committed.len();
            assert!(now >= most, "a committed layer is lost");
            most = now;
        }
        assert!(landed > 0, "every build ended before the kill");
        resume(&served, &journal(&volume).committed);
    });
}

#[case]
fn signals_leave_a_volume_that_resumes() {
    isolated(&[], || {
        for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
            let served = Served::new([image(4)]);
            let mut running = all_but_the_last(&served);
            running.signal(signal);
            assert_eq!(running.code_within(TIMEOUT), Some(code));
            assert!(nothing_staged(&served.volume()));
            assert!(!served.volume().join("cache.json").exists());
            let journal = journal(&served.volume());
            assert!(journal.lines.iter().any(|line| line.get("synced").is_some()), "{journal:?}");
            assert_eq!(journal.committed.len(), 3);
            resume(&served, &journal.committed);
        }
    });
}

#[case]
fn a_second_signal_ends_at_once() {
    isolated(&[], || {
        let served = Served::new([image(3)]);
        let last = served.images[0].layers.last().unwrap();
        served.registry.fault(Fault::StallAt { digest: last.digest.clone(), offsets: vec![10_000] });
        // No process reads the events and the pipe is full, so an orderly shutdown would wait forever.
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(&[b'\n'; 64 << 10]).unwrap();
        let mut command = served.build(&served.volume(), SIZE);
        command.args(["--output", "json"]).stdout(writer).stderr(Stdio::null());
        let mut running = Running::of(command.spawn().unwrap());
        assert!(running.until(|| journal(&served.volume()).committed.len() == 2));
        running.signal(Signal::SIGINT);
        sleep(Duration::from_millis(300));
        assert!(!running.has_ended());
        running.signal(Signal::SIGINT);
        assert_eq!(running.code_within(Duration::from_secs(2)), Some(130));
        drop(reader);
        resume(&served, &journal(&served.volume()).committed);
    });
}

#[case]
fn after_a_reboot_only_synced_layers_count() {
    isolated(&[], || {
        let served = Served::new([image(5)]);
        all_but_the_last(&served).kill();
        let volume = served.volume();
        let mut lines = journal(&volume).lines;
        assert!(lines.iter().all(|line| line.get("synced").is_none()), "{lines:?}");
        for line in &mut lines {
            line["committed"]["boot"] = json!("11111111-2222-3333-4444-555555555555");
        }
        let committed =
            |line: &Value, field: &str| line["committed"]["layer"][field].as_str().unwrap().to_owned();
        let two = &lines[..2];
        let kept = two.iter().map(|line| committed(line, "blob").parse().unwrap()).collect();
        let synced: Vec<_> = two.iter().map(|line| committed(line, "chain_id")).collect();
        // Data that was never flushed can have any content after a power cut.
        let lost = committed(&lines[2], "chain_id");
        let (_, lost) = lost.split_once(':').unwrap();
        fs::remove_dir_all(volume.join("overlay").join(lost).join("diff/d")).unwrap();
        lines.push(json!({"synced": synced}));
        rewrite(&volume, &lines);
        resume(&served, &kept);
    });
}

#[case]
fn after_a_reboot_nothing_unsynced_counts() {
    isolated(&[], || {
        let served = Served::new([image(4)]);
        all_but_the_last(&served).kill();
        let mut lines = journal(&served.volume()).lines;
        for line in &mut lines {
            line["committed"]["boot"] = json!("11111111-2222-3333-4444-555555555555");
        }
        rewrite(&served.volume(), &lines);
        resume(&served, &BTreeSet::new());
    });
}

#[case]
fn a_torn_journal_ends_where_it_is_torn() {
    isolated(&[], || {
        let served = Served::new([image(4)]);
        all_but_the_last(&served).kill();
        let path = journal_path(&served.volume());
        let mut text = fs::read(&path).unwrap();
        text.truncate(text.len() - 9);
        fs::write(&path, text).unwrap();
        let journal = journal(&served.volume());
        assert_eq!(journal.committed.len(), 2);
        resume(&served, &journal.committed);
    });
}

#[case]
fn a_journal_of_random_bytes_is_ignored() {
    isolated(&[], || {
        let served = Served::new([image(3)]);
        all_but_the_last(&served).kill();
        fs::write(journal_path(&served.volume()), random(1, 5000)).unwrap();
        resume(&served, &BTreeSet::new());
    });
}

#[case]
fn a_sealed_volume_answers_its_job_without_a_write_or_a_request() {
    isolated(&[], || {
        let served = Served::new([image(3)]);
        let volume = served.volume();
        resume(&served, &BTreeSet::new());
        let times = change_times(&volume);
        served.registry.forget();
        let printed = succeed(served.build(&volume, SIZE).args(["--output", "json"]));
        let last: Value = serde_json::from_str(printed.lines().last().unwrap()).unwrap();
        let cache = cache(&volume);
        assert_eq!(last["event"], "result");
        assert_eq!(last["exit_code"], 0);
        assert_eq!(last["digest"], cache.digest.to_string());
        assert_eq!(last["totals"], serde_json::to_value(cache.content.totals).unwrap());
        assert_eq!(change_times(&volume), times);
        assert_eq!(served.registry.seen().len(), 0);
    });
}

#[case]
fn a_tag_that_moves_between_two_runs_stays_what_it_was() {
    isolated(&[], || {
        let mut served = Served::new([image(3)]);
        all_but_the_last(&served).kill();
        let moved =
            Image::builder(Format::Oci).layer(LayerBuilder::new().file("new", "new").gzip().into()).build();
        moved.push(&mut served.registry, "app-0", "1").unwrap();
        resume(&served, &journal(&served.volume()).committed);
        assert_eq!(cache(&served.volume()).content.images[0].manifest, served.images[0].manifest.digest);
    });
}

#[case]
fn a_deadline_ends_with_75_and_leaves_a_volume_that_resumes() {
    isolated(&[], || {
        let served = Served::new([image(3)]);
        let last = served.images[0].layers.last().unwrap();
        served.registry.fault(Fault::StallAt { digest: last.digest.clone(), offsets: vec![10_000] });
        let deadline = (Utc::now() + Duration::from_secs(2)).to_rfc3339();
        let said = exits(75, served.build(&served.volume(), SIZE).args(["--deadline", &deadline]));
        assert!(said.contains("deadline"), "{said}");
        assert!(nothing_staged(&served.volume()));
        let journal = journal(&served.volume());
        assert_eq!(journal.committed.len(), 2);
        resume(&served, &journal.committed);
    });
}

#[case]
fn the_result_file_is_one_short_line() {
    isolated(&[], || {
        let served = Served::new([image(2)]);
        let file = served.beside("result");
        let result = |command: &mut Command, code: i32| -> Value {
            exits(code, command.arg("--result-file").arg(&file));
            let text = fs::read_to_string(&file).unwrap();
            assert!(text.len() < 4096 && text.ends_with('\n') && text.lines().count() == 1, "{text}");
            serde_json::from_str(&text).unwrap()
        };
        let volume = served.volume();
        // Hundreds of images that all fail, with names of maximum length.
        let mut absent = larder();
        absent.arg("build").arg("--volume").arg(&volume).args(["--size", "1GiB"]);
        absent.args((0..200).map(|n| format!("{}/{}/{n}:1", served.registry.host(), "absent".repeat(30))));
        let failed = result(&mut absent, 64);
        assert_eq!((&failed["status"], &failed["exit_code"]), (&json!("failed"), &json!(64)));
        fs::remove_dir_all(&volume).unwrap();

        let failed = result(&mut served.build(&volume, 100_000), 73);
        assert_eq!((&failed["status"], &failed["exit_code"]), (&json!("failed"), &json!(73)));
        let sealed = result(&mut served.build(&volume, SIZE), 0);
        assert_eq!(sealed["digest"], cache(&volume).digest.to_string());
        let again = result(&mut served.build(&volume, SIZE), 0);
        assert_eq!(again["digest"], sealed["digest"]);
    });
}

/// Overwrites the content of a committed layer with zeros, like a disk that lost its last writes.
fn overwrite_layer(volume: &Path, layer: &Value) {
    let hex = |field: &str| layer[field].as_str().unwrap().split_once(':').unwrap().1.to_owned();
    let diff_id = hex("diff_id");
    let image = volume.join("erofs/sha256").join(&diff_id[..2]).join(format!("{diff_id}.erofs"));
    let files = match image.exists() {
        true => vec![image],
        false => {
            let names = fs::read_dir(volume.join("overlay").join(hex("chain_id")).join("diff/d")).unwrap();
            names
                .map(|name| name.unwrap().path())
                .filter(|path| path.is_file() && !path.is_symlink())
                .collect()
        }
    };
    assert!(!files.is_empty());
    for file in files {
        let size = fs::metadata(&file).unwrap().len();
        fs::write(&file, vec![0; usize::try_from(size).unwrap()]).unwrap();
    }
}

/// Returns the committed layers, in order.
fn committed(volume: &Path) -> Vec<Value> {
    let lines = journal(volume).lines.into_iter();
    lines.map(|line| line["committed"]["layer"].clone()).filter(|layer| !layer.is_null()).collect()
}

#[case]
fn layers_that_the_disk_lost_are_fetched_again() {
    isolated(&[], || {
        for format in ["overlay", "erofs"] {
            for (lost, kept) in [(2, 2), (1, 1), (0, 0)] {
                let served = Served::new([image(4)]);
                let last = served.images[0].layers.last().unwrap();
                served.registry.fault(Fault::StallAt { digest: last.digest.clone(), offsets: vec![10_000] });
                let volume = served.volume();
                let mut running =
                    Running::start(served.build(&volume, SIZE).args(["--layer-format", format]));
                assert!(running.until(|| committed(&volume).len() == 3));
                running.kill();
                let layers = committed(&volume);
                // Lines of this boot, which no flush covers.
                let mut lines = journal(&volume).lines;
                lines.retain(|line| line.get("synced").is_none());
                rewrite(&volume, &lines);
                // A child is committed after its parent.
                overwrite_layer(&volume, &layers[lost]);
                let kept =
                    layers[..kept].iter().map(|layer| layer["blob"].as_str().unwrap().parse().unwrap());
                let kept: BTreeSet<Digest> = kept.collect();
                resume(&served, &kept);
            }
        }
    });
}

#[case]
fn a_layer_that_cannot_be_reused_any_more_is_fetched_by_the_next_run() {
    isolated(&[], || {
        let layer = |seed: u64| {
            Layer::from(LayerBuilder::new().dir("d").file(format!("d/{seed}"), random(seed, 50_000)).gzip())
        };
        let two = |seeds: [u64; 2]| Image::builder(Format::Oci).layers(seeds.map(layer)).build();
        for format in ["overlay", "erofs"] {
            // The second layer is needed on two parents, and one of them never arrives.
            let served = Served::new([two([1, 2]), two([3, 2])]);
            let stalled = served.images[1].layers[0].digest.clone();
            served.registry.fault(Fault::StallAt { digest: stalled, offsets: vec![10_000] });
            let volume = served.volume();
            let mut running = Running::start(served.build(&volume, SIZE).args(["--layer-format", format]));
            assert!(running.until(|| committed(&volume).len() == 2));
            running.kill();
            let layers = committed(&volume);
            let mut lines = journal(&volume).lines;
            lines.truncate(2);
            lines.push(json!({"synced": layers.iter().map(|layer| &layer["chain_id"]).collect::<Vec<_>>()}));
            rewrite(&volume, &lines);
            overwrite_layer(&volume, layers.iter().find(|layer| !layer["parent"].is_null()).unwrap());
            served.registry.heal();
            let said = exits(69, &mut served.build(&volume, SIZE));
            assert!(said.contains("is damaged") && said.contains("check the disk"), "{said}");
            succeed(&mut served.build(&volume, SIZE));
            succeed(larder().arg("verify").arg(&volume));
        }
    });
}
