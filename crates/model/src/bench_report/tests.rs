use chrono::DateTime;

use super::*;

fn layer(name: &str, compression: Compression, compressed_bytes: u64, tar_bytes: u64) -> MeasuredLayer {
    MeasuredLayer {
        digest: Digest::sha256(name.as_bytes()),
        compression,
        compressed_bytes,
        tar_bytes,
        entries: Some(100),
        inflate_us: 0,
    }
}

fn image(layers: Vec<MeasuredLayer>) -> MeasuredImage {
    MeasuredImage {
        reference: "a:1".into(),
        name: "docker.io/library/a:1".into(),
        manifest: Digest::sha256(b"manifest"),
        platform: Platform::new("linux", "amd64", ""),
        layers,
    }
}

const SETTINGS: Settings = Settings {
    processors: 2,
    concurrency: 4,
    connections_per_host: 8,
    ranges_per_blob: 1,
    layer_format: Some(LayerFormat::Overlay),
    tar_split: Some(true),
};

const STAGES: [StageName; 6] = [
    StageName::Network,
    StageName::Inflate,
    StageName::Hash,
    StageName::Create,
    StageName::Write,
    StageName::Sync,
];

/// Stages with the given wall and processor times, for an image of 200 files. Stages whose size does not
/// matter have 1000 bytes.
fn stages(kind: Kind, image: &MeasuredImage, took: [(f64, f64); 6]) -> Vec<Stage> {
    let stages = STAGES.into_iter().zip(took).map(|(name, (wall_seconds, processor_seconds))| {
        let amount = match name {
            StageName::Create => (None, Some(200)),
            StageName::Hash => (Some(image.hashed_bytes()), None),
            _ => (Some(1000), None),
        };
        Stage::new(name, kind, Elapsed { wall_seconds, processor_seconds }, amount, 1.0)
    });
    stages.collect()
}

fn report(kind: Kind, image: MeasuredImage, settings: Settings, took: [(f64, f64); 6]) -> BenchReport {
    let together = Elapsed { wall_seconds: 12.0, processor_seconds: 12.0 };
    let stages = stages(kind, &image, took);
    BenchReport::new(kind, image, settings, stages, together)
}

fn seconds(report: &BenchReport, name: LimitName) -> Option<f64> {
    report.limits.iter().find(|limit| limit.limit == name).map(|limit| limit.seconds)
}

#[test]
fn a_share_is_scaled_to_all_of_it() {
    let took = Elapsed { wall_seconds: 2.0, processor_seconds: 1.0 };
    let stage = Stage::new(StageName::Write, Kind::Build, took, (Some(800), None), 0.5);
    assert_eq!(stage.took, Elapsed { wall_seconds: 4.0, processor_seconds: 2.0 });
    assert!((stage.per_second - 200.0).abs() < 1e-9);
    let nothing = Stage::new(StageName::Write, Kind::Build, Elapsed::default(), (Some(0), None), 1.0);
    assert!(nothing.per_second == 0.0 && nothing.took == Elapsed::default());
}

#[test]
fn only_what_counts_is_a_limit() {
    let took = [(9.0, 1.0), (2.0, 2.0), (1.0, 1.0), (0.5, 0.5), (0.5, 0.5), (3.0, 0.0)];
    let mut large = layer("large", Compression::Gzip, 400, 500);
    large.inflate_us = 1_600_000;
    let layers = vec![large.clone(), layer("plain", Compression::None, 100, 100)];

    let build = report(Kind::Build, image(layers.clone()), SETTINGS, took);
    assert_eq!((build.binding, build.roofline_seconds), (LimitName::Network, 9.0));
    assert!((build.times_roofline - 12.0 / 9.0).abs() < 1e-9);
    assert_eq!(seconds(&build, LimitName::Processors), Some(2.5));
    assert_eq!(seconds(&build, LimitName::Disk), Some(3.5));
    assert_eq!(seconds(&build, LimitName::LayerInflate), Some(1.6));
    // 900 of 1000 bytes, and 100 of 200 files; an uncompressed blob is hashed once.
    assert_eq!(seconds(&build, LimitName::LayerHash), Some(0.9));
    assert_eq!(seconds(&build, LimitName::LayerCreate), Some(0.25));
    assert_eq!(build.image.hashed_bytes(), 1000);
    assert_eq!(build.image.hashed_together_bytes(), 800);
    assert!(build.limits.is_sorted_by(|a, b| a.seconds >= b.seconds));

    let apply = report(Kind::Apply, image(layers.clone()), SETTINGS, took);
    assert_eq!((apply.binding, seconds(&apply, LimitName::Network)), (LimitName::Disk, None));
    assert_eq!(seconds(&apply, LimitName::Processors), Some(2.0));

    let decode = report(Kind::Decode, image(layers), SETTINGS, took);
    assert_eq!(seconds(&decode, LimitName::Processors), Some(1.5));
    assert_eq!(decode.binding, LimitName::LayerInflate);
    assert_eq!(decode.limits[0].layer, Some(large.digest));
    assert_eq!(seconds(&decode, LimitName::Disk), None);
}

