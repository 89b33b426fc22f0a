//! The log of a container: standard output and standard error, line by line
//! (pkg/kubelet/kuberuntime/logs/logs.go).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Output of a container.
#[derive(Debug, Default)]
pub(in super::super) struct Log {
    output: Mutex<Output>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Output {
    text: Vec<u8>,
    over: bool,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a line, including its end.
    pub(in super::super) fn add(&self, line: &[u8]) {
        self.lock().text.extend_from_slice(line);
        self.more.notify_waiters();
    }

    /// Marks the end of the container.
    pub(in super::super) fn end(&self) {
        self.lock().over = true;
        self.more.notify_waiters();
    }

    /// Returns the last bytes and lines, as `FallbackToLogsOnError` does (pkg/kubelet/container/runtime.go).
    pub(in super::super) fn last(&self, bytes: usize, lines: usize) -> String {
        let output = self.lock();
        let from = output.text.len().saturating_sub(bytes);
        let text = String::from_utf8_lossy(&output.text[from..]).into_owned();
        let all: Vec<_> = text.split_inclusive('\n').collect();
        all[all.len().saturating_sub(lines)..].concat()
    }
}

/// Reader of a log that can follow it.
#[derive(Debug)]
pub(in super::super) struct Tail {
    log: Arc<Log>,
    at: usize,
    follow: bool,
    left: usize,
}

impl Tail {
    /// Reads the last `lines` lines (all if `None`), up to `bytes` bytes. With `follow`, continues until the
    /// container ends.
    pub(in super::super) fn new(
        log: Arc<Log>,
        follow: bool,
        lines: Option<usize>,
        bytes: Option<usize>,
    ) -> Self {
        let at = match lines {
            None => 0,
            Some(lines) => {
                let output = log.lock();
                let ends = output.text.iter().enumerate().rev().filter(|(_, sign)| **sign == b'\n');
                ends.map(|(at, _)| at + 1).nth(lines).unwrap_or(0)
            }
        };
        Tail { log, at, follow, left: bytes.unwrap_or(usize::MAX) }
    }

    /// Returns the next piece, or `None` at the end.
    pub(in super::super) async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let log = Arc::clone(&self.log);
            let more = log.more.notified();
            tokio::pin!(more);
            // Register for notifications before reading, so that no line in between is missed.
            more.as_mut().enable();
            {
                let output = self.log.lock();
                let piece = &output.text[self.at..];
                let piece = &piece[..piece.len().min(self.left)];
                if !piece.is_empty() {
                    self.at += piece.len();
                    self.left -= piece.len();
                    return Some(piece.to_vec());
                }
                if output.over || !self.follow || self.left == 0 {
                    return None;
                }
            }
            more.await;
        }
    }
}
