//! A container as a process of this machine (pkg/kubelet/kuberuntime/kuberuntime_container.go).

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::Command;
use tokio::sync::mpsc;

use super::super::super::kind::Id;
use super::super::super::node::{Kill, Log, Node, PodLayout, StartRequest};
use super::super::super::object::{list, text};
use super::super::super::shared::Shared;
use super::exited;

/// Maximum size of a termination message, in bytes. The last bytes are kept
/// (pkg/kubelet/container/runtime.go: MaxPodTerminationMessageLogLength applies to the pod,
/// MaxContainerTerminationMessageLength to a container).
const MAX_MESSAGE: u64 = 4096;
/// Maximum bytes and lines of the log that replace a missing termination message.
const MAX_LOG: (usize, usize) = (2048, 80);

/// Result of a container.
#[derive(Debug)]
pub(super) struct Exit {
    pub(super) code: i32,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl StartRequest {
    pub(super) fn new(
        node: &Node,
        id: Id,
        uid: String,
        container: &Value,
        layout: &PodLayout,
        log: Arc<Log>,
        kill: mpsc::UnboundedReceiver<Kill>,
    ) -> Self {
        let given = list(container, "/env").iter();
        let own =
            given.map(|entry| (text(entry, "/name").into(), layout.rewrite(text(entry, "/value")).into()));
        StartRequest {
            id,
            uid,
            program: node.program.clone(),
            arguments: list(container, "/args")
                .iter()
                .filter_map(Value::as_str)
                .map(|a| layout.rewrite(a))
                .collect(),
            environment: node.environment.iter().cloned().chain(own).collect(),
            layout: layout.clone(),
            log,
            kill,
        }
    }
}

/// Starts a container. When it ends, updates the status of its pod.
pub(in super::super::super) fn start(shared: &Arc<Shared>, request: StartRequest) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let (id, uid) = (request.id.clone(), request.uid.clone());
        let exit = run(request).await;
        shared.write(|state| exited(state, &id, &uid, &exit));
    });
}

async fn run(mut request: StartRequest) -> Exit {
    // The message file is a mount of its own in a real pod: a file renamed over it does not reach the
    // kubelet.
    let message = File::open(&request.layout.termination.1);
    let child = Command::new(&request.program)
        .args(&request.arguments)
        .env_clear()
        .envs(request.environment.iter().cloned())
        .current_dir(&request.layout.pod)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(e) => {
            request.log.end();
            let message =
                format!("failed to create containerd task: exec {}: {e}", request.program.display());
            return Exit { code: 128, reason: "StartError", message };
        }
    };
    let process = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let copied = async { tokio::join!(copy_lines(out, &request.log), copy_lines(err, &request.log)) };
    let mut out_of_memory = false;
    let ended = async {
        let mut terminated = false;
        loop {
            tokio::select! {
                status = child.wait() => return status,
                Some(kill) = request.kill.recv() => {
                    out_of_memory |= kill == Kill::OutOfMemory;
                    // The runtime signals only the first process; the others end with it (runc kill, end of
                    // the cgroup).
                    let _ = match (kill, process) {
                        (Kill::Terminate, Some(process)) if !terminated => signal::kill(process, Signal::SIGTERM),
                        (Kill::Now | Kill::OutOfMemory, Some(process)) => signal::killpg(process, Signal::SIGKILL),
                        _ => Ok(()),
                    };
                    terminated = true;
                }
            }
        }
    };
    let (status, _) = tokio::join!(ended, copied);
    request.log.end();
    let code = status.map_or(255, code_of);
    let reason = match code {
        0 => "Completed",
        _ if out_of_memory => "OOMKilled",
        _ => "Error",
    };
    let mut message = message.ok().and_then(|file| last_bytes(file).ok()).unwrap_or_default();
    if message.is_empty() && code != 0 && request.layout.termination.2 == "FallbackToLogsOnError" {
        message = request.log.last(MAX_LOG.0, MAX_LOG.1);
    }
    Exit { code, reason, message }
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

/// Copies lines to the log. A last line without a line end is copied unchanged.
async fn copy_lines(from: Option<impl AsyncRead + Unpin>, log: &Log) {
    let Some(from) = from else { return };
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
        log.add(&line);
        line.clear();
    }
}
