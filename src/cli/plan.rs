//! `larder plan`: shows what a build would download, and whether it fits.

use std::fmt::Write as _;
use std::num::NonZero;
use std::thread;

use super::args::{BuildArgs, Output};
use super::output::display::{self, Display};
use super::output::{stdout, summary};
use super::{confine, exit, merge, signals};
use crate::blocking;
use crate::builder::cancel::Cancel;
use crate::builder::{Prepared, events};
use crate::config::Config;
use crate::telemetry::Console;
use larder_model::class::Class;
use larder_model::escape::escape;
use larder_model::event::{Event, Failure, Outcome};
use larder_model::plan_report::{PlanFailed, PlanReport, VERSION};
use larder_model::size::ByteSize;
use larder_model::sizing::Sizing;

/// Runs the command and returns its exit code.
pub(super) fn run(args: BuildArgs, config: Config, console: &Console) -> u8 {
    let display = Display::of(&args.options);
    if let Err(e) = confine::settle(&args) {
        return exit::fail(console, e.class(), &e.to_string());
    }
    let sandboxed = !args.options.no_sandbox;
    let order = merge::read_job(&args)
        .and_then(|job| merge::build_request(args, job.as_deref(), &config, merge::Purpose::Plan));
    let order = match order {
        Ok(order) => order,
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    };
    let (sizing, deadline) = (order.sizing, order.deadline);
    let confinement = confine::resolver(&order);
    let (events, lines) = events::channel();
    let prepared = Prepared::new(order, config, events.clone());
    let renderer = display.of_plan(console);
    // The runtime counts processors by reading files that are not accessible once the process is confined.
    let workers = thread::available_parallelism().map_or(1, NonZero::get);
    let _confined = match sandboxed.then(|| confinement.enter()).transpose() {
        Ok(confined) => confined,
        Err(e) => return exit::fail(console, e.class(), &e.to_string()),
    };
    let runtime = match blocking::multi_thread(Some(workers), blocking::MAX_THREADS) {
        Ok(runtime) => runtime,
        Err(e) => return exit::fail(console, Class::Internal, &format!("starting threads: {e}")),
    };
    let cancel = Cancel::new();
    let shown = display::spawn(lines, renderer, cancel.clone());
    let planned = runtime.block_on(Box::pin(async {
        if let Err(e) = signals::watch(cancel.clone(), console.clone()) {
            let message = format!("handling signals: {e}");
            return Err(vec![Failure::job(Class::Internal, message)]);
        }
        if let Some(deadline) = deadline {
            signals::arm(deadline, cancel.clone());
        }
        prepared.plan(cancel.clone()).await
    }));
    runtime.shutdown_background();
    events.emit(Event::Result(outcome(&planned)));
    // As for a build, a panic in the display does not change the result.
    let _ = shown.join();
    match planned {
        Ok(report) => answer(&report, sizing, display, console),
        Err(failures) => fail(failures, &cancel, display, console),
    }
}

fn outcome(planned: &Result<PlanReport, Vec<Failure>>) -> Outcome {
    match planned {
        Ok(_) => Outcome::succeeded("planned"),
        Err(failures) => Outcome::failed(failures.clone()),
    }
}

/// Reports the failures of a plan and returns the exit code.
fn fail(failures: Vec<Failure>, cancel: &Cancel, display: Display, console: &Console) -> u8 {
    let class = Class::decisive(failures.iter().map(|failure| failure.class)).unwrap_or(Class::Internal);
    let code = match class {
        Class::Cancelled => cancel.exit_code().unwrap_or(class.exit_code()),
        class => class.exit_code(),
    };
    if !display.is_json_progress() {
        console.print(&summary::failed(&failures, "the plan failed", code));
    }
    if display.output == Output::Json
        && let Ok(json) = json(Err(failures))
    {
        stdout::print(console, &json);
    }
    code
}

/// Formats the report of a plan, or its failures, as JSON.
///
/// # Errors
/// The JSON cannot be written, which does not happen.
pub(super) fn json(planned: Result<PlanReport, Vec<Failure>>) -> serde_json::Result<String> {
    let text = match planned {
        Ok(report) => serde_json::to_string_pretty(&report),
        Err(failures) => serde_json::to_string_pretty(&PlanFailed { version: VERSION, failures }),
    };
    Ok(text? + "\n")
}

fn answer(report: &PlanReport, sizing: Sizing, display: Display, console: &Console) -> u8 {
    let text = match display.output {
        Output::Text if display.quiet => String::new(),
        Output::Text => text(report),
        Output::Json => match serde_json::to_string_pretty(report) {
            Ok(json) => json + "\n",
            Err(e) => return exit::fail(console, Class::Internal, &format!("writing the plan: {e}")),
        },
    };
    match stdout::print(console, &text) {
        0 if report.fits == Some(false) && sizing == Sizing::Enforce => Class::NoSpace.exit_code(),
        code => code,
    }
}

fn text(report: &PlanReport) -> String {
    let mut out = String::new();
    for image in &report.images {
        let size = ByteSize(image.compressed_size);
        let _ = writeln!(out, "{}  {size}", escape(&image.reference));
        let _ = writeln!(out, "  name      {}", escape(&image.name));
        if let Some(index) = &image.index {
            let _ = writeln!(out, "  index     {index}");
        }
        let _ = writeln!(out, "  manifest  {}", image.manifest);
        let _ = writeln!(out, "  platform  {}", escape(&image.platform.to_string()));
        for layer in &image.layers {
            let size = ByteSize(layer.size).to_string();
            let _ = write!(out, "  layer     {} {size:>12}  {}", layer.digest, escape(&layer.media_type));
            if !layer.shared_with.is_empty() {
                let with: Vec<String> = layer.shared_with.iter().map(|image| escape(image)).collect();
                let _ = write!(out, "  shared with {}", with.join(", "));
            }
            out.push('\n');
        }
    }
    let (bytes, shared) = (ByteSize(report.distinct_bytes), ByteSize(report.shared_bytes));
    let _ = writeln!(out, "{} distinct layers, {bytes} to download, {shared} shared", report.distinct_layers);
    let need = report.admission.need;
    let _ = match report.fits {
        None => writeln!(out, "the 3x rule requires a volume of {need}"),
        Some(true) => {
            writeln!(out, "the 3x rule requires {need}, the volume has {}: fits", report.admission.have)
        }
        Some(false) => writeln!(
            out,
            "the 3x rule requires {need}, the volume has {}: DOES NOT FIT; use --size {}MiB or more",
            report.admission.have,
            need.0.div_ceil(1 << 20)
        ),
    };
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_reports_whether_it_fits() {
        let none = text(&PlanReport::new(Vec::new(), ByteSize(0)));
        assert!(none.contains("the 3x rule requires a volume of 0 B"), "{none}");
        let mut report = PlanReport::new(Vec::new(), ByteSize(10));
        report.admission = larder_model::sizing::Admission::new([10], ByteSize(10));
        report.fits = Some(false);
        assert!(text(&report).contains("requires 30 B, the volume has 10 B: DOES NOT FIT; use --size 1MiB"));
    }
}
