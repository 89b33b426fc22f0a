//! The timeline of a build as a picture: a row for each layer, and a colour for each stage.
//!
//! The picture has presentation attributes and classes, and no inline style, so a strict
//! `Content-Security-Policy` accepts it. A style sheet can replace its colours.

pub mod file;
pub mod roofline;

use chrono::SecondsFormat;
use maud::{Markup, html};

use larder_model::escape::escape_to;
use larder_model::size::ByteSize;
use larder_model::timeline::{LayerSource, LayerTimeline, Span, Stage, Timeline};

/// Width of the column of labels, pixels.
const LABELS: f64 = 130.0;
/// Width of the chart, pixels.
const CHART: f64 = 700.0;
/// Space at the right side, for the last number of the axis, pixels.
const MARGIN: f64 = 40.0;
/// Height of the axis, pixels.
const AXIS: usize = 34;
/// Height of a row, pixels.
const ROW: usize = 20;
/// Minimum width of a bar, so that a short stage can be seen, pixels.
const MIN_BAR: f64 = 1.5;
/// Maximum length of a text in the picture, characters.
const MAX_TEXT: usize = 200;

/// Returns the name, the colour and the class of a stage.
fn look(stage: Stage) -> (&'static str, &'static str, &'static str) {
    match stage {
        Stage::Resolve => ("resolve", "#7a7f87", "w-resolve"),
        Stage::Network => ("fetch", "#2f6fd0", "w-network"),
        Stage::Unpack => ("unpack", "#c7761a", "w-unpack"),
        Stage::Wait => ("wait", "#9cc7ab", "w-wait"),
        Stage::Commit => ("commit", "#2d8a4e", "w-commit"),
        Stage::Seal => ("sync and seal", "#8a4fc0", "w-seal"),
    }
}

/// The scale of the time axis.
#[derive(Clone, Copy)]
struct Scale {
    total_ms: u64,
}

impl Scale {
    fn x(self, ms: u64) -> f64 {
        LABELS + ms.min(self.total_ms) as f64 / self.total_ms as f64 * CHART
    }

    /// Returns the position and the width of a period.
    fn bar(self, span: Span) -> (f64, f64) {
        let (start, end) = (self.x(span.start_ms), self.x(span.end_ms));
        (start, (end - start).max(MIN_BAR))
    }

    /// Returns times at round distances, at most 10.
    fn ticks(self) -> impl Iterator<Item = u64> {
        let steps = (0..20)
            .flat_map(|power| [1, 2, 5].map(|digit: u64| digit.saturating_mul(10u64.saturating_pow(power))));
        let step = steps.into_iter().find(|step| self.total_ms / step < 8).unwrap_or(u64::MAX);
        (0..10u64).map_while(move |tick| tick.checked_mul(step)).take_while(move |at| *at <= self.total_ms)
    }
}

/// Formats a duration in its largest unit.
pub fn duration(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        _ => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1000),
    }
}

/// Returns the picture of a timeline, or a sentence if there is nothing to show.
pub fn picture(timeline: &Timeline) -> Markup {
    if timeline.images.is_empty() && timeline.layers.is_empty() {
        return html! { p { "The build has not resolved an image." } };
    }
    let scale = Scale { total_ms: timeline.elapsed_ms.max(1) };
    let rows = timeline.layers.len() + 2;
    let (width, height) = (LABELS + CHART + MARGIN, AXIS + rows * ROW + 6);
    let last = timeline.layers.len() + 1;
    html! {
        svg.waterfall role="img" aria-label=(describe(timeline)) xmlns="http://www.w3.org/2000/svg"
            width=(width) height=(height) viewBox={ "0 0 " (width) " " (height) }
            font-family="system-ui, sans-serif" font-size="12" fill="currentColor" {
            (axis(scale, height))
            (label(0, "images"))
            @for image in &timeline.images {
                (bar(scale, 0, Stage::Resolve, image.resolve, &format!("resolve {}", shown(&image.reference))))
            }
            @for (at, layer) in timeline.layers.iter().enumerate() { (row(scale, at + 1, layer)) }
            (label(last, "volume"))
            @for sync in &timeline.syncs { (bar(scale, last, Stage::Seal, *sync, "sync")) }
            @if let Some(seal) = timeline.seal { (bar(scale, last, Stage::Seal, seal, "seal")) }
            @for step in timeline.critical_path() {
                (critical(scale, step.layer.map_or(if step.stage == Stage::Seal { last } else { 0 }, |at| at + 1), step.stage, step.span))
            }
            @for retry in &timeline.retries {
                @let x = scale.x(retry.at_ms);
                path.w-retry fill="#c5221f" d={ "M" (px(x)) " 30l-5 -9h10z" } {
                    title { "retry at " (duration(retry.at_ms)) ": " (shown(&retry.host)) ": " (shown(&retry.reason)) }
                }
            }
        }
        @if timeline.omitted > 0 { p { (timeline.omitted) " more layers are not shown." } }
    }
}

