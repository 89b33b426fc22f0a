//! A child of the supervisor: started, listened to and asked to stop. It reads untrusted bytes and is not trusted.

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

use super::Keeping;
use crate::builder::cancel::Cancel;
use crate::builder::events::Events;
use crate::builder::keeper::{Greeting, MAX_LINE, Passed, Refusal};
use crate::builder::wire;
use crate::caches::runner::child::{event, next_line};
use crate::cli::build::usage_outcome;
use crate::config::environment;
use crate::telemetry;
use larder_model::class::Class;
use larder_model::event::{Event, Outcome};
use larder_model::plan_report::{PlanFailed, PlanReport};
use larder_sys::signal;

/// How long a child may take to end after its result.
pub(super) const LINGER: Duration = Duration::from_secs(20);
/// How long the last messages of a child can take.
const MESSAGES: Duration = Duration::from_secs(1);
/// How long images can take to be resolved again.
const RESOLVE: Duration = Duration::from_secs(600);
/// Maximum size of a report, bytes.
const MAX_REPORT: u64 = 16 << 20;
/// Maximum number of warnings of a child that are passed on.
const MAX_WARNINGS: usize = 1000;

/// What a child does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum Role {
    /// Fill the volume: the extractor.
    Fill,
    /// Remove what no line of the journal vouches for.
    Sweep,
    /// The same on a disk that was not unmounted in order, and prove what is left.
    Prove,
    /// Fetch for the extractor.
    Fetch,
    /// Resolve the images, for the supervisor to compare.
    Resolve,
}

impl Role {
    pub(super) fn name(self) -> &'static str {
        match self {
            Role::Fill => "fill",
            Role::Sweep => "sweep",
            Role::Prove => "prove",
            Role::Fetch => "fetch",
            Role::Resolve => "resolve",
        }
    }

    fn has_network(self) -> bool {
        matches!(self, Role::Fetch | Role::Resolve)
    }

    /// Whether a child of this role gets the variable.
    fn gets(self, name: &OsStr) -> bool {
        // Configuration is `LARDER_<section>__<key>`. Others of that prefix are a client's, and secret.
        let bytes = name.as_encoded_bytes();
        let is_key = bytes.starts_with(b"LARDER_") && bytes.windows(2).any(|two| two == b"__");
        let configures = is_key || name == telemetry::LEVEL_VARIABLE;
        let fetches = self.has_network() && environment::NETWORK.iter().any(|passed| name == *passed);
        let general = environment::GENERAL.iter().any(|passed| name == *passed) || name == "RUST_BACKTRACE";
        configures || fetches || general
    }
}

/// What a child reported.
#[derive(Debug)]
pub(super) struct Said {
    /// How it ended.
    pub(super) outcome: Outcome,
    /// That the volume is sealed; passed on when the disk is, too.
    pub(super) sealed: Option<Event>,
}

impl Said {
    pub(super) fn failed(class: Class, message: &str) -> Self {
        Said { outcome: usage_outcome(class, message), sealed: None }
    }
}

/// A running child. Killed when it is dropped.
#[derive(Debug)]
pub(super) struct Child {
    process: tokio::process::Child,
    role: Role,
    warnings: usize,
    output: BufReader<ChildStdout>,
    /// Passes on what it writes on standard error.
    messages: Option<JoinHandle<()>>,
}

impl Child {
    /// Starts a child and greets it. Also returns the connection by which it asks. The kernel ends the child with the thread that
    /// calls this.
    ///
    /// # Errors
    /// The process cannot be started, or ends at once.
    pub(super) fn start(
        keeping: &Keeping,
        role: Role,
        volume: Option<PathBuf>,
        mut greeting: Greeting,
        fetching: Option<BorrowedFd<'_>>,
    ) -> io::Result<(Self, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = Command::new("/proc/self/exe");
        let own = std::process::id().to_string();
        command.arg0("larder").args(["--kept", role.name(), "--kept-by", &own]);
        if let Some(volume) = volume {
            command.arg("--kept-volume").arg(volume);
        }
        command
            .args(keeping.argv.iter().skip(1))
            .env_clear()
            .envs(env::vars_os().filter(|(name, _): &(OsString, _)| role.gets(name)))
            // By its path: a directory that is mounted over lies below the mount for a process that was in it before.
            .current_dir(env::current_dir()?)
            // A terminal interrupts its whole group; the supervisor passes it on, once.
            .process_group(0)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            // Not the file or terminal itself: a child could change its mode, or write what a terminal takes for commands.
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut process = command.spawn()?;
        let stdout = process.stdout.take().ok_or_else(|| io::Error::other("it has no standard output"))?;
        let messages = process.stderr.take().map(|stderr| tokio::spawn(pass_on(stderr)));
        let mut descriptors = Vec::new();
        if let Some(fetching) = fetching {
            greeting.descriptors.push(Passed::Fetching);
            descriptors.push(fetching);
        }
        if let Some(archive) = &keeping.archive {
            greeting.descriptors.push(Passed::Archive);
            descriptors.push(archive.as_fd());
        }
        wire::send(&ours, &greeting, &[], &descriptors)?;
        Ok((Child { process, role, warnings: 0, output: BufReader::new(stdout), messages }, ours))
    }

