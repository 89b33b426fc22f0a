//! The process that fills the disk: started, heard and asked to stop. It parses what strangers wrote and is not trusted.

use std::env;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Socket;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{ChildStdout, Command};
use tokio::time::timeout;

use super::Keeping;
use super::mounts::Mounts;
use crate::build::cancel::Cancel;
use crate::build::events::Events;
use crate::build::keeper::{Greeting, LONGEST_LINE};
use crate::caches::runner::child::{event, next_line};
use crate::cli::build::usage_outcome;
use crate::model::class::Class;
use crate::model::event::{Event, Outcome};
use crate::sys::signal;

/// How long it may take to end after its result.
const LINGER: Duration = Duration::from_secs(20);

/// What it is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum Role {
    /// Fill the volume.
    Fill,
    /// Remove what no line of the journal vouches for.
    Sweep,
    /// The same on a disk that was not unmounted in order, and prove what is left.
    Prove,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::Fill => "fill",
            Role::Sweep => "sweep",
            Role::Prove => "prove",
        }
    }
}

/// What it said.
#[derive(Debug)]
pub(super) struct Said {
    /// How it ended.
    pub(super) outcome: Outcome,
    /// That the volume is sealed; to be told when the disk is, too.
    pub(super) sealed: Option<Event>,
}

impl Said {
    pub(super) fn failed(class: Class, message: &str) -> Self {
        Said { outcome: usage_outcome(class, message), sealed: None }
    }
}

/// A running one. Killed when it is dropped.
#[derive(Debug)]
pub(super) struct Child {
    process: tokio::process::Child,
    role: Role,
    events: BufReader<ChildStdout>,
    requests: BufReader<OwnedReadHalf>,
    replies: OwnedWriteHalf,
    greeting: Greeting,
}

impl Child {
    /// Starts it. It must be called on the thread that lives as long as this process: the kernel ends the child with it.
    pub(super) fn start(keeping: &Keeping, role: Role, volume: Option<PathBuf>) -> io::Result<Self> {
        let (ours, theirs) = Socket::pair()?;
        ours.set_nonblocking(true)?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("larder").args(["--kept", role.name()]);
        if let Some(volume) = volume {
            command.arg("--kept-volume").arg(volume);
        }
        command
            .args(keeping.argv.iter().skip(1))
            // By its path: a directory that is mounted over lies below the mount for who was in it before.
            .current_dir(env::current_dir()?)
            // A terminal interrupts its whole group; the keeper passes it on, once.
            .process_group(0)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut process = command.spawn()?;
        let stdout = process.stdout.take().ok_or_else(|| io::Error::other("it has no standard output"))?;
        let (requests, replies) = UnixStream::from_std(ours)?.into_split();
        Ok(Child {
            process,
            role,
            events: BufReader::new(stdout),
            requests: BufReader::new(requests),
            replies,
            greeting: Greeting { job: keeping.job.clone() },
        })
    }

    /// Hears it to its end. Events are passed on, but for the end, which is answered.
    pub(super) async fn run(mut self, events: &Events, cancel: &Cancel, mut mounts: Mounts) -> Said {
        let mut said = Said::failed(Class::Internal, "");
        let mut result = None;
        if let Err(e) = say(&mut self.replies, &self.greeting).await {
            tracing::warn!(error = %e, "handing the job on");
        }
        let (mut asked, mut talks) = (false, true);
        let fault = loop {
            tokio::select! {
                line = next_line(&mut self.events, LONGEST_LINE) => match line.map_err(|e| e.to_string()) {
                    Err(fault) => break Some(fault),
                    Ok(None) => break None,
                    Ok(Some(text)) => match event(&text) {
                        Err(fault) => break Some(fault),
                        Ok(None) => {}
                        Ok(Some(line)) => match line.event {
                            Event::Result(outcome) => result = Some(outcome),
                            event @ Event::Sealed { .. } => said.sealed = Some(event),
                            event @ Event::Warning { .. } => events.emit(event),
                            event if self.role == Role::Fill => events.emit(event),
                            _ => {}
                        },
                    },
                },
                line = next_line(&mut self.requests, LONGEST_LINE), if talks => {
                    let request = line.ok().flatten().and_then(|line| serde_json::from_slice(&line).ok());
                    let Some(request) = request else { talks = false; continue };
                    let answering = tokio::task::spawn_blocking(move || {
                        let reply = mounts.answer(request);
                        (mounts, reply)
                    });
                    let Ok((back, reply)) = answering.await else { break Some("mounting for it ended".into()) };
                    mounts = back;
                    talks = say(&mut self.replies, &reply).await.is_ok();
                }
                () = cancel.cancelled(), if !asked => {
                    asked = true;
                    if let Some(pid) = self.process.id() {
                        // It may have ended by itself.
                        let _ = signal::terminate(pid);
                    }
                }
            }
        };
        if fault.is_some() {
            let _ = self.process.start_kill();
        }
        let status = match timeout(LINGER, self.process.wait()).await {
            Ok(status) => status,
            Err(_) => {
                let _ = self.process.start_kill();
                self.process.wait().await
            }
        };
        // Asked before it could listen, it ends as by any other signal.
        let ended_by_request = matches!(&status, Ok(status) if signal::ended_by_request(*status));
        if asked && result.is_none() && ended_by_request {
            return Said::failed(Class::Cancelled, "interrupted");
        }
        said.outcome = verdict(result, fault, status);
        said
    }
}

/// A result counts only from a process that ends as the result says.
fn verdict(result: Option<Outcome>, fault: Option<String>, status: io::Result<ExitStatus>) -> Outcome {
    let how = match &status {
        Ok(status) => status.to_string(),
        Err(e) => format!("waiting for it: {e}"),
    };
    let died = |why: &str| {
        usage_outcome(Class::Internal, &format!("the process that fills the disk {why}; it ended with {how}"))
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

async fn say(to: &mut OwnedWriteHalf, what: &impl serde::Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    to.write_all(&line).await
}
