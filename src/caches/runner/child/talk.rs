//! What a builder says on standard output, line by line. It parses hostile input, so it is not trusted either.

use tokio::io::{AsyncRead, BufReader};
use tokio::sync::mpsc;

use serde::Deserialize;

use super::lines::next_line;
use super::process::Verdict;
use crate::caches::pull_secrets::Unusable;
use larder_model::escape::escape_to;
use larder_model::event::{Event, Line, Outcome, VERSION};

/// Longest line, bytes. A result names every image and why it failed.
const LONGEST_LINE: usize = 1 << 20;
/// Longest line of every other event, bytes: many of them may wait for whoever watches.
const LONGEST_EVENT: usize = 64 << 10;
/// How much of a line that is no event is told, characters.
const TOLD: usize = 80;

/// Passes events on until the result, which is answered and passed on with the names of unusable secrets in it. Nothing
/// is answered where the stream ends without one.
///
/// # Errors
/// What it wrote is not what a builder writes; `verdict` then says so already.
pub(super) async fn listen(
    stdout: impl AsyncRead + Unpin,
    unusable: &Unusable,
    to: &mpsc::Sender<Line>,
    verdict: &Verdict,
) -> Result<Option<Outcome>, String> {
    let mut stdout = BufReader::new(stdout);
    let heard = hear(&mut stdout, unusable, to).await;
    match heard {
        Err(_) => verdict.distrusted.cancel(),
        Ok(Some(_)) => {
            verdict.finished.cancel();
            // Nothing follows a result; what does is not heard, and the pipe stays open until the builder closes it.
            let _ = tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await;
        }
        Ok(None) => {}
    }
    heard
}

async fn hear(
    stdout: &mut (impl tokio::io::AsyncBufRead + Unpin),
    unusable: &Unusable,
    to: &mpsc::Sender<Line>,
) -> Result<Option<Outcome>, String> {
    while let Some(text) = next_line(stdout, LONGEST_LINE).await.map_err(|e| e.to_string())? {
        let Some(mut line) = event(&text)? else { continue };
        let outcome = match &mut line.event {
            Event::Result(outcome) => {
                unusable.name_in_outcome(outcome);
                Some(outcome.clone())
            }
            _ if text.len() > LONGEST_EVENT => {
                return Err(format!("it wrote an event of more than {LONGEST_EVENT} bytes"));
            }
            _ => None,
        };
        // Whoever ordered the build may have lost interest in how it goes.
        let _ = to.send(line).await;
        if outcome.is_some() {
            return Ok(outcome);
        }
    }
    Ok(None)
}

/// The event of a line; nothing where it is one that this version does not know.
///
/// # Errors
/// It is no event.
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
        Ok(Unknown { v, .. }) => Err(format!("it writes events of version {v}, this larder reads {VERSION}")),
        Err(_) => {
            Err(format!("it wrote what is no event: {}", escape_to(&String::from_utf8_lossy(text), TOLD)))
        }
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

    async fn heard(text: &str) -> (Result<Option<Outcome>, String>, usize, Verdict) {
        let (to, mut from) = mpsc::channel(100);
        let verdict = Verdict::default();
        let unusable = ["a:b"].into_iter().collect();
        let heard = listen(text.as_bytes(), &unusable, &to, &verdict).await;
        drop(to);
        let mut lines = 0;
        while from.recv().await.is_some() {
            lines += 1;
        }
        (heard, lines, verdict)
    }

    #[tokio::test]
    async fn events_up_to_the_result() {
        let unknown = r#"{"v":1,"time":"2026-01-01T00:00:00Z","event":"sang","song":{}}"#;
        let (heard, lines, verdict) = heard(&format!("{START}\n{unknown}\n{END}\ngarbage\n")).await;
        let outcome = heard.unwrap().unwrap();
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
        let long = |event: &str| event.replace("\"m\"", &format!("\"{}\"", "m".repeat(LONGEST_EVENT)));
        let (result, ..) = heard(&format!("{}\n", long(END))).await;
        assert!(result.unwrap().unwrap().message.len() > LONGEST_EVENT);
        let warning = r#"{"v":1,"time":"2026-01-01T00:00:00Z","event":"warning","message":"m"}"#;
        assert_eq!(heard(&format!("{warning}\n")).await.1, 1);
        let (result, lines, verdict) = heard(&format!("{}\n{END}\n", long(warning))).await;
        assert!(result.unwrap_err().contains("more than 65536 bytes"));
        assert!(verdict.distrusted.is_cancelled() && lines == 0);
    }

    #[tokio::test]
    async fn no_result() {
        for text in ["".to_owned(), format!("{START}\n")] {
            let (heard, _, verdict) = heard(&text).await;
            assert!(heard.unwrap().is_none());
            assert!(!verdict.finished.is_cancelled() && !verdict.distrusted.is_cancelled());
        }
    }

    #[tokio::test]
    async fn what_is_no_event_is_distrusted() {
        for (bad, said) in [
            ("", "no event"),
            ("gar\x1bbage", "gar\\u{1b}bage"),
            ("[]", "no event"),
            (r#"{"event":"started"}"#, "no event"),
            (r#"{"v":2,"event":"started"}"#, "version 2"),
            (&"x".repeat(LONGEST_LINE + 1), "more than 1048576 bytes"),
        ] {
            let (heard, lines, verdict) = heard(&format!("{START}\n{bad}\n{END}\n")).await;
            let error = heard.unwrap_err();
            assert!(error.contains(said) && error.len() < 300, "{error}");
            assert_eq!(lines, 1);
            assert!(verdict.distrusted.is_cancelled());
        }
    }
}
