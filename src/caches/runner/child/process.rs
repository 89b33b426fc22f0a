//! Supervision of one child process: input, output, stop and kill.

use std::os::unix::process::ExitStatusExt as _;
use std::pin::pin;
use std::process::ExitStatus;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::stderr_tail::StderrTail;
use larder_model::size::ByteSize;
use larder_sys::cgroup::Cgroup;
use larder_sys::signal;

/// Maximum time for which the pipes of an ended child can stay open, because another process can have them.
const DRAIN: Duration = Duration::from_secs(5);

/// A child in its control group that has not received its input.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    pid: u32,
    cgroup: Option<Cgroup>,
    stdin: ChildStdin,
    stderr: ChildStderr,
}

/// The conditions under which a child must end.
#[derive(Debug)]
pub(super) struct Rules<'a> {
    /// Requests the child to stop.
    pub(super) stop: &'a CancellationToken,
    /// Time that the child has to stop, and to end after its result.
    pub(super) grace: Duration,
    /// Time at which the child is killed unconditionally.
    pub(super) overdue: Instant,
}

/// The findings of the reader of a child's output.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdict {
    /// The child wrote invalid output and is killed at once.
    pub(super) distrusted: CancellationToken,
    /// The child wrote its result and must end soon.
    pub(super) finished: CancellationToken,
}

/// The way in which a child ended.
#[derive(Debug)]
pub(super) struct End {
    /// Exit status from the kernel.
    pub(super) status: ExitStatus,
    /// `true` if a stop was requested before the child ended.
    pub(super) stop_requested: bool,
    /// The reason why the daemon killed it, if it did.
    pub(super) killed: Option<Kill>,
    /// `true` if the kernel killed the child, or a descendant, at the memory limit.
    pub(super) out_of_memory: bool,
}

/// The reason why the daemon killed a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kill {
    /// The child exceeded its deadline.
    Overdue,
    /// The child did not stop on request.
    Disobedient,
    /// The child did not end after its result.
    Lingering,
    /// The child wrote invalid output.
    Distrusted,
}

impl Process {
    /// Starts a child and adds it to its control group while it waits for its standard input. Call this on a
    /// thread of the runtime: the kernel kills the child when the thread that started it ends (prctl(2),
    /// PR_SET_PDEATHSIG).
    pub(super) async fn start(
        mut command: Command,
        cgroup: Option<Cgroup>,
    ) -> Result<(Self, ChildStdout), String> {
        let program = command.as_std().get_program().to_owned();
        let mut child =
            command.spawn().map_err(|e| format!("starting {}: {e}", program.to_string_lossy()))?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(pid), (Some(stdin), Some(stdout), Some(stderr))) = (child.id(), pipes) else {
            return Err("the child has no pipes".to_owned());
        };
        let cgroup = match cgroup {
            None => None,
            Some(group) => {
                let entered = crate::blocking::spawn(move || group.add(pid).map(|()| group)).await;
                let entered = entered.map_err(|e| e.to_string())?;
                Some(entered.map_err(|e| format!("adding process {pid} to its control group: {e}"))?)
            }
        };
        Ok((Process { child, pid, cgroup, stdin, stderr }, stdout))
    }

    /// Writes `input` to the child and waits for its end. `reading` reads standard output and reports its
    /// findings in `verdict`. Its result is dropped if it does not finish soon after the child.
    pub(super) async fn supervise<T>(
        self,
        input: &[u8],
        rules: Rules<'_>,
        verdict: &Verdict,
        tail: &StderrTail,
        of: &str,
        reading: impl Future<Output = T>,
    ) -> (std::io::Result<End>, Option<T>) {
        let Process { mut child, pid, cgroup, mut stdin, stderr } = self;
        let feeding = async move {
            // A child that does not read it ends without a result, which is reported.
            let _ = stdin.write_all(input).await;
        };
        let mut pipes = pin!(async { tokio::join!(feeding, tail.listen(stderr, of), reading).2 });
        let mut read = None;
        let (status, stop_requested, killed) = {
            let mut ending = pin!(ending(&mut child, pid, &rules, verdict));
            loop {
                tokio::select! {
                    ended = &mut ending => break ended,
                    answer = &mut pipes, if read.is_none() => read = Some(answer),
                }
            }
        };
        let out_of_memory = release(cgroup).await;
        if read.is_none() {
            read = timeout(DRAIN, &mut pipes).await.ok();
        }
        if read.is_none() {
            // Another process has the pipes open, so the process group still has members and its ID cannot be
            // reused.
            let _ = signal::end_group(pid);
        }
        (status.map(|status| End { status, stop_requested, killed, out_of_memory }), read)
    }
}