/// Returns the meaning of the colours and marks.
pub fn legend() -> Markup {
    html! {
        ul.legend aria-label="Legend" {
            @for stage in Stage::ALL {
                @let (name, colour, class) = look(stage);
                li {
                    svg width="14" height="12" aria-hidden="true" { rect class=(class) fill=(colour) y="1" width="12" height="10" {} }
                    (name)
                }
            }
            li { svg width="14" height="12" aria-hidden="true" { rect.w-critical fill="#c5221f" y="5" width="12" height="3" {} } "critical path" }
            li { svg width="14" height="12" aria-hidden="true" { path.w-retry fill="#c5221f" d="M6 11l-5 -9h10z" {} } "retry" }
        }
    }
}

/// Returns a sentence with the duration and what determined it.
pub fn describe(timeline: &Timeline) -> String {
    let bound = timeline.bound_by().into_iter().filter(|(_, ms)| *ms > 0);
    let bound: Vec<String> = bound.map(|(stage, ms)| format!("{} {}", look(stage).0, duration(ms))).collect();
    let start = timeline.started_at.to_rfc3339_opts(SecondsFormat::Secs, true);
    let total = duration(timeline.elapsed_ms);
    let state = if timeline.seal.is_some() { "took" } else { "ran for" };
    let mut text = format!("The build of {start} {state} {total}, with {} layers.", timeline.layers.len());
    if !bound.is_empty() {
        text.push_str(&format!(" Critical path: {}.", bound.join(", ")));
    }
    if !timeline.retries.is_empty() {
        text.push_str(&format!(" Retries: {}.", timeline.retries.len()));
    }
    text
}

fn axis(scale: Scale, height: usize) -> Markup {
    html! {
        @for at in scale.ticks() {
            @let x = px(scale.x(at));
            line.w-grid stroke="#8884" x1=(x) x2=(x) y1="20" y2=(height) {}
            text x=(x) y="14" text-anchor=(if at == 0 { "start" } else { "middle" }) { (duration(at)) }
        }
    }
}

fn label(row: usize, text: &str) -> Markup {
    html! { text x="0" y=(AXIS + row * ROW + 14) { (text) } }
}

fn row(scale: Scale, row: usize, layer: &LayerTimeline) -> Markup {
    let name: String = layer.blob.hex().chars().take(12).collect();
    let size = ByteSize(layer.compressed_size);
    let fetched = match layer.source {
        LayerSource::Fetched => {
            format!("fetch {name}, {size}, {} waiting for data", duration(layer.waited_ms))
        }
        LayerSource::Reused => format!("copy {name}, {size}, from another volume"),
        LayerSource::Present => format!("{name}, from an earlier attempt"),
    };
    html! {
        text x="0" y=(AXIS + row * ROW + 14) font-family="ui-monospace, monospace" font-size="11" {
            (name)
            title { (layer.blob) ", " (size) " compressed, " (ByteSize(layer.size)) " as tar" }
        }
        @if let Some(span) = layer.download { (bar(scale, row, Stage::Network, span, &fetched)) }
        @if let Some(span) = layer.unpack { (bar(scale, row, Stage::Unpack, span, &format!("unpack {name}, {}", ByteSize(layer.size)))) }
        @if let Some(span) = layer.wait { (bar(scale, row, Stage::Wait, span, &format!("wait of {name} for its parents"))) }
        @if let Some(span) = layer.commit { (bar(scale, row, Stage::Commit, span, &format!("commit {name}"))) }
        @if layer.end_ms() == 0 { text x=(px(LABELS + 4.0)) y=(AXIS + row * ROW + 14) opacity="0.7" { "present" } }
    }
}