#[test]
fn advice_names_settings() {
    let small = || vec![layer("a", Compression::Gzip, 400, 500), layer("b", Compression::Gzip, 100, 100)];
    let advice = |kind, layers, settings, took| report(kind, image(layers), settings, took).advice;
    let network = [(9.0, 0.0), (1.0, 1.0), (1.0, 1.0), (0.1, 0.1), (0.1, 0.1), (0.1, 0.0)];
    assert!(!advice(Kind::Build, small(), SETTINGS, network).contains("--concurrency"));
    let many = (0..5).map(|n| layer(&n.to_string(), Compression::Gzip, 100, 100)).collect();
    let text = advice(Kind::Build, many, SETTINGS, network);
    assert!(text.starts_with("Only 4 of 5 layers") && text.contains("--concurrency (here 4)"), "{text}");
    let one = vec![layer("a", Compression::Gzip, 100 << 20, 200 << 20)];
    let text = advice(Kind::Build, one, SETTINGS, network);
    assert!(
        text.contains("registry.ranges_per_blob (here 1)") && text.contains("[[registry.host]]"),
        "{text}"
    );

    let create = [(0.1, 0.1), (1.0, 1.0), (1.0, 1.0), (3.0, 3.0), (0.1, 0.1), (0.1, 0.0)];
    assert!(advice(Kind::Build, small(), SETTINGS, create).contains("--layer-format erofs creates none"));
    let mut slow = stages(Kind::Build, &image(small()), create);
    for (entries, is_slow) in [(Some(999), false), (Some(1000), true)] {
        (slow[3].entries, slow[3].per_second) = (entries, 9999.0);
        let report =
            BenchReport::new(Kind::Build, image(small()), SETTINGS, slow.clone(), Elapsed::default());
        assert_eq!(report.advice.contains("removed in the last minutes"), is_slow, "{}", report.advice);
    }
    let few = Settings { concurrency: 1, ..SETTINGS };
    assert!(advice(Kind::Build, small(), few, create).starts_with("--concurrency (here 1)"));
    let inflate = [(0.1, 0.1), (3.0, 3.0), (1.0, 1.0), (0.1, 0.1), (0.1, 0.1), (0.1, 0.0)];
    assert!(!advice(Kind::Decode, small(), SETTINGS, inflate).contains("zstd"), "no layer has zstd");
    for (zstd_us, is_faster) in [(1, true), (1000, false)] {
        let mut layers = vec![layer("a", Compression::Gzip, 400, 500), layer("b", Compression::Zstd, 10, 10)];
        (layers[0].inflate_us, layers[1].inflate_us) = (1000, zstd_us);
        let text = advice(Kind::Decode, layers, SETTINGS, inflate);
        assert_eq!(text.contains("with zstd"), is_faster, "{text}");
    }

    // Few files are no reason to sync fewer of them.
    let sync = [(0.1, 0.1), (1.0, 1.0), (1.0, 1.0), (0.1, 0.1), (1.0, 0.1), (7.0, 0.0)];
    let text = advice(Kind::Apply, small(), SETTINGS, sync);
    assert_eq!(text, "Writing takes 1.000 s and syncing 7.000 s. Use a faster disk or smaller images.");
    let many = || {
        let mut layers = small();
        layers[0].entries = Some(900);
        layers
    };
    let text = advice(Kind::Apply, many(), SETTINGS, sync);
    assert!(
        text.contains("syncing 7.000 s for 1000 files") && text.contains("each of the 2 layers"),
        "{text}"
    );
    let write = [(0.1, 0.1), (1.0, 1.0), (1.0, 1.0), (0.1, 0.1), (7.0, 0.1), (1.0, 0.0)];
    let erofs = Settings { layer_format: Some(LayerFormat::Erofs), ..SETTINGS };
    for (settings, took) in [(SETTINGS, write), (erofs, sync)] {
        assert!(!advice(Kind::Apply, many(), settings, took).contains("erofs"));
    }
}

