//! `larder bench`: measures the performance of this node.

mod page;

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use super::args::{BenchKind, BenchOrder, Output};
use super::output::text::Text;
use super::output::{Renderer as _, stdout, summary};
use super::usage::UsageError;
use super::{exit, merge, signals};
use crate::blocking;
use crate::builder::bench::{self, Request, Step, StepCallback};
use crate::builder::cancel::Cancel;
use crate::builder::events;
use crate::config::Config;
use crate::telemetry::Console;
use crate::waterfall::file;
use larder_model::bench_report::{
    BenchFailed, BenchReport, Elapsed, Limit, LimitName, Range, Spread, Stage, VERSION, approximate,
};
use larder_model::class::Class;
use larder_model::count::counted;
use larder_model::escape::escape;
use larder_model::event::Failure;
use larder_model::io_error::FileRole;
use larder_model::size::ByteSize;

/// Runs the command and returns its exit code.
pub(super) fn run(kind: BenchKind, config: Config, console: &Console) -> u8 {
    let BenchOrder { kind, dir, runs, html, build: args } = kind.into_order();
    let output = args.options.output.format();
    if let Some(error) = html.as_deref().and_then(no_directory) {
        return exit::fail(console, error.class(), &error.to_string());
    }
    let order = match merge::build_request(args, None, &config, merge::Purpose::Plan) {
        Ok(order) => order,
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    };
    let runtime = match blocking::multi_thread(None, blocking::MAX_THREADS) {
        Ok(runtime) => runtime,
        Err(e) => return exit::fail(console, Class::Internal, &format!("starting threads: {e}")),
    };
    let (events, lines) = events::channel();
    if output == Output::Text {
        let mut text = Text(console.clone());
        // The thread ends with the last sender or with the process. Nothing needs to wait for it.
        thread::spawn(move || lines.into_iter().try_for_each(|line| text.show(&line)));
    }
    let cancel = Cancel::new();
    let request = Request { kind, dir, runs, order };
    let measured = runtime.block_on(Box::pin(async {
        if let Err(e) = signals::watch(cancel.clone(), console.clone()) {
            let message = format!("listening for signals: {e}");
            return Err(vec![Failure::job(Class::Internal, message)]);
        }
        bench::run(request, config, events, progress_printer(output, console), cancel.clone()).await
    }));
    runtime.shutdown_background();
    match measured {
        Ok(report) => {
            let code = answer(&report, output, console);
            html.map_or(code, |path| code.max(write(&report, &path, console)))
        }
        Err(failures) => refuse(failures, &cancel, output, console),
    }
}

fn progress_printer(output: Output, console: &Console) -> StepCallback {
    if output == Output::Json || !console.is_terminal() {
        return Arc::new(|_| {});
    }
    let console = console.clone();
    Arc::new(move |step| {
        let what = match step {
            Step::Stage(stage) => stage.word().to_owned(),
            Step::Together(_) => "together".to_owned(),
            Step::Run(number) => format!("run {number}"),
            Step::Removing => "removing temporary files".to_owned(),
        };
        console.print(&format!("{what} …\n"));
    })
}

fn answer(report: &BenchReport, output: Output, console: &Console) -> u8 {
    let text = match output {
        Output::Text => text(report),
        Output::Json => match serde_json::to_string_pretty(report) {
            Ok(json) => json + "\n",
            Err(e) => return exit::fail(console, Class::Internal, &format!("writing the report: {e}")),
        },
    };
    stdout::print(console, &text)
}

/// Returns an error if the page cannot be written later, because its directory does not exist.
fn no_directory(page: &Path) -> Option<UsageError> {
    let parent = page.parent().filter(|parent| !parent.as_os_str().is_empty());
    let is_absent = parent.is_some_and(|parent| !parent.is_dir());
    is_absent.then(|| UsageError::NoDirectoryForPage(page.display().to_string()))
}

/// Writes the page, and returns the exit code.
fn write(report: &BenchReport, path: &Path, console: &Console) -> u8 {
    match file::write(path, &page::page(report)) {
        Ok(()) => 0,
        Err(error) => exit::fail(console, error.class(FileRole::Given), &error.to_string()),
    }
}

