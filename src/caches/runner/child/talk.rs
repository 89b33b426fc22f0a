//! Parser of a builder's standard output. The builder parses hostile input, so its output is not trusted
//! either.

use tokio::io::{AsyncRead, BufReader};
use tokio::sync::mpsc;

use serde::Deserialize;

use super::lines::next_line;
use super::process::Verdict;
use crate::caches::pull_secrets::Unusable;
use larder_model::escape::escape_to;
use larder_model::event::{Event, Line, Outcome, VERSION};

/// Maximum length of a line, bytes. A result names every image and the reason for its failure.
const MAX_LINE: usize = 1 << 20;
/// Maximum length of any other event, bytes. Many events can wait for a slow watcher.
const MAX_EVENT: usize = 64 << 10;
/// Maximum length of an invalid line in an error message, characters.
const MAX_QUOTED: usize = 80;

/// Forwards events up to the result. The result is also returned, with the names of unusable secrets added to
/// its messages. Returns `None` if the stream ends without a result.
///
/// # Errors
/// Returns a description of invalid output, after reporting it in `verdict`.
pub(super) async fn listen(
    stdout: impl AsyncRead + Unpin,
    unusable: &Unusable,
    to: &mpsc::Sender<Line>,
    verdict: &Verdict,
) -> Result<Option<Outcome>, String> {
    let mut stdout = BufReader::new(stdout);
    let result = read_events(&mut stdout, unusable, to).await;
    match result {
        Err(_) => verdict.distrusted.cancel(),
        Ok(Some(_)) => {
            verdict.finished.cancel();
            // Nothing follows a result. Read and discard the rest, so that the pipe stays open until the
            // builder closes it.
            let _ = tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await;
        }
        Ok(None) => {}
    }
    result
}

async fn read_events(
    stdout: &mut (impl tokio::io::AsyncBufRead + Unpin),
    unusable: &Unusable,
    to: &mpsc::Sender<Line>,
) -> Result<Option<Outcome>, String> {
    while let Some(text) = next_line(stdout, MAX_LINE).await.map_err(|e| e.to_string())? {
        let Some(mut line) = event(&text)? else { continue };
        let outcome = match &mut line.event {
            Event::Result(outcome) => {
                unusable.name_in_outcome(outcome);
                Some(outcome.clone())
            }
            _ if text.len() > MAX_EVENT => {
                return Err(format!("it wrote an event of more than {MAX_EVENT} bytes"));
            }
            _ => None,
        };
        // The receiver might be gone.
        let _ = to.send(line).await;
        if outcome.is_some() {
            return Ok(outcome);
        }
    }
    Ok(None)
}

/// Parses the event of a line. `None` if this version does not know the event.
///
/// # Errors
/// Fails if the line is not an event of this protocol version.
pub fn event(text: &[u8]) -> Result<Option<Line>, String> {
    #[derive(Deserialize)]
    struct Unknown {
        v: u32,
        #[serde(rename = "event")]
        _event: String,
    }
    match serde_json::from_slice::<Line>(text) {
        Ok(line) if line.v == VERSION => return Ok(Some(line)),
        _ => {}
    }
    match serde_json::from_slice::<Unknown>(text) {
        Ok(Unknown { v: VERSION, .. }) => Ok(None),
        Ok(Unknown { v, .. }) => Err(format!("it writes events of version {v}, supported is {VERSION}")),
        Err(_) => Err(format!(
            "it wrote a line that is not an event: {}",
            escape_to(&String::from_utf8_lossy(text), MAX_QUOTED)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &str =
        r#"{"v":1,"time":"2026-01-01T00:00:00Z","event":"started","larder":"0.1.0","images":2}"#;
    const END: &str = concat!(
        r#"{"v":1,"time":"2026-01-01T00:00:00Z","event":"result","status":"failed","exit_code":77,"message":"m","#,
        r#""class":"denied","failures":[{"class":"denied","message":"f"}],"elapsed_ms":1}"#
    );

    async fn run(text: &str) -> (Result<Option<Outcome>, String>, usize, Verdict) {
        let (to, mut from) = mpsc::channel(100);
        let verdict = Verdict::default();
        let unusable = ["a:b"].into_iter().collect();
        let result = listen(text.as_bytes(), &unusable, &to, &verdict).await;
        drop(to);
        let mut lines = 0;
        while from.recv().await.is_some() {
            lines += 1;
        }
        (result, lines, verdict)
    }

    #[tokio::test]
    async fn events_up_to_the_result() {
        let unknown = r#"{"v":1,"time":"2026-01-01T00:00:00Z","event":"sang","song":{}}"#;
        let (result, lines, verdict) = run(&format!("{START}\n{unknown}\n{END}\ngarbage\n")).await;
        let outcome = result.unwrap().unwrap();
        let words = "(no credential was found in the pull secret a:b)";
        assert_eq!(
            (outcome.message, &outcome.failures[0].message),
            (format!("m {words}"), &format!("f {words}"))
        );
        assert_eq!(lines, 2);
        assert!(verdict.finished.is_cancelled() && !verdict.distrusted.is_cancelled());
    }

    #[tokio::test]
    async fn only_a_result_is_long() {
        let long = |event: &str| event.replace("\"m\"", &format!("\"{}\"", "m".repeat(MAX_EVENT)));
        let (result, ..) = run(&format!("{}\n", long(END))).await;
        assert!(result.unwrap().unwrap().message.len() > MAX_EVENT);
        let warning = r#"{"v":1,"time":"2026-01-01T00:00:00Z","event":"warning","message":"m"}"#;
        assert_eq!(run(&format!("{warning}\n")).await.1, 1);
        let (result, lines, verdict) = run(&format!("{}\n{END}\n", long(warning))).await;
        assert!(result.unwrap_err().contains("more than 65536 bytes"));
        assert!(verdict.distrusted.is_cancelled() && lines == 0);
    }

    #[tokio::test]
    async fn no_result() {
        for text in ["".to_owned(), format!("{START}\n")] {
            let (result, _, verdict) = run(&text).await;
            assert!(result.unwrap().is_none());
            assert!(!verdict.finished.is_cancelled() && !verdict.distrusted.is_cancelled());
        }
    }

    #[tokio::test]
    async fn an_invalid_line_is_distrusted() {
        for (bad, expected) in [
            ("", "not an event"),
            ("gar\x1bbage", "gar\\u{1b}bage"),
            ("[]", "not an event"),
            (r#"{"event":"started"}"#, "not an event"),
            (r#"{"v":2,"event":"started"}"#, "version 2"),
            (&"x".repeat(MAX_LINE + 1), "more than 1048576 bytes"),
        ] {
            let (result, lines, verdict) = run(&format!("{START}\n{bad}\n{END}\n")).await;
            let error = result.unwrap_err();
            assert!(error.contains(expected) && error.len() < 300, "{error}");
            assert_eq!(lines, 1);
            assert!(verdict.distrusted.is_cancelled());
        }
    }
}
