//! Standard error of a child: each line is logged, and the end is kept for error messages.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt as _};

use larder_model::escape::escape;

/// Maximum length of the kept end, bytes.
const MAX_TAIL: usize = 4096;
/// Maximum length of a log line, bytes. A longer line is split.
const MAX_LOG_LINE: usize = 2048;

/// The end of a child's standard error so far.
#[derive(Debug, Default)]
pub(super) struct StderrTail(Mutex<VecDeque<u8>>);

impl StderrTail {
    /// Reads the stream to its end. `of` is the child's name in the log.
    pub(super) async fn listen(&self, mut from: impl AsyncRead + Unpin, of: &str) {
        let mut buffer = [0; MAX_TAIL];
        let mut line = Vec::new();
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            for byte in &buffer[..count] {
                if *byte != b'\n' {
                    line.push(*byte);
                }
                if *byte == b'\n' || line.len() == MAX_LOG_LINE {
                    log(of, &mut line);
                }
            }
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend(&buffer[..count]);
            let surplus = kept.len().saturating_sub(MAX_TAIL);
            kept.drain(..surplus);
        }
        log(of, &mut line);
    }

    /// Returns the kept end as one line that is safe for a terminal. Empty if there was no output.
    pub(super) fn last(&self) -> String {
        let kept: Vec<u8> = self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        let text = String::from_utf8_lossy(&kept);
        let lines: Vec<String> =
            text.lines().map(str::trim).filter(|line| !line.is_empty()).map(escape).collect();
        lines.join(" | ")
    }
}

fn log(of: &str, line: &mut Vec<u8>) {
    if !line.is_empty() {
        tracing::debug!(builder = of, "builder: {}", escape(&String::from_utf8_lossy(line)));
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_is_kept() {
        let tail = StderrTail::default();
        assert_eq!(tail.last(), "");
        tail.listen(&b"one\n\n  two\x1b[2J\xff\n"[..], "x").await;
        assert_eq!(tail.last(), "one | two\\u{1b}[2J\u{fffd}");
        let long = "a".repeat(100_000) + "\nthe end\n";
        tail.listen(long.as_bytes(), "x").await;
        let last = tail.last();
        assert!(last.ends_with("a | the end") && last.len() <= MAX_TAIL + 3, "{}", last.len());
    }
}
