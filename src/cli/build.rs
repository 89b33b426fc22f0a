//! `larder build`: one job in, one sealed volume out.

use std::ffi::OsString;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use chrono::{DateTime, Utc};
use tokio::runtime::{self, Runtime};

use super::args::{OrderArgs, Output};
use super::keeper::{self, Role};
use super::output::json::Json;
use super::output::terminal::Terminal;
use super::output::text::Text;
use super::output::{Renderer, result_file, stdout, summary};
use super::{confine, exit, merge, role, signals};
use crate::archive::Input;
use crate::builder::cancel::{Cancel, Reason};
use crate::builder::events::{self, Events, Lines};
use crate::builder::order::SourceOrder;
use crate::config::Config;
use crate::keys;
use crate::telemetry::Console;
use larder_model::class::Class;
use larder_model::event::{Event, Failure, Outcome, Status};
use larder_model::trust::Claims;

/// The arguments of this process, and its role if a supervisor started it.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) argv: Vec<OsString>,
    /// Role of this process. `None` if no supervisor started it.
    pub(super) kept: Option<Role>,
    /// Directory where the supervisor mounted a device.
    pub(super) kept_volume: Option<PathBuf>,
    /// Process ID of the supervisor.
    pub(super) kept_by: Option<u32>,
}

/// Runs the command and returns its exit code.
pub(super) fn run(args: OrderArgs, call: Call, config: Config, console: &Console) -> u8 {
    match call.kept {
        Some(role) => role::run(args, role, call, config, console),
        None => supervise(args, call, config, console),
    }
}

/// Runs the build in child processes of this process.
fn supervise(args: OrderArgs, call: Call, config: Config, console: &Console) -> u8 {
    let output = args.output;
    let refuse = |result: Option<&Path>, class, message: &dyn Display| {
        refuse(result, output, class, &message.to_string(), console)
    };
    // Do this first: reading the job can block on a supervisor that has already ended.
    if let Err(e) = confine::settle(&args) {
        return refuse(args.result_file.as_deref(), e.class(), &e);
    }
    let job = match merge::read_job(&args) {
        Ok(job) => job,
        Err(e) => return refuse(args.result_file.as_deref(), e.class(), &e),
    };
    let result = merge::result_file(&args, job.as_deref());
    let disk_options = args.disk;
    let claims = Claims { name: args.sign_name.clone(), sequence: args.sign_sequence };
    let order = match merge::order(args, job.as_deref(), &config, merge::Purpose::Build) {
        Ok(order) => order,
        Err(e) => return refuse(result.as_deref(), e.class(), &e),
    };
    let signer = match order.sign_key.as_deref().map(keys::signing).transpose() {
        Ok(key) => key.map(|key| key.with_claims(claims)),
        Err(e) => return refuse(result.as_deref(), e.class(), &e),
    };
    let archive = match &order.source {
        SourceOrder::Archive { path, .. } if path == Path::new("-") => match Input::keep() {
            Ok(file) => Some(file),
            Err(e) => return refuse(result.as_deref(), e.class(), &e),
        },
        _ => None,
    };
    if order.volume_kind.is_disk()
        && let Err(e) = keeper::enter_namespace(order.share.as_ref().map(|share| &*share.dir))
    {
        return refuse(result.as_deref(), e.class(), &e);
    }
    let volume = order.volume.clone();
    let job = job.map(|job| String::from_utf8_lossy(&job).into_owned());
    let params = keeper::BuildParams { order, config, disk_options, argv: call.argv, job, signer, archive };
    // This thread starts the children, and Linux ties them to it. The runtime's thread handles signals even
    // while this one waits for a slow reader of events.
    let outcome = match runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => {
            let (events, lines) = events::channel();
            let sender = events.clone();
            let work = move |cancel| keeper::supervise(params, sender, cancel);
            let outcome = carry_out(&runtime, work, None, (events, lines), output, console);
            runtime.shutdown_background();
            outcome
        }
        Err(e) => usage_outcome(Class::Internal, &format!("starting the supervisor: {e}")),
    };
    end(&outcome, result.as_deref(), output, &volume, console)
}

/// Reports the outcome and returns the exit code.
pub(super) fn end(
    outcome: &Outcome,
    result: Option<&Path>,
    output: Output,
    volume: &Path,
    console: &Console,
) -> u8 {
    if let Some(path) = result {
        result_file::write(path, outcome);
    }
    match outcome.status {
        Status::Ok if output == Output::Text => stdout::print(console, &summary::sealed(outcome, volume)),
        Status::Ok => outcome.exit_code,
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
    output: Output,
    console: &Console,
) -> Outcome {
    let cancel = Cancel::new();
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

/// Shows events up to the result. If the output is closed, cancels the build, because its reader is its
/// owner.
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

/// Reports a build that never started: on standard error, in the result file and, for JSON output, as the
/// last event.
pub(super) fn refuse(
    result: Option<&Path>,
    output: Output,
    class: Class,
    message: &str,
    console: &Console,
) -> u8 {
    let outcome = usage_outcome(class, message);
    if let Some(path) = result {
        result_file::write(path, &outcome);
    }
    if output == Output::Json {
        let (events, lines) = events::channel();
        events.emit(Event::Result(outcome));
        drop(events);
        show(lines, Box::new(Json(io::stdout())), &Cancel::new());
    }
    exit::fail(console, class, message)
}

/// Writes a configuration error to the result file, if the job has one.
pub(super) fn leave_usage_error(args: &OrderArgs, class: Class, message: &str) {
    let job = merge::read_job(args).ok().flatten();
    if let Some(path) = merge::result_file(args, job.as_deref()) {
        result_file::write(&path, &usage_outcome(class, message));
    }
}

/// Returns the outcome of a build that never started.
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
