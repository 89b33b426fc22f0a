//! External reasons for the end of a build: signals and the deadline.

use std::io;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::signal::unix::{SignalKind, signal};

use crate::builder::cancel::{Cancel, Reason};
use crate::telemetry::Console;
use larder_sys::confine;

/// Handles SIGINT and SIGTERM: the first cancels, the second ends the process immediately.
pub(super) fn watch(cancel: Cancel, console: Console) -> io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    // The kernel has queued the signals that arrived while this process was being confined.
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
            console.print("larder: stopping; press Ctrl-C again to quit immediately\n");
        }
    });
    Ok(())
}

#[expect(clippy::exit, reason = "a second signal requests an immediate exit; committed layers are kept")]
fn end(code: i32) {
    std::process::exit(code)
}

/// Cancels when `deadline` has passed.
pub(super) fn arm(deadline: DateTime<Utc>, cancel: Cancel) {
    tokio::spawn(async move {
        // Use the wall clock, in steps: a sleep on the monotonic clock misses a suspend or a change of the
        // clock.
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
