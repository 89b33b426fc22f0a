//! `larder bench`: measures the node with an image in a real registry, and removes all temporary files.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use larder_model::bench_report::{BenchReport, Kind, LimitName, Range, Stage, StageName};
use larder_model::digest::Digest;
use larder_model::platform::Platform;
use larder_testing::image::{Format, Image, Layer, push_index};
use larder_testing::layer::LayerBuilder;
use larder_testing::registry::Fault;
use nix::sys::signal::Signal;

use crate::harness::filesystem::{self, FileSystem};
use crate::harness::registry::Registry;
use crate::harness::served::{Running, Served, random};
use crate::harness::{Need, exits, isolated, larder, succeed};

const REGISTRY: Need = Need::Program("docker-registry");
const LIMIT: Duration = Duration::from_secs(60);

/// Returns an image of three layers, one with each compression.
fn image() -> Image {
    let mut many = LayerBuilder::new().dir("many");
    for number in 0..250 {
        many = many.file(format!("many/{number}"), random(number, 600));
    }
    let large = LayerBuilder::new().file("large", random(1, 3 << 20));
    let plain = LayerBuilder::new().dir("etc").file("etc/release", "plain");
    let layers: Vec<Layer> = vec![many.gzip().into(), large.zstd().into(), plain.plain().into()];
    Image::builder(Format::Oci).layers(layers).build()
}

/// Returns `larder bench` with one run in `dir`.
fn bench(kind: &str, reference: &str, dir: &Path) -> Command {
    benches(kind, reference, dir, 1)
}

fn benches(kind: &str, reference: &str, dir: &Path, runs: u16) -> Command {
    let mut larder = larder();
    larder.env("LARDER_REGISTRY__RETRIES", "0").args(["bench", kind, reference, "--dir"]).arg(dir);
    larder.args(["--runs", &runs.to_string()]);
    larder
}

fn report(command: &mut Command) -> BenchReport {
    serde_json::from_str(&succeed(command.args(["--output", "json"]))).unwrap()
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

fn names(stages: &[Stage]) -> Vec<&'static str> {
    stages.iter().map(|stage| stage.stage.word()).collect()
}

#[case]
fn every_kind_names_its_stages_and_what_binds() {
    isolated(&[REGISTRY], || {
        let registry = Registry::open();
        let reference = registry.push(&image(), "app", "1");
        let dir = tempfile::tempdir().unwrap();
        for (kind, word) in [(Kind::Decode, "decode"), (Kind::Apply, "apply"), (Kind::Build, "build")] {
            let report = report(&mut bench(word, &reference, dir.path()));
            assert!(is_empty(dir.path()), "{word}");
            assert_eq!((report.version, report.kind), (1, kind));
            let all = ["network", "inflate", "hash", "create", "write", "sync"];
            assert_eq!(names(&report.stages), if kind.builds() { &all[..] } else { &all[..3] });
            for stage in &report.stages {
                assert_eq!(stage.counted, kind.counts(stage.stage), "{stage:?}");
                assert!(stage.took.wall_seconds > 0.0 && stage.per_second > 0.0, "{stage:?}");
                assert!(stage.took.processor_seconds >= 0.0 && (stage.share - 1.0).abs() < 1e-9, "{stage:?}");
            }
            let of = |name| report.stages.iter().find(|stage| stage.stage == name);
            assert_eq!(of(StageName::Network).unwrap().bytes, Some(report.image.compressed_bytes()));
            assert!(report.image.tar_bytes() > 3 << 20);
            // 251 in the first, 1 in the second, 2 in the third. Only a build reads them.
            assert_eq!(report.image.entries(), kind.builds().then_some(254));
            assert_eq!(of(StageName::Create).and_then(|stage| stage.entries), kind.builds().then_some(254));
            assert_eq!(report.image.layers.len(), 3);
            assert!(report.together.wall_seconds > 0.0 && report.together.processor_seconds > 0.0);
            assert_eq!(report.limits[0].limit, report.binding);
            assert!(
                report.roofline_seconds > 0.0 && report.times_roofline > 0.0 && !report.advice.is_empty()
            );
            let network = report.limits.iter().any(|limit| limit.limit == LimitName::Network);
            assert_eq!(network, kind == Kind::Build);

            let out = tempfile::tempdir().unwrap();
            let page = out.path().join("bench.html");
            let said = succeed(bench(word, &reference, dir.path()).arg("--html").arg(&page));
            let page = fs::read_to_string(page).unwrap();
            for part in ["class=\"roofline\"", &format!("{word} took "), &reference, "network alone"] {
                assert!(page.contains(part), "{word}: {part}: {page}");
            }
            // Only a build has a timeline.
            assert_eq!(report.timeline.is_some(), kind.builds());
            assert_eq!(page.contains("class=\"waterfall\""), kind.builds(), "{page}");
            assert!(!page.contains("<script") && !page.contains("src=") && !page.contains("href="), "{page}");
            for stage in &report.stages {
                assert!(said.contains(&format!("\n  {} ", stage.stage.word())), "{word}: {said}");
            }
            assert!(said.contains(&format!("\n{word} took ")) && said.contains("; bottleneck: "), "{said}");
            assert!(is_empty(dir.path()), "{word}");
        }
        // Each of six runs reads them once for the staging, and the two builds from the registry read them
        // once more.
        let layers = image().layers;
        let served = registry.blobs_served();
        for layer in &layers {
            let times = served.iter().filter(|(digest, _)| *digest == layer.digest.to_string()).count();
            assert_eq!(times, 8, "{}", layer.digest);
        }
    });
}

