//! The report of a bench as a page to send.

use crate::waterfall::{file, roofline};
use larder_model::bench_report::BenchReport;
use larder_model::count::counted;
use larder_model::size::ByteSize;

/// Returns the page: facts, the roofline, and the timeline of the build.
pub(super) fn page(report: &BenchReport) -> String {
    let title = format!("Benchmark of {}", report.image.reference);
    file::page_with(&title, &facts(report), &roofline::section(report), report.timeline.as_deref())
}

fn facts(report: &BenchReport) -> Vec<file::Fact> {
    let BenchReport { image, settings, runs, together, .. } = report;
    let (compressed, tars) = (ByteSize(image.compressed_bytes()), ByteSize(image.tar_bytes()));
    let layers = counted(image.layers.len(), "layer");
    let mut facts = vec![
        ("Image", format!("{} ({}, {})", image.reference, image.platform, image.manifest)),
        ("Size", format!("{layers}, {compressed} compressed, {tars} uncompressed")),
        (
            "Settings",
            format!("{} processors, {} layers in parallel", settings.processors, settings.concurrency),
        ),
        ("Measured", format!("{}, {}", report.kind.word(), counted(*runs, "run"))),
        (
            "Result",
            format!(
                "{:.3} s, {:.2}x the best possible {:.3} s; bottleneck: {}",
                together.wall_seconds,
                report.times_roofline,
                report.roofline_seconds,
                report.binding.words()
            ),
        ),
        ("Advice", report.advice.clone()),
    ];
    facts.extend(report.load.and_then(|load| load.warning()).map(|warning| ("Warning", warning)));
    facts.push(("Larder", report.larder.clone()));
    facts
}
