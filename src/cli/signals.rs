//! What ends a build from outside: signals and the deadline.

use std::io;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::signal::unix::{SignalKind, signal};

use crate::builder::cancel::{Cancel, Reason};
use crate::telemetry::Console;
use larder_sys::confine;

/// Watches for SIGINT and SIGTERM: the first cancels, the second ends the process at once.
pub(super) fn watch(cancel: Cancel, console: Console) -> io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    // The kernel has kept those that came while this process was being confined.
    confine::unblock()?;
    tokio::spawn(async move {
        let mut signalled = false;
        loop {
            let (reason, code) = tokio::select! {
                _ = interrupt.recv() => (Reason::Interrupt, 130),
                _ = terminate.recv() => (Reason::Terminate, 143),
            };
            if signalled {
                end(code);
            }
            signalled = true;
            cancel.cancel(reason);
            console.print("larder: stopping; once more to end at once\n");
        }
    });
    Ok(())
}

#[expect(
    clippy::exit,
    reason = "a second signal asks for the end without any waiting; committed layers stay"
)]
fn end(code: i32) {
    std::process::exit(code)
}

/// Cancels when `deadline` has passed.
pub(super) fn arm(deadline: DateTime<Utc>, cancel: Cancel) {
    tokio::spawn(async move {
        // By the wall clock, in steps: a sleep by the monotonic clock would miss a suspend or a clock that was set.
        while let Ok(left) = (deadline - Utc::now()).to_std() {
            tokio::time::sleep(left.min(Duration::from_secs(5))).await;
        }
        cancel.cancel(Reason::Deadline(deadline));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_deadline_in_the_past_cancels_at_once() {
        let cancel = Cancel::new();
        arm(DateTime::UNIX_EPOCH, cancel.clone());
        cancel.cancelled().await;
        assert_eq!(cancel.reason(), Some(Reason::Deadline(DateTime::UNIX_EPOCH)));
    }
}
