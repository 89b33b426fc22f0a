//! `larder build`: one job in, one sealed volume out.

use std::io;
use std::thread;

use tokio::runtime::Runtime;

use super::args::{OrderArgs, Output};
use super::output::json::Json;
use super::output::terminal::Terminal;
use super::output::text::Text;
use super::output::{Renderer, result_file, stdout, summary};
use super::usage::UsageError;
use super::{exit, merge, signals};
use crate::build::cancel::{Cancel, Reason};
use crate::build::events::{self, Lines};
use crate::build::order::Order;
use crate::config::Config;
use crate::model::class::Class;
use crate::model::event::{Event, Failure, Outcome, Status};
use crate::telemetry::Console;

/// Runs the command and answers its exit code.
pub(super) fn run(args: OrderArgs, config: Config, console: &Console) -> u8 {
    let output = args.output;
    let job = match merge::read_job(&args) {
        Ok(job) => job,
        Err(error) => return refuse(args.result_file.as_deref(), output, &error, console),
    };
    let result = merge::result_file(&args, job.as_deref());
    let order = match merge::order(args, job.as_deref(), &config, merge::Purpose::Build) {
        Ok(order) => order,
        Err(error) => return refuse(result.as_deref(), output, &error, console),
    };
    let volume = order.volume.clone();
    let outcome = match Runtime::new() {
        Ok(runtime) => {
            let outcome = carry_out(&runtime, order, config, output, console);
            // A request that hangs in a credential helper does not keep a build that is over.
            runtime.shutdown_background();
            outcome
        }
        Err(e) => usage_outcome(Class::Internal, &format!("starting the threads of the build: {e}")),
    };
    if let Some(path) = result {
        result_file::write(&path, &outcome);
    }
    match outcome.status {
        Status::Ok if output == Output::Text => stdout::print(console, &summary::sealed(&outcome, &volume)),
        Status::Ok => outcome.exit_code,
        Status::Failed => {
            console.print(&summary::failed(&outcome.failures, &outcome.message, outcome.exit_code));
            outcome.exit_code
        }
    }
}

fn carry_out(runtime: &Runtime, order: Order, config: Config, output: Output, console: &Console) -> Outcome {
    let cancel = Cancel::new();
    let (events, lines) = events::channel();
    let renderer: Box<dyn Renderer> = match output {
        Output::Json => Box::new(Json(io::stdout())),
        Output::Text if console.is_terminal() => Box::new(Terminal::new(console.clone())),
        Output::Text => Box::new(Text(console.clone())),
    };
    let shown = thread::spawn({
        let cancel = cancel.clone();
        move || show(lines, renderer, &cancel)
    });
    let outcome = runtime.block_on(Box::pin(async {
        if let Err(e) = signals::watch(cancel.clone(), console.clone()) {
            return usage_outcome(Class::Internal, &format!("listening for signals: {e}"));
        }
        if let Some(deadline) = order.deadline {
            signals::arm(deadline, cancel.clone());
        }
        crate::build::run(order, config, events.clone(), cancel.clone()).await
    }));
    events.emit(Event::Result(outcome.clone()));
    drop(events);
    // The renderer ends at the result; a panic in it was told on standard error and changes nothing about the build.
    let _ = shown.join();
    outcome
}

/// Shows lines up to the result. When nobody reads, the build is asked to stop: its reader is its owner.
fn show(lines: Lines, mut renderer: Box<dyn Renderer>, cancel: &Cancel) {
    for line in lines {
        if let Err(error) = renderer.show(&line) {
            tracing::warn!(%error, "writing events");
            cancel.cancel(Reason::ReaderGone);
            return;
        }
        if matches!(line.event, Event::Result(_)) {
            return;
        }
    }
}

/// Ends a build that never began: told on standard error, to the result file and, for machines, as the last event.
fn refuse(result: Option<&std::path::Path>, output: Output, error: &UsageError, console: &Console) -> u8 {
    let outcome = usage_outcome(error.class(), &error.to_string());
    if let Some(path) = result {
        result_file::write(path, &outcome);
    }
    if output == Output::Json {
        let (events, lines) = events::channel();
        events.emit(Event::Result(outcome));
        drop(events);
        show(lines, Box::new(Json(io::stdout())), &Cancel::new());
    }
    exit::fail(console, error.class(), &error.to_string())
}

/// Tells the result file of a configuration that cannot be used.
pub(super) fn leave_usage_error(args: &OrderArgs, class: Class, message: &str) {
    let job = merge::read_job(args).ok().flatten();
    if let Some(path) = merge::result_file(args, job.as_deref()) {
        result_file::write(&path, &usage_outcome(class, message));
    }
}

/// The outcome of a build that never began.
pub(super) fn usage_outcome(class: Class, message: &str) -> Outcome {
    Outcome {
        status: Status::Failed,
        exit_code: class.exit_code(),
        message: message.to_owned(),
        class: Some(class),
        failures: vec![Failure { class, images: Vec::new(), layer: None, message: message.to_owned() }],
        images: Vec::new(),
        digest: None,
        totals: None,
        elapsed_ms: 0,
        truncated: false,
    }
}
