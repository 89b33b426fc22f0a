//! The roofline of a bench as a picture: the measured time, and the lower bound of each resource.

use maud::{Markup, html};

use super::px;
use larder_model::bench_report::BenchReport;

/// Width of the column of labels, pixels.
const LABELS: f64 = 230.0;
/// Width of the longest bar, pixels.
const CHART: f64 = 560.0;
/// Space for the number after the longest bar, pixels.
const MARGIN: f64 = 80.0;
/// Height of a row, pixels.
const ROW: usize = 22;
/// Minimum width of a bar, so that a short time can be seen, pixels.
const MIN_BAR: f64 = 1.5;

/// The meaning of a bar: its colour. Each is readable on a light and on a dark page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bar {
    Measured,
    Bound,
    Binding,
    Alone,
}

impl Bar {
    const ALL: [(Bar, &'static str); 4] = [
        (Bar::Measured, "measured"),
        (Bar::Bound, "at best, by a resource"),
        (Bar::Binding, "the largest of these: best possible"),
        (Bar::Alone, "a stage alone"),
    ];

    fn colour(self) -> &'static str {
        match self {
            Bar::Measured => "#2f6fd0",
            Bar::Bound => "#8a9099",
            Bar::Binding => "#d0392f",
            Bar::Alone => "#2d8a4e",
        }
    }
}

/// A row of the picture.
struct Row {
    bar: Bar,
    name: String,
    seconds: f64,
}

/// Returns the roofline with a sentence and a legend.
pub fn section(report: &BenchReport) -> Markup {
    html! {
        h2 { "Roofline" }
        p { (describe(report)) }
        ul.legend aria-label="Legend of the roofline" {
            @for (bar, meaning) in Bar::ALL {
                li {
                    svg width="14" height="12" aria-hidden="true" { rect fill=(bar.colour()) y="1" width="12" height="10" {} }
                    (meaning)
                }
            }
        }
        div.scroll tabindex="0" role="region" aria-label="Roofline" { (picture(report)) }
    }
}

fn describe(report: &BenchReport) -> String {
    let (wall, best) = (report.together.wall_seconds, report.roofline_seconds);
    let name = report.kind.word();
    let bottleneck = report.binding.words();
    let times = report.times_roofline;
    format!("{name} took {wall:.3} s, {times:.2}x the best possible {best:.3} s. Bottleneck: {bottleneck}.")
}

fn rows(report: &BenchReport) -> Vec<Row> {
    let together = Row {
        bar: Bar::Measured,
        name: format!("{}, all stages together", report.kind.word()),
        seconds: report.together.wall_seconds,
    };
    let bounds = report.limits.iter().enumerate().map(|(at, limit)| Row {
        bar: if at == 0 { Bar::Binding } else { Bar::Bound },
        name: limit.limit.words().to_owned(),
        seconds: limit.seconds,
    });
    let stages = report.stages.iter().map(|stage| Row {
        bar: Bar::Alone,
        name: format!("{} alone{}", stage.stage.word(), if stage.counted { "" } else { " (not counted)" }),
        seconds: stage.took.wall_seconds,
    });
    std::iter::once(together).chain(bounds).chain(stages).collect()
}

/// Returns the picture.
fn picture(report: &BenchReport) -> Markup {
    let rows = rows(report);
    let longest = rows.iter().map(|row| row.seconds).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let width = |seconds: f64| match seconds / longest * CHART {
        width if width.is_finite() => width.clamp(MIN_BAR, CHART),
        _ => MIN_BAR,
    };
    let (total, height) = (LABELS + CHART + MARGIN, rows.len() * ROW + 6);
    let best = px(LABELS + width(report.roofline_seconds));
    html! {
        svg.roofline role="img" aria-label=(describe(report)) xmlns="http://www.w3.org/2000/svg"
            width=(total) height=(height) viewBox={ "0 0 " (total) " " (height) }
            font-family="system-ui, sans-serif" font-size="12" fill="currentColor" {
            @for (at, row) in rows.iter().enumerate() {
                @let y = at * ROW;
                text x="0" y=(y + 15) { (row.name) }
                rect fill=(row.bar.colour()) x=(LABELS) y=(y + 4) width=(px(width(row.seconds))) height="14" {
                    title { (row.name) ": " (format!("{:.3} s", row.seconds)) }
                }
                text x=(px(LABELS + width(row.seconds) + 6.0)) y=(y + 15) { (format!("{:.3} s", row.seconds)) }
            }
            line stroke=(Bar::Binding.colour()) stroke-dasharray="4 3" x1=(best) x2=(best) y1="0" y2=(height) {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::bench_report::{Elapsed, Kind, MeasuredImage, Settings, Stage, StageName};
    use larder_model::digest::Digest;
    use larder_model::platform::Platform;

    fn report(wall_seconds: f64) -> BenchReport {
        let image = MeasuredImage {
            reference: "app:1".into(),
            name: "app".into(),
            manifest: Digest::sha256(b"m"),
            platform: Platform::new("linux", "amd64", ""),
            layers: Vec::new(),
        };
        let settings = Settings {
            processors: 2,
            concurrency: 4,
            connections_per_host: 8,
            ranges_per_blob: 1,
            layer_format: None,
            tar_split: None,
        };
        let took = Elapsed { wall_seconds: 1.0, processor_seconds: 3.0 };
        let stages = [StageName::Network, StageName::Inflate];
        let stages = stages.map(|stage| Stage::new(stage, Kind::Apply, took, (Some(9), None), 1.0));
        let together = Elapsed { wall_seconds, processor_seconds: 3.0 };
        BenchReport::new(Kind::Apply, image, settings, stages.to_vec(), together)
    }

    #[test]
    fn bars_have_the_measured_time_and_every_bound() {
        let text = section(&report(3.0)).into_string();
        for part in [
            "apply took 3.000 s, 2.00x the best possible 1.500 s. Bottleneck: processors.",
            "apply, all stages together: 3.000 s",
            "processors: 1.500 s",
            "network alone (not counted): 1.000 s",
            "inflate alone: 1.000 s",
            // The roofline is in the middle of the chart.
            "x1=\"510.0\"",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("style="), "{text}");
    }

    #[test]
    fn odd_times_stay_inside_the_picture() {
        for wall in [0.0, -1.0, 1e300, f64::INFINITY, f64::NAN] {
            let text = section(&report(wall)).into_string();
            assert!(!text.contains("width=\"NaN") && !text.contains("width=\"-"), "{text}");
        }
    }
}
