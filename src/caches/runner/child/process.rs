//! One child from its start to its end: fed, listened to, stopped, and killed where it does not obey.

use std::os::unix::process::ExitStatusExt as _;
use std::pin::pin;
use std::process::ExitStatus;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::words::Words;
use larder_model::size::ByteSize;
use larder_sys::cgroup::Cgroup;
use larder_sys::signal;

/// How long the pipes of a child that has ended may stay open: another process can hold them.
const DRAIN: Duration = Duration::from_secs(5);

/// A child in its control group that was told nothing yet.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    pid: u32,
    cgroup: Option<Cgroup>,
    stdin: ChildStdin,
    stderr: ChildStderr,
}

/// When a child has to end.
#[derive(Debug)]
pub(super) struct Rules<'a> {
    /// Asks it to stop.
    pub(super) stop: &'a CancellationToken,
    /// How long it may take to stop, and to end after its result.
    pub(super) grace: Duration,
    /// When it is killed whatever it says.
    pub(super) overdue: Instant,
}

/// What whoever reads a child's output makes of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdict {
    /// It wrote what it should not: it is killed at once.
    pub(super) distrusted: CancellationToken,
    /// It said its last: it has to end soon.
    pub(super) finished: CancellationToken,
}

/// How a child ended.
#[derive(Debug)]
pub(super) struct End {
    /// What the kernel says.
    pub(super) status: ExitStatus,
    /// Whether it was asked to stop before it ended.
    pub(super) asked: bool,
    /// Why it was killed by us.
    pub(super) killed: Option<Kill>,
    /// Whether the kernel killed it, or a child of it, at the limit of its memory.
    pub(super) out_of_memory: bool,
}

/// Why a child was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kill {
    /// It was not done in time.
    Overdue,
    /// It did not stop when it was asked to.
    Disobedient,
    /// It did not end after its result.
    Lingering,
    /// It wrote what it should not.
    Distrusted,
}

impl Process {
    /// Starts a child and puts it into its group while it waits for its standard input. To be called on a thread of the
    /// runtime: the kernel ends the child with the thread that started it (prctl(2), PR_SET_PDEATHSIG).
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
                let entered = tokio::task::spawn_blocking(move || group.add(pid).map(|()| group)).await;
                let entered = entered.map_err(|e| e.to_string())?;
                Some(entered.map_err(|e| format!("putting process {pid} into its control group: {e}"))?)
            }
        };
        Ok((Process { child, pid, cgroup, stdin, stderr }, stdout))
    }

    /// Hands over `input` and waits for the end. `reading` reads standard output and says what it makes of it by
    /// `verdict`; its answer is lost if it is not done soon after the child is gone.
    pub(super) async fn supervise<T>(
        self,
        input: &[u8],
        rules: Rules<'_>,
        verdict: &Verdict,
        words: &Words,
        of: &str,
        reading: impl Future<Output = T>,
    ) -> (std::io::Result<End>, Option<T>) {
        let Process { mut child, pid, cgroup, mut stdin, stderr } = self;
        let feeding = async move {
            // A child that does not take it ends without a result, and that is told.
            let _ = stdin.write_all(input).await;
        };
        let mut pipes = pin!(async { tokio::join!(feeding, words.listen(stderr, of), reading).2 });
        let mut read = None;
        let (status, asked, killed) = {
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
            // Somebody holds the pipes, so the group still has members and its number is nobody else's.
            let _ = signal::end_group(pid);
        }
        (status.map(|status| End { status, asked, killed, out_of_memory }), read)
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
    let (mut asked, mut finished, mut killed) = (false, false, None);
    loop {
        // Until it was waited for, its number is its own.
        let kill = tokio::select! {
            status = child.wait() => {
                // One whose output is not read any more may die of that before it is killed.
                let distrusted = verdict.distrusted.is_cancelled().then_some(Kill::Distrusted);
                return (status, asked, killed.or(distrusted));
            }
            () = verdict.distrusted.cancelled(), if killed.is_none() => Kill::Distrusted,
            () = sleep_until(at), if killed.is_none() => why,
            () = verdict.finished.cancelled(), if !finished => {
                finished = true;
                (at, why) = sooner(Kill::Lingering);
                continue;
            }
            () = rules.stop.cancelled(), if !asked => {
                asked = true;
                let _ = signal::terminate(pid);
                (at, why) = sooner(Kill::Disobedient);
                continue;
            }
        };
        killed = Some(kill);
        let _ = signal::end_group(pid);
        // A child that has not become leader of its group yet.
        let _ = signal::end(pid);
    }
}

/// Says whether the group ran out of memory, and removes it with whoever is left in it.
async fn release(cgroup: Option<Cgroup>) -> bool {
    let Some(group) = cgroup else { return false };
    let released = tokio::task::spawn_blocking(move || {
        let out_of_memory = group.ran_out_of_memory();
        if let Err(error) = group.remove() {
            tracing::warn!(%error, "removing the control group of a builder");
        }
        out_of_memory
    });
    released.await.unwrap_or(false)
}

impl End {
    /// What became of the builder, for a person. `memory` is its limit in bytes.
    pub(super) fn describe(&self, memory: u64, words: &str) -> String {
        let mut text = "the builder ".to_owned();
        text.push_str(&match self.killed {
            Some(Kill::Overdue) => "did not end in time and was killed".to_owned(),
            Some(Kill::Disobedient) => "did not stop when it was asked to and was killed".to_owned(),
            Some(Kill::Lingering) => "did not end after its result and was killed".to_owned(),
            Some(Kill::Distrusted) => "was killed for what it wrote".to_owned(),
            None => match (self.status.signal(), self.status.code()) {
                (Some(signal), _) => format!("was killed by signal {signal}"),
                (None, code) => format!("ended with exit code {}", code.unwrap_or_default()),
            },
        });
        if self.out_of_memory {
            text.push_str(&format!("; out of memory: its limit is {}", ByteSize(memory)));
        }
        if !words.is_empty() {
            text.push_str("; its last words: ");
            text.push_str(words);
        }
        text
    }
}