fn refuse(failures: Vec<Failure>, cancel: &Cancel, output: Output, console: &Console) -> u8 {
    let class = Class::decisive(failures.iter().map(|failure| failure.class)).unwrap_or(Class::Internal);
    let code = match class {
        // A benchmark cannot be resumed, so the description of this exit code does not apply.
        Class::Cancelled => {
            for failure in &failures {
                exit::fail(console, class, &failure.message);
            }
            cancel.exit_code().unwrap_or(class.exit_code())
        }
        class => {
            console.print(&summary::failed(&failures, "the benchmark failed", class.exit_code()));
            class.exit_code()
        }
    };
    if output == Output::Json
        && let Ok(json) = serde_json::to_string_pretty(&BenchFailed { version: VERSION, failures })
    {
        stdout::print(console, &(json + "\n"));
    }
    code
}

fn text(report: &BenchReport) -> String {
    let BenchReport { image, settings, .. } = report;
    let mut out = String::new();
    let _ = writeln!(out, "{}  {}", escape(&image.reference), escape(&image.platform.to_string()));
    let (compressed, tars) = (ByteSize(image.compressed_bytes()), ByteSize(image.tar_bytes()));
    let layers = counted(image.layers.len(), "layer");
    let _ = write!(out, "  {layers}, {compressed} compressed, {tars} uncompressed");
    if let Some(entries) = image.entries() {
        let _ = write!(out, ", {entries} entries");
    }
    let _ =
        write!(out, "\n  {} processors, {} layers in parallel", settings.processors, settings.concurrency);
    if let Some(format) = settings.layer_format {
        let _ = write!(out, ", {}", format.word());
    }
    if report.runs > 1 {
        let _ = write!(out, "\n  median of {} runs, and the least and the most wall time", report.runs);
    }
    let range = if report.runs > 1 { format!(" {:>15}", "min..max") } else { String::new() };
    let _ = writeln!(out, "\n\n               wall s{range}  processors s          amount            rate");
    for stage in &report.stages {
        let _ = writeln!(out, "{}", line(stage));
    }
    let Elapsed { wall_seconds, processor_seconds } = report.together;
    let range = range_of(report.together_spread);
    let name = report.kind.word();
    let _ = writeln!(out, "  {:<9} {wall_seconds:>9.3}{range} {processor_seconds:>13.3}", "together");
    let _ = writeln!(out, "\n    at best s");
    for limit in &report.limits {
        let _ = writeln!(out, "  {:>11.3}  {}", limit.seconds, described(limit, report));
    }
    let between = report.together_spread.map_or(String::new(), |spread| {
        let Range { min, max } = spread.wall_seconds;
        format!(" ({min:.3} to {max:.3} s in {} runs)", report.runs)
    });
    let _ = writeln!(
        out,
        "\n{name} took {wall_seconds:.3} s{between}, {:.2}x the best possible {:.3} s; bottleneck: {}\n{}",
        report.times_roofline,
        report.roofline_seconds,
        report.binding.words(),
        report.advice
    );
    if let Some(warning) = report.load.and_then(|load| load.warning()) {
        let _ = writeln!(out, "warning: {warning}");
    }
    out
}

/// Returns the column with the spread of the wall time; empty for a single run.
fn range_of(spread: Option<Spread>) -> String {
    let Some(Spread { wall_seconds: Range { min, max }, .. }) = spread else { return String::new() };
    format!(" {:>15}", format!("{min:.3}..{max:.3}"))
}

fn line(stage: &Stage) -> String {
    let Elapsed { wall_seconds, processor_seconds } = stage.took;
    let (amount, rate) = match (stage.bytes, stage.entries) {
        (Some(bytes), _) => (ByteSize(bytes).to_string(), format!("{}/s", whole_bytes(stage.per_second))),
        (None, Some(entries)) => (format!("{entries} entries"), format!("{:.0} /s", stage.per_second)),
        (None, None) => (String::new(), String::new()),
    };
    let mut line = format!(
        "  {:<9} {wall_seconds:>9.3}{} {processor_seconds:>13.3} {amount:>15} {rate:>15}",
        stage.stage.word(),
        range_of(stage.spread)
    );
    if stage.share < 1.0 {
        let _ = write!(line, "  (from {:.0} % of the data)", stage.share * 100.0);
    }
    if !stage.counted {
        line.push_str("  (not counted)");
    }
    line
}

