//! Reports the reason why a build waits, so that a tenant sees it before the timeout.

use std::time::{Duration, Instant};

use chrono::Utc;
use tokio::sync::mpsc;

use larder_model::event::{Event, Line, VERSION};

/// One wait of a build, from its start or from the last time that the build continued.
pub(super) struct Waits<'a> {
    lines: &'a mpsc::Sender<Line>,
    interval: Duration,
    since: Instant,
    due: Instant,
    reported: Option<String>,
}

impl<'a> Waits<'a> {
    /// Starts a wait. Its reason is due after `interval`, and again at this interval.
    pub(super) fn new(lines: &'a mpsc::Sender<Line>, interval: Duration) -> Self {
        let since = Instant::now();
        Waits { lines, interval, since, due: since + interval, reported: None }
    }

    /// Returns how long the build has waited.
    pub(super) fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }

    /// Reports whether it is time to look for the reason. The next time is `interval` later.
    pub(super) fn is_due(&mut self) -> bool {
        let due = Instant::now() >= self.due;
        if due {
            self.due = Instant::now() + self.interval;
        }
        due
    }

    /// Reports a reason, unless it is the same as the last one.
    pub(super) fn report(&mut self, reason: String) {
        if self.reported.as_ref() != Some(&reason) {
            self.emit(Some(reason.clone()));
            self.reported = Some(reason);
        }
    }

    /// Notes that the build continues. The wait starts again.
    pub(super) fn end(&mut self) {
        if self.reported.take().is_some() {
            self.emit(None);
        }
        self.since = Instant::now();
        self.due = self.since + self.interval;
    }

    fn emit(&self, reason: Option<String>) {
        // A reader that lags behind gets the next line.
        let _ = self.lines.try_send(Line { v: VERSION, time: Utc::now(), event: Event::Waiting { reason } });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_reason_is_reported_once() {
        let (lines, mut received) = mpsc::channel(16);
        let mut waits = Waits::new(&lines, Duration::ZERO);
        assert!(waits.is_due());
        for reason in ["no node", "no node", "no disk"] {
            waits.report(reason.to_owned());
        }
        waits.end();
        waits.end();
        waits.report("no disk".to_owned());
        drop(lines);
        let mut reported = Vec::new();
        while let Ok(Line { event: Event::Waiting { reason }, .. }) = received.try_recv() {
            reported.push(reason.unwrap_or_default());
        }
        assert_eq!(reported, ["no node", "no disk", "", "no disk"]);
    }

    #[test]
    fn a_short_wait_is_not_due() {
        let (lines, _received) = mpsc::channel(1);
        assert!(!Waits::new(&lines, Duration::from_secs(60)).is_due());
    }
}
