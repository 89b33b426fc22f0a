//! The way of an event from the build to whatever shows it.
//!
//! Emitting never waits, so a terminal or a pipe that stands still cannot slow the build. What is not essential is
//! dropped while too much is unread; the rest is bounded by the number of images and layers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use chrono::Utc;

use larder_model::event::{Event, Line, VERSION};

/// Unread lines above which progress and retries are dropped.
const BACKLOG: usize = 1024;

/// The build's end; clones share it.
#[derive(Clone, Debug)]
pub struct Events {
    sender: mpsc::Sender<Line>,
    unread: Arc<AtomicUsize>,
}

/// The end that shows events.
#[derive(Debug)]
pub struct Lines {
    receiver: mpsc::Receiver<Line>,
    unread: Arc<AtomicUsize>,
}

/// A channel of events.
pub fn channel() -> (Events, Lines) {
    let (sender, receiver) = mpsc::channel();
    let unread = Arc::new(AtomicUsize::new(0));
    (Events { sender, unread: Arc::clone(&unread) }, Lines { receiver, unread })
}

impl Events {
    /// Says that `event` happened now. Does nothing when nobody listens.
    pub fn emit(&self, event: Event) {
        let dispensable = matches!(event, Event::LayerProgress { .. } | Event::Retried { .. });
        if dispensable && self.unread.load(Ordering::Relaxed) >= BACKLOG {
            return;
        }
        // Counted before it is sent, so that the reader never counts below zero.
        self.unread.fetch_add(1, Ordering::Relaxed);
        let _ = self.sender.send(Line { v: VERSION, time: Utc::now(), event });
    }
}

impl Iterator for Lines {
    type Item = Line;

    /// The next line; waits for it. None once every [`Events`] is dropped and all is read.
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
            events.emit(Event::Synced { layers });
        }
        drop(events);
        let all: Vec<Line> = lines.collect();
        assert_eq!(all.len(), BACKLOG + 10);
        assert_eq!(all.iter().filter(|line| matches!(line.event, Event::Synced { .. })).count(), 10);
    }
}
