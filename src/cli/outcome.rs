//! Runs a build, shows its events, and reports its outcome.

use std::path::Path;

use chrono::{DateTime, Utc};
use tokio::runtime::Runtime;

use super::args::{BuildArgs, Output};
use super::output::display::{self, Display};
use super::output::{Renderer, result_file, stdout, summary};
use super::{exit, merge, signals};
use crate::builder::cancel::Cancel;
use crate::builder::events::{self, Events, Lines};
use crate::telemetry::Console;
use larder_model::class::Class;
use larder_model::event::{Event, Failure, Outcome, Status};

/// Reports the outcome and returns the exit code.
pub(super) fn end(
    outcome: &Outcome,
    result: Option<&Path>,
    display: Display,
    volume: &Path,
    console: &Console,
) -> u8 {
    if let Some(path) = result {
        result_file::write(path, outcome);
    }
    match outcome.status {
        Status::Ok if display.output == Output::Text && !display.quiet => {
            stdout::print(console, &summary::sealed(outcome, volume))
        }
        Status::Ok => outcome.exit_code,
        Status::Failed if display.is_json_progress() => outcome.exit_code,
        Status::Failed => {
            console.print(&summary::failed(&outcome.failures, &outcome.message, outcome.exit_code));
            outcome.exit_code
        }
    }
}

/// Runs `work` while another thread shows its events, and signals cancel it.
pub(super) fn carry_out<F: Future<Output = Outcome>>(
    runtime: &Runtime,
    work: impl FnOnce(Cancel) -> F,
    deadline: Option<DateTime<Utc>>,
    (events, lines): (Events, Lines),
    renderer: Box<dyn Renderer>,
    console: &Console,
) -> Outcome {
    let cancel = Cancel::new();
    let shown = display::spawn(lines, renderer, cancel.clone());
    let outcome = runtime.block_on(Box::pin(async {
        if let Err(e) = signals::watch(cancel.clone(), console.clone()) {
            return usage_outcome(Class::Internal, &format!("listening for signals: {e}"));
        }
        if let Some(deadline) = deadline {
            signals::arm(deadline, cancel.clone());
        }
        work(cancel.clone()).await
    }));
    events.emit(Event::Result(outcome.clone()));
    drop(events);
    // The renderer ends at the result. A panic in it is already on standard error and does not change the
    // outcome.
    let _ = shown.join();
    outcome
}

/// Reports a build that never started: on standard error, in the result file and, as JSON, as the last event.
pub(super) fn refuse(
    result: Option<&Path>,
    display: Display,
    class: Class,
    message: &str,
    console: &Console,
) -> u8 {
    let outcome = usage_outcome(class, message);
    if let Some(path) = result {
        result_file::write(path, &outcome);
    }
    show(outcome, display, console);
    match display.is_json_progress() {
        true => class.exit_code(),
        false => exit::fail(console, class, message),
    }
}

/// Shows the outcome of a build that never started, as the last event.
pub(super) fn show(outcome: Outcome, display: Display, console: &Console) {
    let (events, lines) = events::channel();
    events.emit(Event::Result(outcome));
    drop(events);
    display::show(lines, display.of_build(console), &Cancel::new());
}

/// Writes a configuration error to the result file, if the job has one.
pub(super) fn leave_usage_error(args: &BuildArgs, class: Class, message: &str) {
    let job = merge::read_job(args).ok().flatten();
    if let Some(path) = merge::result_file(args, job.as_deref()) {
        result_file::write(&path, &usage_outcome(class, message));
    }
}

/// Returns the outcome of a build that never started.
pub(super) fn usage_outcome(class: Class, message: &str) -> Outcome {
    Outcome::failed(vec![Failure::job(class, message)])
}
