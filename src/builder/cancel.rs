//! Cancellation of a build. Only the first request counts, and it has a reason.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::sync::watch;

use larder_model::class::Class;

/// The reason to stop a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The signal SIGINT.
    Interrupt,
    /// The signal SIGTERM.
    Terminate,
    /// The deadline of the job passed.
    Deadline(DateTime<Utc>),
    /// The reader of the events closed the pipe.
    ReaderGone,
    /// A part of the build failed. That failure explains the end.
    Failed,
}

/// A cancellation handle. Clones share its state, and the first reason is kept.
#[derive(Clone, Debug)]
pub struct Cancel(Arc<watch::Sender<Option<Reason>>>);

impl Cancel {
    /// Creates a handle that is not cancelled.
    pub fn new() -> Self {
        Cancel(Arc::new(watch::Sender::new(None)))
    }

    /// Requests that the build stops. Returns `true` if this was the first request.
    pub fn cancel(&self, reason: Reason) -> bool {
        self.0.send_if_modified(|state| {
            let first = state.is_none();
            if first {
                *state = Some(reason);
            }
            first
        })
    }

    /// Stops the rest of a build after a part of it failed.
    pub fn stop(&self) {
        self.cancel(Reason::Failed);
    }

    /// Waits until the build is cancelled. Returns at once if it already is.
    pub async fn cancelled(&self) {
        let mut state = self.0.subscribe();
        // `wait_for` fails only if the sender is dropped, and `self` keeps it.
        let _ = state.wait_for(Option::is_some).await;
    }

    /// Returns the reason; `None` if the build is not cancelled.
    pub fn reason(&self) -> Option<Reason> {
        *self.0.borrow()
    }

    /// Returns the class and message of a build that ended only because it was cancelled. `None` if it was
    /// not cancelled, or a part of it failed.
    pub fn explanation(&self) -> Option<(Class, String)> {
        const RESUMES: &str = "the volume is kept, and the same command resumes it";
        match self.reason()? {
            Reason::Interrupt => Some((Class::Cancelled, format!("interrupted by SIGINT: {RESUMES}"))),
            Reason::Terminate => Some((Class::Cancelled, format!("interrupted by SIGTERM: {RESUMES}"))),
            Reason::ReaderGone => Some((
                Class::Cancelled,
                format!("the reader of the events closed standard output: {RESUMES}"),
            )),
            Reason::Deadline(at) => {
                let at = at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
                Some((Class::Busy, format!("the deadline {at} passed: {RESUMES}, with a later deadline")))
            }
            Reason::Failed => None,
        }
    }

    /// Returns 128 plus the signal number; `None` if no signal cancelled the build.
    pub fn exit_code(&self) -> Option<u8> {
        match self.reason()? {
            Reason::Interrupt => Some(130),
            Reason::Terminate => Some(143),
            Reason::Deadline(_) | Reason::ReaderGone | Reason::Failed => None,
        }
    }
}

impl Default for Cancel {
    fn default() -> Self {
        Cancel::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_reason_stays() {
        let cancel = Cancel::new();
        assert!(cancel.reason().is_none() && cancel.explanation().is_none());
        let waiting = tokio::spawn({
            let cancel = cancel.clone();
            async move { cancel.cancelled().await }
        });
        assert!(cancel.cancel(Reason::Terminate));
        assert!(!cancel.cancel(Reason::Interrupt));
        waiting.await.unwrap();
        cancel.cancelled().await;
        assert_eq!(cancel.exit_code(), Some(143));
        assert_eq!(cancel.explanation().unwrap().0, Class::Cancelled);
    }

    #[test]
    fn a_deadline_is_busy_and_a_failure_explains_nothing() {
        let cancel = Cancel::new();
        cancel.cancel(Reason::Deadline(DateTime::UNIX_EPOCH));
        let (class, message) = cancel.explanation().unwrap();
        assert_eq!(class, Class::Busy);
        assert!(message.contains("1970-01-01T00:00:00Z"), "{message}");
        let cancel = Cancel::new();
        cancel.stop();
        assert!(cancel.reason().is_some() && cancel.explanation().is_none() && cancel.exit_code().is_none());
    }
}
