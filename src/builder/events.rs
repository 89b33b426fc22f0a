//! The channel from the build to the display of its events.
//!
//! Emitting never blocks, so a stalled terminal or pipe cannot slow the build. Progress events are dropped
//! while too many events are unread. The number of other events is limited by the number of images and
//! layers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use chrono::Utc;

use larder_model::event::{Event, Line, VERSION};

/// Number of unread lines above which progress and retries are dropped.
const BACKLOG: usize = 1024;

/// The sending end, which the build holds. Clones share it.
#[derive(Clone, Debug)]
pub struct Events {
    sender: mpsc::Sender<Line>,
    unread: Arc<AtomicUsize>,
}

/// The receiving end, for the display.
#[derive(Debug)]
pub struct Lines {
    receiver: mpsc::Receiver<Line>,
    unread: Arc<AtomicUsize>,
}

/// The result of waiting for a line.
#[derive(Debug)]
pub enum NextLine {
    /// The next line.
    Line(Line),
    /// There was no line in time.
    Timeout,
    /// Every [`Events`] is dropped and all lines are read.
    Ended,
}

/// Creates a channel of events.
pub fn channel() -> (Events, Lines) {
    let (sender, receiver) = mpsc::channel();
    let unread = Arc::new(AtomicUsize::new(0));
    (Events { sender, unread: Arc::clone(&unread) }, Lines { receiver, unread })
}

impl Events {
    /// Emits `event` with the current time. Does nothing if the receiver is dropped.
    pub fn emit(&self, event: Event) {
        let dispensable = matches!(
            event,
            Event::LayerProgress { .. } | Event::Retried { .. } | Event::ConnectionReplaced { .. }
        );
        if dispensable && self.unread.load(Ordering::Relaxed) >= BACKLOG {
            return;
        }
        // Incremented before the event is sent, so that the reader never counts below zero.
        self.unread.fetch_add(1, Ordering::Relaxed);
        let _ = self.sender.send(Line { v: VERSION, time: Utc::now(), event });
    }
}

impl Lines {
    /// Waits for the next line, but not longer than `limit`.
    pub fn next_within(&mut self, limit: Duration) -> NextLine {
        match self.receiver.recv_timeout(limit) {
            Ok(line) => {
                self.unread.fetch_sub(1, Ordering::Relaxed);
                NextLine::Line(line)
            }
            Err(RecvTimeoutError::Timeout) => NextLine::Timeout,
            Err(RecvTimeoutError::Disconnected) => NextLine::Ended,
        }
    }
}

impl Iterator for Lines {
    type Item = Line;

    /// Waits for the next line. Returns `None` once every [`Events`] is dropped and all lines are read.
    fn next(&mut self) -> Option<Line> {
        let line = self.receiver.recv().ok()?;
        self.unread.fetch_sub(1, Ordering::Relaxed);
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_drops_progress_and_nothing_else() {
        let (events, lines) = channel();
        let blob = larder_model::digest::Digest::sha256(b"x");
        for received in 0..5000 {
            events.emit(Event::LayerProgress { blob: blob.clone(), received, written: 0 });
        }
        for layers in 0..10 {
            events.emit(Event::Synced { layers, elapsed_ms: 0 });
        }
        drop(events);
        let all: Vec<Line> = lines.collect();
        assert_eq!(all.len(), BACKLOG + 10);
        assert_eq!(all.iter().filter(|line| matches!(line.event, Event::Synced { .. })).count(), 10);
    }
}
