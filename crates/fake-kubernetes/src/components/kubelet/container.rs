//! A container as a process of this machine (pkg/kubelet/kuberuntime/kuberuntime_container.go).

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::Command;
use tokio::sync::mpsc;

use super::super::super::kind::Id;
use super::super::super::object::{list, text};
use super::super::super::server::Shared;
use super::log::Log;
use super::mounts::Laid;
use super::{Node, exited};

/// Most bytes of a termination message; the last ones are kept (pkg/kubelet/container/runtime.go, MaxPodTerminationMessageLogLength
/// is for the pod, MaxContainerTerminationMessageLength for one).
const MAX_MESSAGE: u64 = 4096;
/// Most bytes and lines of the log in place of one.
const MAX_LOG: (usize, usize) = (2048, 80);

/// How a container is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kill {
    /// SIGTERM.
    Ask,
    /// SIGKILL.
    Now,
    /// SIGKILL by the kernel.
    OutOfMemory,
}

/// How a container ended.
#[derive(Debug)]
pub(super) struct Exit {
    pub(super) code: i32,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// A container to start.
#[derive(Debug)]
pub(in super::super::super) struct Order {
    id: Id,
    uid: String,
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(OsString, OsString)>,
    laid: Laid,
    log: Arc<Log>,
    kill: mpsc::UnboundedReceiver<Kill>,
}

impl Order {
    pub(super) fn new(
        node: &Node,
        id: Id,
        uid: String,
        container: &Value,
        laid: &Laid,
        log: Arc<Log>,
        kill: mpsc::UnboundedReceiver<Kill>,
    ) -> Self {
        let given = list(container, "/env").iter();
        let own =
            given.map(|entry| (text(entry, "/name").into(), laid.rewrite(text(entry, "/value")).into()));
        Order {
            id,
            uid,
            program: node.program.clone(),
            arguments: list(container, "/args")
                .iter()
                .filter_map(Value::as_str)
                .map(|a| laid.rewrite(a))
                .collect(),
            environment: node.environment.iter().cloned().chain(own).collect(),
            laid: laid.clone(),
            log,
            kill,
        }
    }
}

/// Starts a container; when it has ended, its pod says so.
pub(in super::super::super) fn start(shared: &Arc<Shared>, order: Order) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let (id, uid) = (order.id.clone(), order.uid.clone());
        let exit = run(order).await;
        shared.write(|state| exited(state, &id, &uid, &exit));
    });
}

async fn run(mut order: Order) -> Exit {
    // A mount of its own in a pod: what is renamed over it does not reach the kubelet.
    let message = File::open(&order.laid.termination.1);
    let child = Command::new(&order.program)
        .args(&order.arguments)
        .env_clear()
        .envs(order.environment.iter().cloned())
        .current_dir(&order.laid.pod)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(e) => {
            order.log.end();
            let message = format!("failed to create containerd task: exec {}: {e}", order.program.display());
            return Exit { code: 128, reason: "StartError", message };
        }
    };
    let process = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let heard = async { tokio::join!(hear(out, &order.log), hear(err, &order.log)) };
    let mut out_of_memory = false;
    let ended = async {
        let mut asked = false;
        loop {
            tokio::select! {
                status = child.wait() => return status,
                Some(kill) = order.kill.recv() => {
                    out_of_memory |= kill == Kill::OutOfMemory;
                    // The runtime asks the first process alone; with it all others end (runc kill, a cgroup's end).
                    let _ = match (kill, process) {
                        (Kill::Ask, Some(process)) if !asked => signal::kill(process, Signal::SIGTERM),
                        (Kill::Now | Kill::OutOfMemory, Some(process)) => signal::killpg(process, Signal::SIGKILL),
                        _ => Ok(()),
                    };
                    asked = true;
                }
            }
        }
    };
    let (status, _) = tokio::join!(ended, heard);
    order.log.end();
    let code = status.map_or(255, code_of);
    let reason = match code {
        0 => "Completed",
        _ if out_of_memory => "OOMKilled",
        _ => "Error",
    };
    let mut told = message.ok().and_then(|file| last_bytes(file).ok()).unwrap_or_default();
    if told.is_empty() && code != 0 && order.laid.termination.2 == "FallbackToLogsOnError" {
        told = order.log.last(MAX_LOG.0, MAX_LOG.1);
    }
    Exit { code, reason, message: told }
}

fn code_of(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

fn last_bytes(mut file: File) -> std::io::Result<String> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_MESSAGE)))?;
    let mut bytes = Vec::new();
    file.take(MAX_MESSAGE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Passes lines on to the log; a last one without an end as it is.
async fn hear(from: Option<impl AsyncRead + Unpin>, log: &Log) {
    let Some(from) = from else { return };
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
        log.add(&line);
        line.clear();
    }
}
