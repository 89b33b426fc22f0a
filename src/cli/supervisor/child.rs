//! A child process of the supervisor: starting it, reading its events and stopping it. It reads untrusted
//! bytes and is not trusted.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, BufReader};
use tokio::process::{ChildStderr, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::BuildParams;
use crate::builder::cancel::Cancel;
use crate::builder::events::Events;
use crate::builder::supervisor::{DescriptorPurpose, Greeting, MAX_LINE};
use crate::builder::wire;
use crate::caches::runner::child::{event, next_line};
use crate::cli::args::internal::{BuildChildArgs, ChildRole};
use crate::cli::outcome::usage_outcome;
use crate::config::environment;
use crate::telemetry;
use larder_model::class::Class;
use larder_model::event::{Event, Failure, Outcome};
use larder_model::plan_report::{PlanFailed, PlanReport};
use larder_sys::signal;

/// Maximum time until a child ends after its result.
pub(super) const LINGER: Duration = Duration::from_secs(20);
/// Maximum time to wait for the last messages of a child.
const MESSAGES: Duration = Duration::from_secs(1);
/// Maximum time to resolve the images again.
const RESOLVE: Duration = Duration::from_secs(600);
/// Maximum size of a report, bytes.
const MAX_REPORT: u64 = 16 << 20;
/// Maximum number of warnings that are forwarded from a child.
const MAX_WARNINGS: usize = 1000;

impl ChildRole {
    fn has_network(self) -> bool {
        matches!(self, ChildRole::Fetch | ChildRole::Resolve)
    }

    /// Reports whether a child of this role inherits the environment variable `name`.
    fn gets(self, name: &OsStr) -> bool {
        // Configuration variables are named `LARDER_<section>__<key>`. Others with that prefix belong to the
        // client and are secret.
        let bytes = name.as_encoded_bytes();
        let is_key = bytes.starts_with(b"LARDER_") && bytes.windows(2).any(|two| two == b"__");
        let configures = is_key || name == telemetry::LEVEL_VARIABLE;
        let fetches = self.has_network() && environment::NETWORK.iter().any(|passed| name == *passed);
        let general = environment::GENERAL.iter().any(|passed| name == *passed) || name == "RUST_BACKTRACE";
        configures || fetches || general
    }
}

/// The final report of a child.
#[derive(Debug)]
pub(super) struct ChildReport {
    /// The outcome of the child.
    pub(super) outcome: Outcome,
    /// The event that the volume is sealed. It is forwarded only once the disk is sealed too.
    pub(super) sealed: Option<Event>,
    /// `true` if the child committed a layer or found one on the volume.
    pub(super) has_layers: bool,
}

impl ChildReport {
    pub(super) fn failed(class: Class, message: &str) -> Self {
        ChildReport { outcome: usage_outcome(class, message), sealed: None, has_layers: false }
    }
}

/// A running child. Killed when it is dropped.
#[derive(Debug)]
pub(super) struct Child {
    process: tokio::process::Child,
    role: ChildRole,
    warnings: usize,
    output: BufReader<ChildStdout>,
    /// Forwards the child's standard error.
    messages: Option<JoinHandle<()>>,
}

impl Child {
    /// Starts a child and sends it the greeting. Also returns the connection for the child's requests. The
    /// kernel kills the child when the thread that calls this function ends.
    ///
    /// # Errors
    /// The process cannot be started, or ends immediately.
    pub(super) fn start(
        params: &BuildParams,
        role: ChildRole,
        mounted_at: Option<PathBuf>,
        mut greeting: Greeting,
        fetching: Option<BorrowedFd<'_>>,
    ) -> io::Result<(Self, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = Command::new("/proc/self/exe");
        let args = BuildChildArgs {
            role,
            supervisor: std::process::id(),
            mounted_at,
            size: params.computed_size.get().map(|size| size.0),
            arguments: params.argv.iter().skip(1).cloned().collect(),
        };
        command
            .arg0("larder")
            .args(args.to_arguments())
            .env_clear()
            .envs(env::vars_os().filter(|(name, _): &(OsString, _)| role.gets(name)))
            // Pass the path, because the inherited directory can be hidden below a mount that was made later.
            .current_dir(env::current_dir()?)
            // A terminal signals its whole process group. The supervisor forwards the signal once.
            .process_group(0)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            // Do not pass the file or terminal itself: a child could change its mode, or write terminal
            // escape sequences.
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut process = command.spawn()?;
        let stdout = process.stdout.take().ok_or_else(|| io::Error::other("it has no standard output"))?;
        let messages = process.stderr.take().map(|stderr| tokio::spawn(pass_on(stderr)));
        let mut descriptors = Vec::new();
        if let Some(fetching) = fetching {
            greeting.descriptors.push(DescriptorPurpose::Fetching);
            descriptors.push(fetching);
        }
        if let Some(archive) = &params.archive {
            greeting.descriptors.push(DescriptorPurpose::Archive);
            descriptors.push(archive.as_fd());
        }
        wire::send(&ours, &greeting, &[], &descriptors)?;
        Ok((Child { process, role, warnings: 0, output: BufReader::new(stdout), messages }, ours))
    }

    /// Reads events until the child ends. Forwards them, except for the final ones, which it returns.
    pub(super) async fn run(mut self, events: &Events, cancel: &Cancel) -> ChildReport {
        let mut report = ChildReport::failed(Class::Internal, "");
        let mut result = None;
        let mut stop_by = None;
        let fault = loop {
            tokio::select! {
                line = next_line(&mut self.output, MAX_LINE) => match line.map_err(|e| e.to_string()) {
                    Err(fault) => break Some(fault),
                    Ok(None) => break None,
                    Ok(Some(text)) => match event(&text) {
                        Err(fault) => break Some(fault),
                        Ok(None) => {}
                        Ok(Some(line)) => match line.event {
                            Event::Result(outcome) => result = Some(outcome),
                            event @ Event::Sealed { .. } => report.sealed = Some(event),
                            event @ Event::Warning { .. } => self.warn(events, event),
                            event if self.role == ChildRole::Fill => {
                                report.has_layers |= has_layer(&event);
                                events.emit(event);
                            }
                            _ => {}
                        },
                    },
                },
                () = cancel.cancelled(), if stop_by.is_none() => {
                    stop_by = Some(Instant::now() + LINGER);
                    self.ask_to_stop();
                }
                () = sleep_until(stop_by.unwrap_or_else(Instant::now)), if stop_by.is_some() => {
                    break Some("it did not stop when requested".to_owned());
                }
            }
        };
        if fault.is_some() {
            let _ = self.process.start_kill();
        }
        let status = self.ended().await;
        // A child that gets the signal before it handles signals is killed by it.
        let ended_by_request = matches!(&status, Ok(status) if signal::ended_by_request(*status));
        if stop_by.is_some() && result.is_none() && ended_by_request {
            return ChildReport::failed(Class::Cancelled, "interrupted");
        }
        report.outcome = verdict(result, fault, status);
        report
    }

    /// Forwards the events of a fetcher until it ends, which happens when the extractor closes the
    /// connection. Returns the reason if it failed, because that can explain the extractor's error.
    pub(super) async fn forward_events(mut self, events: Events) -> Option<String> {
        let fault = loop {
            match next_line(&mut self.output, MAX_LINE).await.map_err(|e| e.to_string()) {
                Err(fault) => break Some(fault),
                Ok(None) => break None,
                Ok(Some(text)) => match event(&text) {
                    Err(fault) => break Some(fault),
                    Ok(Some(line)) => match line.event {
                        event @ (Event::Retried { .. }
                        | Event::ConnectionReplaced { .. }
                        | Event::RegistryAnswers { .. }
                        | Event::Transferred { .. }) => events.emit(event),
                        event @ Event::Warning { .. } => self.warn(&events, event),
                        _ => {}
                    },
                    Ok(None) => {}
                },
            }
        };
        if fault.is_some() {
            let _ = self.process.start_kill();
        }
        match (fault, self.ended().await) {
            (Some(fault), _) => Some(format!("the fetcher was killed: {fault}")),
            (None, Ok(status)) if status.success() => None,
            (None, Ok(status)) => Some(format!("the fetcher ended with {status}")),
            (None, Err(e)) => Some(format!("waiting for the fetcher: {e}")),
        }
    }

    /// Returns the report of a child that resolves images, or the failures.
    pub(super) async fn report(mut self) -> Result<PlanReport, Vec<Failure>> {
        let mut text = Vec::new();
        let read = timeout(RESOLVE, (&mut self.output).take(MAX_REPORT).read_to_end(&mut text)).await;
        if read.is_err() {
            let _ = self.process.start_kill();
        }
        let read = read.unwrap_or_else(|e| Err(e.into()));
        let status = self.ended().await;
        let failed =
            |what: String| vec![Failure::job(Class::Internal, format!("resolving the images: {what}"))];
        read.map_err(|e| failed(e.to_string()))?;
        if let Ok(report) = serde_json::from_slice::<PlanReport>(&text) {
            return Ok(report);
        }
        match (serde_json::from_slice::<PlanFailed>(&text), status) {
            (Ok(PlanFailed { failures, .. }), _) => Err(failures),
            (Err(_), Ok(status)) => Err(failed(format!("the process ended with {status}"))),
            (Err(_), Err(e)) => Err(failed(e.to_string())),
        }
    }

    /// Forwards a warning. The limit prevents a compromised child from filling the logs.
    fn warn(&mut self, events: &Events, warning: Event) {
        self.warnings += 1;
        match self.warnings {
            ..=MAX_WARNINGS => events.emit(warning),
            n if n == MAX_WARNINGS + 1 => {
                let message = format!(
                    "a process of the build sent more than {MAX_WARNINGS} warnings; further warnings are not shown"
                );
                events.emit(Event::Warning { message });
            }
            _ => {}
        }
    }

    fn ask_to_stop(&self) {
        if let Some(pid) = self.process.id() {
            // The process might have ended by itself.
            let _ = signal::terminate(pid);
        }
    }

    async fn ended(&mut self) -> io::Result<ExitStatus> {
        let status = match timeout(LINGER, self.process.wait()).await {
            Ok(status) => status,
            Err(_) => {
                let _ = self.process.start_kill();
                self.process.wait().await
            }
        };
        if let Some(messages) = self.messages.take() {
            // Wait for its last messages, but not for a grandchild that keeps standard error open.
            let _ = timeout(MESSAGES, messages).await;
        }
        status
    }
}

/// Reports whether an event means that the volume has a layer.
fn has_layer(event: &Event) -> bool {
    matches!(event, Event::LayerCommitted { .. } | Event::LayerPresent { .. })
}

/// Copies a child's standard error to that of this process, without control characters.
async fn pass_on(mut from: ChildStderr) {
    let mut buffer = [0; 8192];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let mut text = buffer[..read].to_vec();
        text.retain(|byte| !byte.is_ascii_control() || matches!(byte, b'\n' | b'\t'));
        // A write error means that standard error is closed, so the text is dropped.
        let _ = crate::blocking::spawn(move || io::stderr().write_all(&text)).await;
    }
}

/// Returns the outcome of a child. A result is accepted only if the exit code matches it.
fn verdict(result: Option<Outcome>, fault: Option<String>, status: io::Result<ExitStatus>) -> Outcome {
    let how = match &status {
        Ok(status) => status.to_string(),
        Err(e) => format!("an unknown status: {e}"),
    };
    let died =
        |why: &str| usage_outcome(Class::Internal, &format!("the extractor {why}; it ended with {how}"));
    let code = status.as_ref().ok().and_then(ExitStatus::code);
    match (fault, result) {
        (Some(fault), _) => died(&format!("was killed: {fault}")),
        (None, Some(outcome)) if code == Some(i32::from(outcome.exit_code)) => outcome,
        (None, Some(_)) => died("returned a result that does not match its exit code"),
        (None, None) if code.is_none() => died("was killed, possibly because memory ran out"),
        (None, None) => died("returned no result"),
    }
}