#[case]
fn runs_have_a_median_and_a_spread() {
    isolated(&[REGISTRY], || {
        let registry = Registry::open();
        let reference = registry.push(&image(), "app", "1");
        let dir = tempfile::tempdir().unwrap();
        let measured = report(&mut benches("build", &reference, dir.path(), 3));
        assert!(is_empty(dir.path()));
        assert_eq!((measured.runs, measured.stages.len()), (3, 6));
        let spreads = measured.stages.iter().map(|stage| (stage.took, stage.spread));
        for (took, spread) in spreads.chain([(measured.together, measured.together_spread)]) {
            let Range { min, max } = spread.unwrap().wall_seconds;
            assert!(min > 0.0 && (min..=max).contains(&took.wall_seconds), "{took:?} {spread:?}");
        }
        assert!(measured.load.unwrap().processors > 0);
        // Each run fetches the image for its stage, and again for the build.
        let digest = image().layers[0].digest.to_string();
        assert_eq!(registry.blobs_served().iter().filter(|(served, _)| *served == digest).count(), 6);
        let single = report(&mut bench("decode", &reference, dir.path()));
        assert!(single.runs == 1 && single.together_spread.is_none());
    });
}

#[case]
fn a_page_without_a_directory_is_refused_before_the_measurement() {
    let mut bench = bench("decode", "127.0.0.1:9/none:1", Path::new("/tmp"));
    let said = exits(64, bench.args(["--html", "/none/page.html"]));
    assert!(said.contains("--html /none/page.html: its directory does not exist"), "{said}");
}

/// The files of earlier runs stay until the end, so space can end after the first run.
#[case]
fn a_run_that_does_not_fit_ends_the_measurement() {
    isolated(&[REGISTRY], || {
        let registry = Registry::open();
        let reference = registry.push(&image(), "app", "1");
        // One run needs 32 MiB more than its files, so the second does not fit.
        let small = FileSystem::new(filesystem::Kind::Tmpfs, 60 << 20);
        let mut command = benches("build", &reference, &small.path(), 9);
        let output = command.args(["--layer-format", "erofs"]).output().unwrap();
        let (said, warned) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{warned}");
        assert!(warned.contains(" of 9 runs: ") && said.contains("build took"), "{said}{warned}");
        assert!(is_empty(&small.path()));
    });
}

/// The staged image is resolved again, so its documents must still match.
#[case]
fn an_index_is_measured_by_tag_and_by_digest() {
    isolated(&[REGISTRY], || {
        let registry = Registry::open();
        let dir = tempfile::tempdir().unwrap();
        for format in [Format::Oci, Format::Docker] {
            let here = Image::builder(format).layers(image().layers).build();
            let elsewhere = Platform::new("linux", "s390x", "");
            let there = Image::builder(format).platform(elsewhere).layers(image().layers).build();
            let mut client = registry.client("multi");
            let index = push_index(&mut client, format, &[&there, &here], "multi", "1").unwrap().digest;
            for name in ["multi:1".to_owned(), format!("multi@{index}"), format!("multi:1@{index}")] {
                let reference = registry.reference(&name);
                let measured = report(&mut bench("apply", &reference, dir.path()));
                assert_eq!(measured.image.manifest, here.manifest.digest, "{name}");
                let mut other = bench("decode", &reference, dir.path());
                let measured = report(other.args(["--platform", "linux/s390x"]));
                assert_eq!(measured.image.manifest, there.manifest.digest, "{name}");
            }
        }
    });
}