/// Rounds a rate to whole bytes, for display in binary units.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is positive, and the cast saturates"
)]
fn whole_bytes(per_second: f64) -> ByteSize {
    ByteSize(per_second.round() as u64)
}

fn described(limit: &Limit, report: &BenchReport) -> String {
    let mut words = limit.limit.words().to_owned();
    if limit.limit == LimitName::Processors {
        let counted = report.stages.iter().filter(|stage| stage.counted);
        let work: f64 = counted.map(|stage| stage.took.processor_seconds).sum();
        let _ = write!(words, ": {work:.3} s of CPU time on {}", report.settings.processors);
    }
    if let Some(digest) = &limit.layer {
        let layer = report.image.layers.iter().find(|layer| layer.digest == *digest);
        let short: String = digest.hex().chars().take(12).collect();
        let share = layer.map_or(0.0, |layer| {
            let all = approximate(report.image.tar_bytes()).max(1.0);
            approximate(layer.tar_bytes) / all * 100.0
        });
        let _ = write!(words, ": {short}, {share:.0} % of the bytes");
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::bench_report::{Kind, Load, MeasuredImage, MeasuredLayer, Settings, StageName};
    use larder_model::digest::Digest;
    use larder_model::platform::Platform;
    use larder_model::seal::Compression;

    /// Returns the report of a run that took `wall` seconds for everything.
    fn run(wall_seconds: f64) -> BenchReport {
        let layer = MeasuredLayer {
            digest: Digest::sha256(b"x"),
            compression: Compression::Gzip,
            compressed_bytes: 1 << 20,
            tar_bytes: 3 << 20,
            entries: None,
            inflate_us: 2_000_000,
        };
        let image = MeasuredImage {
            reference: "a\x1b:1".into(),
            name: "a".into(),
            manifest: Digest::sha256(b"m"),
            platform: Platform::new("linux", "amd64", ""),
            layers: vec![layer],
        };
        let settings = Settings {
            processors: 2,
            concurrency: 4,
            connections_per_host: 8,
            ranges_per_blob: 1,
            layer_format: None,
            tar_split: None,
        };
        let took = Elapsed { wall_seconds, processor_seconds: wall_seconds };
        let stage = |name, share| Stage::new(name, Kind::Decode, took, (Some(3 << 20), None), share);
        let stages =
            vec![stage(StageName::Network, 1.0), stage(StageName::Inflate, 1.0), stage(StageName::Hash, 0.5)];
        BenchReport::new(Kind::Decode, image, settings, stages, took)
    }

    #[test]
    fn a_report_names_the_bottleneck_and_escapes_control_characters() {
        let text = text(&run(2.0));
        assert!(text.starts_with("a\\u{1b}:1  linux/amd64\n"), "{text}");
        for part in [
            "1 layer, 1 MiB compressed, 3 MiB uncompressed",
            "network       2.000         2.000           3 MiB      1.50 MiB/s  (not counted)",
            "hash          4.000         4.000           3 MiB       768 KiB/s  (from 50 % of the data)",
            "processors: 6.000 s of CPU time on 2",
            "hashing one layer: ",
            "100 % of the bytes",
            "bottleneck: hashing one layer",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("runs") && !text.contains("warning"), "{text}");
    }

    #[test]
    fn a_report_of_several_runs_has_their_spread() {
        let load = Load { processors: 2, average_at_start: 3.0, others: 0.5, steal: 0.0 };
        let report = BenchReport::of_runs(vec![run(2.0), run(1.5), run(4.0)], Some(load)).unwrap();
        let text = text(&report);
        for part in [
            "\n  median of 3 runs, and the least and the most wall time\n",
            "\n               wall s        min..max  processors s          amount            rate\n",
            "\n  network       2.000    1.500..4.000         2.000           3 MiB      1.50 MiB/s  (not counted)\n",
            "\n  together      2.000    1.500..4.000         2.000\n",
            "\ndecode took 2.000 s (1.500 to 4.000 s in 3 runs), ",
            "\nwarning: the machine was busy, so the figures are too high: the load average at the start was 3.00 per \
             processor, other processes used 50 % of 2 processors; measure again later\n",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
