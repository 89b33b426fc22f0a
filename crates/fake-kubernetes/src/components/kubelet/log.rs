//! The log of a container: standard output and standard error, line by line (pkg/kubelet/kuberuntime/logs/logs.go).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// What a container said.
#[derive(Debug, Default)]
pub(in super::super::super) struct Log {
    said: Mutex<Said>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Said {
    text: Vec<u8>,
    over: bool,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line, its end included.
    pub(super) fn add(&self, line: &[u8]) {
        self.lock().text.extend_from_slice(line);
        self.more.notify_waiters();
    }

    /// The container has ended.
    pub(super) fn end(&self) {
        self.lock().over = true;
        self.more.notify_waiters();
    }

    /// The last bytes and lines, as `FallbackToLogsOnError` takes them (pkg/kubelet/container/runtime.go).
    pub(super) fn last(&self, bytes: usize, lines: usize) -> String {
        let said = self.lock();
        let from = said.text.len().saturating_sub(bytes);
        let text = String::from_utf8_lossy(&said.text[from..]).into_owned();
        let all: Vec<_> = text.split_inclusive('\n').collect();
        all[all.len().saturating_sub(lines)..].concat()
    }
}

/// A reader of a log.
#[derive(Debug)]
pub(in super::super::super) struct Tail {
    log: Arc<Log>,
    at: usize,
    follow: bool,
    left: usize,
}

impl Tail {
    /// Reads the last `lines` lines (all where none is given), at most `bytes` bytes, and with `follow` on to the end of the
    /// container.
    pub(in super::super::super) fn new(
        log: Arc<Log>,
        follow: bool,
        lines: Option<usize>,
        bytes: Option<usize>,
    ) -> Self {
        let at = match lines {
            None => 0,
            Some(lines) => {
                let said = log.lock();
                let ends = said.text.iter().enumerate().rev().filter(|(_, sign)| **sign == b'\n');
                ends.map(|(at, _)| at + 1).nth(lines).unwrap_or(0)
            }
        };
        Tail { log, at, follow, left: bytes.unwrap_or(usize::MAX) }
    }

    /// The next piece; none at the end.
    pub(in super::super::super) async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let log = Arc::clone(&self.log);
            let more = log.more.notified();
            tokio::pin!(more);
            // Armed before looking, so that nothing is said in between unheard.
            more.as_mut().enable();
            {
                let said = self.log.lock();
                let piece = &said.text[self.at..];
                let piece = &piece[..piece.len().min(self.left)];
                if !piece.is_empty() {
                    self.at += piece.len();
                    self.left -= piece.len();
                    return Some(piece.to_vec());
                }
                if said.over || !self.follow || self.left == 0 {
                    return None;
                }
            }
            more.await;
        }
    }
}