async fn ending(
    child: &mut Child,
    pid: u32,
    rules: &Rules<'_>,
    verdict: &Verdict,
) -> (std::io::Result<ExitStatus>, bool, Option<Kill>) {
    let mut limit = (rules.overdue, Kill::Overdue);
    let mut sooner = |why| {
        let at = Instant::now() + rules.grace;
        if at < limit.0 {
            limit = (at, why);
        }
        limit
    };
    let (mut at, mut why) = (rules.overdue, Kill::Overdue);
    let (mut stop_requested, mut finished, mut killed) = (false, false, None);
    loop {
        // The process ID cannot be reused before the child is waited for.
        let kill = tokio::select! {
            status = child.wait() => {
                // A child whose output is no longer read can die of that before it is killed.
                let distrusted = verdict.distrusted.is_cancelled().then_some(Kill::Distrusted);
                return (status, stop_requested, killed.or(distrusted));
            }
            () = verdict.distrusted.cancelled(), if killed.is_none() => Kill::Distrusted,
            () = sleep_until(at), if killed.is_none() => why,
            () = verdict.finished.cancelled(), if !finished => {
                finished = true;
                (at, why) = sooner(Kill::Lingering);
                continue;
            }
            () = rules.stop.cancelled(), if !stop_requested => {
                stop_requested = true;
                let _ = signal::terminate(pid);
                (at, why) = sooner(Kill::Disobedient);
                continue;
            }
        };
        killed = Some(kill);
        let _ = signal::end_group(pid);
        // For a child that is not yet the leader of its process group.
        let _ = signal::end(pid);
    }
}

/// Returns `true` if the control group ran out of memory. Deletes the group, with any process left in it.
async fn release(cgroup: Option<Cgroup>) -> bool {
    let Some(group) = cgroup else { return false };
    let released = crate::blocking::spawn(move || {
        let out_of_memory = group.ran_out_of_memory();
        if let Err(error) = group.remove() {
            tracing::warn!(%error, "cannot remove the control group of a builder");
        }
        out_of_memory
    });
    released.await.unwrap_or(false)
}

impl End {
    /// Describes the end of the builder for people. `memory` is its limit in bytes.
    pub(super) fn describe(&self, memory: u64, last_output: &str) -> String {
        let mut text = "the builder ".to_owned();
        text.push_str(&match self.killed {
            Some(Kill::Overdue) => "did not end in time and was killed".to_owned(),
            Some(Kill::Disobedient) => "did not stop on request and was killed".to_owned(),
            Some(Kill::Lingering) => "did not end after its result and was killed".to_owned(),
            Some(Kill::Distrusted) => "was killed because its output was invalid".to_owned(),
            None => match (self.status.signal(), self.status.code()) {
                (Some(signal), _) => format!("was killed by signal {signal}"),
                (None, code) => format!("ended with exit code {}", code.unwrap_or_default()),
            },
        });
        if self.out_of_memory {
            text.push_str(&format!("; out of memory: its limit is {}", ByteSize(memory)));
        }
        if !last_output.is_empty() {
            text.push_str("; its last output: ");
            text.push_str(last_output);
        }
        text
    }
}