    /// Listens until it ends. Events are passed on, except for the end, which is returned.
    pub(super) async fn run(mut self, events: &Events, cancel: &Cancel) -> Said {
        let mut said = Said::failed(Class::Internal, "");
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
                            event @ Event::Sealed { .. } => said.sealed = Some(event),
                            event @ Event::Warning { .. } => self.warn(events, event),
                            event if self.role == Role::Fill => events.emit(event),
                            _ => {}
                        },
                    },
                },
                () = cancel.cancelled(), if stop_by.is_none() => {
                    stop_by = Some(Instant::now() + LINGER);
                    self.ask_to_stop();
                }
                () = sleep_until(stop_by.unwrap_or_else(Instant::now)), if stop_by.is_some() => {
                    break Some("it did not stop when it was asked to".to_owned());
                }
            }
        };
        if fault.is_some() {
            let _ = self.process.start_kill();
        }
        let status = self.ended().await;
        // Asked before it could listen, it ends as by any other signal.
        let ended_by_request = matches!(&status, Ok(status) if signal::ended_by_request(*status));
        if stop_by.is_some() && result.is_none() && ended_by_request {
            return Said::failed(Class::Cancelled, "interrupted");
        }
        said.outcome = verdict(result, fault, status);
        said
    }

    /// Passes on the events of a fetcher until it ends, which it does when the extractor is gone. Returns how it ended if that is a
    /// reason for what the extractor lacks.
    pub(super) async fn attend(mut self, events: Events) -> Option<String> {
        let fault = loop {
            match next_line(&mut self.output, MAX_LINE).await.map_err(|e| e.to_string()) {
                Err(fault) => break Some(fault),
                Ok(None) => break None,
                Ok(Some(text)) => match event(&text) {
                    Err(fault) => break Some(fault),
                    Ok(Some(line)) => match line.event {
                        event @ (Event::Retried { .. } | Event::RegistryAnswers { .. }) => events.emit(event),
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
            (Some(fault), _) => Some(format!("the process that fetches was ended: {fault}")),
            (None, Ok(status)) if status.success() => None,
            (None, Ok(status)) => Some(format!("the process that fetches ended with {status}")),
            (None, Err(e)) => Some(format!("waiting for the process that fetches: {e}")),
        }
    }

    /// The report of a child that resolves.
    pub(super) async fn report(mut self) -> Result<PlanReport, Refusal> {
        let mut text = Vec::new();
        let read = timeout(RESOLVE, (&mut self.output).take(MAX_REPORT).read_to_end(&mut text)).await;
        if read.is_err() {
            let _ = self.process.start_kill();
        }
        let read = read.unwrap_or_else(|e| Err(e.into()));
        let status = self.ended().await;
        let failed =
            |what: String| Refusal::new(Class::Internal, format!("resolving the images again: {what}"));
        read.map_err(|e| failed(e.to_string()))?;
        if let Ok(report) = serde_json::from_slice::<PlanReport>(&text) {
            return Ok(report);
        }
        match (serde_json::from_slice::<PlanFailed>(&text), status) {
            (Ok(PlanFailed { failures, .. }), _) => {
                let class = Class::decisive(failures.iter().map(|failure| failure.class));
                let messages: Vec<String> = failures.into_iter().map(|failure| failure.message).collect();
                let message = format!("resolving the images again: {}", messages.join("; "));
                Err(Refusal::new(class.unwrap_or(Class::Internal), message))
            }
            (Err(_), Ok(status)) => Err(failed(format!("it ended with {status}"))),
            (Err(_), Err(e)) => Err(failed(e.to_string())),
        }
    }

    /// Passes a warning on. A child that was taken over cannot fill logs with them.
    fn warn(&mut self, events: &Events, warning: Event) {
        self.warnings += 1;
        match self.warnings {
            ..=MAX_WARNINGS => events.emit(warning),
            n if n == MAX_WARNINGS + 1 => {
                let message = format!(
                    "a process of the build gave more than {MAX_WARNINGS} warnings: no more are shown"
                );
                events.emit(Event::Warning { message });
            }
            _ => {}
        }
    }

    fn ask_to_stop(&self) {
        if let Some(pid) = self.process.id() {
            // It may have ended by itself.
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
            // Its last words; a process of its own that outlives it does not keep this one.
            let _ = timeout(MESSAGES, messages).await;
        }
        status
    }
}

/// Writes what a child writes on standard error to that of this process, without control characters.
async fn pass_on(mut from: ChildStderr) {
    let mut buffer = [0; 8192];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let mut text = buffer[..read].to_vec();
        text.retain(|byte| !byte.is_ascii_control() || matches!(byte, b'\n' | b'\t'));
        // Where nobody reads it, it is lost.
        let _ = tokio::task::spawn_blocking(move || io::stderr().write_all(&text)).await;
    }
}

/// A result counts only from a process that ends as the result says.
fn verdict(result: Option<Outcome>, fault: Option<String>, status: io::Result<ExitStatus>) -> Outcome {
    let how = match &status {
        Ok(status) => status.to_string(),
        Err(e) => format!("waiting for it: {e}"),
    };
    let died = |why: &str| {
        usage_outcome(
            Class::Internal,
            &format!("the process that fills the volume {why}; it ended with {how}"),
        )
    };
    let code = status.as_ref().ok().and_then(ExitStatus::code);
    match (fault, result) {
        (Some(fault), _) => died(&format!("was ended: {fault}")),
        (None, Some(outcome)) if code == Some(i32::from(outcome.exit_code)) => outcome,
        (None, Some(_)) => died("gave a result and did not end as that says"),
        (None, None) if code.is_none() => died("was killed, by somebody or because memory ran out"),
        (None, None) => died("gave no result"),
    }
}
