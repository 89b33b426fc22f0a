//! Bounded reading of lines from an untrusted process.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _};

/// The reason why a line cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The line does not end within the limit.
    #[error("it wrote a line of more than {limit} bytes")]
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// Reading from the pipe failed.
    #[error("reading its output: {0}")]
    Read(io::Error),
}

/// Reads the next line without its line end, at most `limit` bytes. `None` at the end of the stream. An
/// unterminated last line is returned too.
///
/// # Errors
/// Fails if the line is too long or the pipe fails.
pub async fn next_line(
    from: &mut (impl AsyncBufRead + Unpin),
    limit: usize,
) -> Result<Option<Vec<u8>>, LineError> {
    let mut line = Vec::new();
    loop {
        let bytes = from.fill_buf().await.map_err(LineError::Read)?;
        if bytes.is_empty() {
            return Ok((!line.is_empty()).then_some(line));
        }
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let piece = &bytes[..end.unwrap_or(bytes.len())];
        if line.len() + piece.len() > limit {
            return Err(LineError::TooLong { limit });
        }
        line.extend_from_slice(piece);
        let used = piece.len() + usize::from(end.is_some());
        from.consume(used);
        if end.is_some() {
            return Ok(Some(line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(text: &str, limit: usize) -> Result<Vec<String>, LineError> {
        // A buffer of three bytes splits the lines into pieces.
        let mut from = tokio::io::BufReader::with_capacity(3, text.as_bytes());
        let mut found = Vec::new();
        while let Some(line) = next_line(&mut from, limit).await? {
            found.push(String::from_utf8(line).unwrap());
        }
        Ok(found)
    }

    #[tokio::test]
    async fn lines_up_to_the_limit() {
        assert_eq!(lines("one\n\nthree\nlast", 5).await.unwrap(), ["one", "", "three", "last"]);
        assert_eq!(lines("", 5).await.unwrap(), [""; 0]);
        assert_eq!(lines("12345\n", 5).await.unwrap(), ["12345"]);
        for long in ["123456\n", "123456", "1\n12345678"] {
            assert!(matches!(lines(long, 5).await, Err(LineError::TooLong { limit: 5 })), "{long}");
        }
    }
}