#[case]
fn missing_rights_are_reported_before_a_fetch() {
    isolated(&[REGISTRY, Need::Program("setpriv")], || {
        let registry = Registry::open();
        let reference = registry.push(&image(), "app", "1");
        let dir = tempfile::tempdir().unwrap();
        let run = |kind: &str, more: &[&str]| {
            let bench = bench(kind, &reference, dir.path());
            let mut command = Command::new("setpriv");
            command
                .args(["--bounding-set", "-chown"])
                .arg(bench.get_program())
                .args(bench.get_args())
                .args(more);
            command
        };
        let said = exits(77, &mut run("apply", &[]));
        assert!(said.contains("CAP_CHOWN") && said.contains("--layer-format erofs"), "{said}");
        assert!(registry.blobs_served().is_empty());
        succeed(&mut run("decode", &[]));
        succeed(&mut run("apply", &["--layer-format", "erofs"]));
        succeed(&mut run("build", &["--rootless", "--no-tar-split"]));
        assert!(is_empty(dir.path()));
    });
}

#[case]
fn erofs_layers_have_no_create_limit() {
    isolated(&[REGISTRY], || {
        let registry = Registry::open();
        let reference = registry.push(&image(), "app", "1");
        let dir = tempfile::tempdir().unwrap();
        let report = report(bench("build", &reference, dir.path()).args(["--layer-format", "erofs"]));
        assert_eq!(names(&report.stages), ["network", "inflate", "hash", "write", "sync"]);
        assert!(report.limits.iter().all(|limit| limit.limit != LimitName::LayerCreate));
        assert!(is_empty(dir.path()));
    });
}

#[case]
fn a_failed_measurement_is_reported_and_leaves_nothing() {
    isolated(&[REGISTRY], || {
        let registry = Registry::open();
        let reference = registry.push(&image(), "app", "1");
        let dir = tempfile::tempdir().unwrap();
        let unknown = registry.reference("none:1");
        for kind in ["decode", "apply", "build"] {
            let said = exits(64, &mut bench(kind, &unknown, dir.path()));
            assert!(said.contains(&unknown), "{said}");
            let absent = dir.path().join("absent");
            let said = exits(64, &mut bench(kind, &reference, &absent));
            assert!(said.contains("absent") && said.contains("--dir"), "{said}");
            assert!(is_empty(dir.path()), "{kind}");
        }
        let said = exits(64, bench("build", &unknown, dir.path()).args(["--output", "json"]));
        assert!(said.contains(r#""class": "not_found""#), "{said}");

        let small = FileSystem::new(filesystem::Kind::Tmpfs, 16 << 20);
        let said = exits(73, &mut bench("build", &reference, &small.path()));
        assert!(said.contains("free") && said.contains("needed for the compressed image"), "{said}");
        assert!(is_empty(&small.path()));
    });
}

#[case]
fn bytes_that_are_not_the_layer_are_refused() {
    isolated(&[], || {
        let mut bad = image();
        // The blob matches its digest, but decompresses to another tar.
        bad.layers[0].diff_id = Digest::sha256(b"another");
        let served = Served::new([Image::builder(Format::Oci).layers(bad.layers).build()]);
        let dir = tempfile::tempdir().unwrap();
        let reference = &served.references()[0];
        for kind in ["decode", "apply", "build"] {
            let said = exits(65, &mut bench(kind, reference, dir.path()));
            assert!(said.contains(reference.as_str()), "{said}");
            assert!(is_empty(dir.path()), "{kind}");
        }
    });
}

#[case]
fn an_interruption_leaves_nothing() {
    isolated(&[], || {
        for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
            let served = Served::new([image()]);
            let large = &served.images[0].layers[1];
            served.registry.fault(Fault::StallAt { digest: large.digest.clone(), offsets: vec![1 << 20] });
            let dir = tempfile::tempdir().unwrap();
            let mut running = Running::start(&mut bench("build", &served.references()[0], dir.path()));
            let part = || {
                let own = fs::read_dir(dir.path()).unwrap().next()?.unwrap().path();
                let blob = own.join("layout/blobs/sha256").join(large.digest.hex());
                Some(fs::metadata(blob).ok()?.len())
            };
            assert!(running.until(|| part().is_some_and(|bytes| bytes >= 1 << 19)));
            running.signal(signal);
            assert_eq!(running.code_within(LIMIT), Some(code));
            assert!(is_empty(dir.path()), "{signal}");
        }
    });
}
