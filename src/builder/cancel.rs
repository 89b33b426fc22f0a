//! Asking a build to stop, once, for one reason.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::sync::watch;

use larder_model::class::Class;

/// Why a build should stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// SIGINT.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// The job's deadline passed.
    Deadline(DateTime<Utc>),
    /// Nobody reads the events any more.
    ReaderGone,
    /// The build itself gives up because a part of it failed; that failure explains the end.
    Failed,
}

/// A handle to one request to stop; clones share it. The first reason given stays.
#[derive(Clone, Debug)]
pub struct Cancel(Arc<watch::Sender<Option<Reason>>>);

impl Cancel {
    /// A handle on which nothing was asked yet.
    pub fn new() -> Self {
        Cancel(Arc::new(watch::Sender::new(None)))
    }

    /// Asks to stop. Returns whether this was the first request.
    pub fn cancel(&self, reason: Reason) -> bool {
        self.0.send_if_modified(|state| {
            let first = state.is_none();
            if first {
                *state = Some(reason);
            }
            first
        })
    }

    /// Stops the rest of a build in which a part failed.
    pub fn stop(&self) {
        self.cancel(Reason::Failed);
    }

    /// Resolves when somebody asks to stop, at once if that has happened.
    pub async fn cancelled(&self) {
        let mut state = self.0.subscribe();
        // `wait_for` fails only when the sender is gone, and `self` keeps it.
        let _ = state.wait_for(Option::is_some).await;
    }

    /// Why, if anybody asked.
    pub fn reason(&self) -> Option<Reason> {
        *self.0.borrow()
    }

    /// The class and the sentence of a build that ends for no other reason than this request; none when nobody asked
    /// or a failure of the build's own is behind it.
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

    /// 128 and the number of the signal, where a signal asked.
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
