//! What a child says on standard error: each line to the log, the end kept for whoever asks why it died.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt as _};

use larder_model::escape::escape;

/// How much of the end is kept, bytes.
const KEPT: usize = 4096;
/// Longest line of the log, bytes; a longer one becomes several.
const LONGEST_LINE: usize = 2048;

/// The end of what was said so far.
#[derive(Debug, Default)]
pub(super) struct Words(Mutex<VecDeque<u8>>);

impl Words {
    /// Takes up what is said until the end of the stream. `of` is what the log calls the child.
    pub(super) async fn listen(&self, mut from: impl AsyncRead + Unpin, of: &str) {
        let mut buffer = [0; KEPT];
        let mut line = Vec::new();
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            for byte in &buffer[..count] {
                if *byte != b'\n' {
                    line.push(*byte);
                }
                if *byte == b'\n' || line.len() == LONGEST_LINE {
                    log(of, &mut line);
                }
            }
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend(&buffer[..count]);
            let surplus = kept.len().saturating_sub(KEPT);
            kept.drain(..surplus);
        }
        log(of, &mut line);
    }

    /// The last of it in one line, fit for a terminal; empty where nothing was said.
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
        tracing::debug!(cache = of, "builder: {}", escape(&String::from_utf8_lossy(line)));
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_is_kept() {
        let words = Words::default();
        assert_eq!(words.last(), "");
        words.listen(&b"one\n\n  two\x1b[2J\xff\n"[..], "x").await;
        assert_eq!(words.last(), "one | two\\u{1b}[2J\u{fffd}");
        let long = "a".repeat(100_000) + "\nthe end\n";
        words.listen(long.as_bytes(), "x").await;
        let last = words.last();
        assert!(last.ends_with("a | the end") && last.len() <= KEPT + 3, "{}", last.len());
    }
}