#[test]
fn runs_have_medians_and_a_spread() {
    let run = |wall: f64| {
        let mut layer = layer("a", Compression::Gzip, 100, 200);
        layer.inflate_us = 1000;
        let together = Elapsed { wall_seconds: wall, processor_seconds: 2.0 * wall };
        let image = image(vec![layer]);
        let stages = stages(Kind::Build, &image, [(wall, 1.0); 6]);
        let report = BenchReport::new(Kind::Build, image, SETTINGS, stages, together);
        let start = DateTime::UNIX_EPOCH + std::time::Duration::from_secs_f64(wall);
        BenchReport { timeline: Some(Box::new(Timeline::new(start))), ..report }
    };
    assert_eq!(BenchReport::of_runs(Vec::new(), None), None);
    assert_eq!(BenchReport::of_runs(vec![run(3.0)], None), Some(run(3.0)));
    let mut moved = run(99.0);
    moved.image.manifest = Digest::sha256(b"another");
    let report = BenchReport::of_runs(vec![run(3.0), run(10.0), moved, run(4.0)], None).unwrap();
    assert_eq!((report.runs, report.together.wall_seconds), (3, 4.0));
    let spread = report.together_spread.unwrap();
    assert_eq!((spread.wall_seconds, spread.processor_seconds.max), (Range { min: 3.0, max: 10.0 }, 20.0));
    let timeline = report.timeline.as_ref().unwrap();
    assert_eq!(timeline.started_at.timestamp(), 4, "of the run with the median");
    let network = &report.stages[0];
    assert_eq!((network.took.wall_seconds, network.per_second), (4.0, 250.0));
    assert_eq!(network.spread.unwrap().wall_seconds, Range { min: 3.0, max: 10.0 });
    // Limits and advice follow from the medians.
    assert_eq!(seconds(&report, LimitName::Network), Some(4.0));
    assert_eq!(BenchReport::of_runs(vec![run(3.0), run(4.0)], None).unwrap().together.wall_seconds, 3.5);
}

#[test]
fn a_busy_machine_is_reported() {
    let idle = Load { processors: 2, average_at_start: 0.1, others: 0.05, steal: 0.0 };
    assert_eq!(idle.warning(), None);
    for (busy, cause) in [
        (Load { average_at_start: 1.5, ..idle }, "the load average at the start was 1.50 per processor"),
        (Load { others: 0.4, ..idle }, "other processes used 40 % of 2 processors"),
        (Load { steal: 0.1, ..idle }, "the hypervisor took 10 % of the processor time"),
    ] {
        let text = busy.warning().unwrap();
        assert!(text.starts_with("the machine was busy") && text.contains(cause), "{text}");
    }
}

#[test]
fn a_limit_that_was_beaten_is_explained() {
    let report = |seconds| {
        report(Kind::Build, image(vec![layer("a", Compression::Gzip, 1, 1)]), SETTINGS, [(seconds, 1.0); 6])
    };
    assert!(report(13.0).times_roofline < 1.0 && report(13.0).advice.ends_with("Measure again."));
    assert!(report(1.0).times_roofline > 1.0 && !report(1.0).advice.contains("Measure again"));
}

#[test]
fn a_report_is_json_and_back() {
    let took = [(9.0, 1.0), (2.0, 2.0), (1.0, 1.0), (0.5, 0.5), (0.5, 0.5), (0.0, 0.0)];
    let report = report(Kind::Build, image(vec![layer("a", Compression::Zstd, 1, 2)]), SETTINGS, took);
    let json = serde_json::to_string(&report).unwrap();
    assert!(json.contains(r#""stage":"network","counted":true,"wall_seconds":9.0"#), "{json}");
    assert_eq!(serde_json::from_str::<BenchReport>(&json).unwrap(), report);
}