fn bar(scale: Scale, row: usize, stage: Stage, span: Span, what: &str) -> Markup {
    let (_, colour, class) = look(stage);
    let (x, width) = scale.bar(span);
    html! {
        rect class=(class) fill=(colour) x=(px(x)) y=(AXIS + row * ROW + 2) width=(px(width)) height="12" {
            title { (what) ": " (duration(span.duration_ms())) " from " (duration(span.start_ms)) }
        }
    }
}

fn critical(scale: Scale, row: usize, stage: Stage, span: Span) -> Markup {
    let (x, width) = scale.bar(span);
    html! {
        rect.w-critical fill="#c5221f" x=(px(x)) y=(AXIS + row * ROW + 15) width=(px(width)) height="3" {
            title { "critical path, " (look(stage).0) ": " (duration(span.duration_ms())) }
        }
    }
}

/// Formats a position with one decimal.
fn px(position: f64) -> String {
    format!("{position:.1}")
}

fn shown(text: &str) -> String {
    escape_to(text, MAX_TEXT)
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use larder_model::digest::Digest;
    use larder_model::timeline::{ImageTimeline, Retry, VERSION};

    pub(super) fn timeline() -> Timeline {
        let span = |start_ms, end_ms| Some(Span { start_ms, end_ms });
        Timeline {
            version: VERSION,
            started_at: DateTime::UNIX_EPOCH,
            elapsed_ms: 2000,
            images: vec![ImageTimeline {
                reference: "nginx:1".into(),
                resolve: Span { start_ms: 0, end_ms: 200 },
            }],
            layers: vec![LayerTimeline {
                blob: Digest::sha256(b"a"),
                images: 1,
                source: LayerSource::Fetched,
                compressed_size: 3 << 20,
                size: 9 << 20,
                download: span(200, 1200),
                waited_ms: 800,
                unpack: span(1200, 1500),
                wait: span(1500, 1550),
                commit: span(1550, 1600),
            }],
            omitted: 0,
            syncs: vec![Span { start_ms: 1600, end_ms: 1700 }],
            seal: span(1600, 2000),
            retries: vec![Retry { at_ms: 300, host: "r.example".into(), reason: "reset".into() }],
        }
    }

    #[test]
    fn every_stage_has_its_colour_and_its_numbers() {
        let text = picture(&timeline()).into_string();
        for stage in Stage::ALL {
            let (_, colour, class) = look(stage);
            assert!(text.contains(&format!("class=\"{class}\" fill=\"{colour}\"")), "{class}: {text}");
        }
        assert!(text.contains("3 MiB, 800 ms waiting for data: 1.0 s from 200 ms"), "{text}");
        assert!(text.contains("critical path, fetch: 1.0 s"), "{text}");
        assert!(text.contains("retry at 300 ms: r.example: reset"), "{text}");
        assert!(
            text.contains("aria-label=\"The build of 1970-01-01T00:00:00Z took 2.0 s, with 1 layers."),
            "{text}"
        );
        assert!(!text.contains("style="), "the policy of the pages forbids inline styles");
        let half = px(Scale { total_ms: 2000 }.x(1000));
        assert_eq!(half, "480.0");
    }

    #[test]
    fn a_hostile_timeline_is_bounded_and_escaped() {
        let mut hostile = timeline();
        hostile.images[0].reference = "<script>\u{202e}".repeat(1000);
        hostile.retries[0].reason = "</title><img src=x onerror=alert(1)>".into();
        hostile.elapsed_ms = u64::MAX;
        hostile.layers[0].download = Some(Span { start_ms: u64::MAX, end_ms: 0 });
        hostile.layers[0].waited_ms = u64::MAX;
        hostile.syncs = vec![Span { start_ms: 5, end_ms: 1 }];
        for total in [0, 1, 7, u64::MAX] {
            hostile.elapsed_ms = total;
            let text = picture(&hostile).into_string();
            assert!(
                !text.contains("<script") && !text.contains("<img") && !text.contains('\u{202e}'),
                "{text}"
            );
            assert!(text.len() < 20_000 && !text.contains("NaN") && !text.contains("inf"), "{text}");
            assert!(Scale { total_ms: total.max(1) }.ticks().count() <= 10);
        }
    }

    #[test]
    fn nothing_to_show() {
        let empty = Timeline { images: Vec::new(), layers: Vec::new(), ..timeline() };
        assert!(!picture(&empty).into_string().contains("<svg"));
    }
}
