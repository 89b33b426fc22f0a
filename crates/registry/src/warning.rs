//! Warnings of a registry for the user: `Warning: 299 - "text"` (OCI distribution spec, "Warnings").

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use reqwest::header::{HeaderMap, WARNING};

use super::challenge::unquote;
use super::error::printable;

/// Maximum number of warnings per job.
const MAX_WARNINGS: usize = 20;

/// Warnings already shown, by host.
#[derive(Debug, Default)]
pub(super) struct ShownWarnings(Mutex<BTreeSet<(String, String)>>);

impl ShownWarnings {
    /// Returns the warnings in a response of `host` that were not shown yet, and records them as shown.
    pub(super) fn take_new(&self, host: &str, headers: &HeaderMap) -> Vec<String> {
        let mut shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let texts = headers.get_all(WARNING).iter().filter_map(|value| warning_text(value.as_bytes()));
        let is_new =
            |text: &String| shown.len() < MAX_WARNINGS && shown.insert((host.to_owned(), text.clone()));
        texts.filter(is_new).collect()
    }
}

/// Returns the text of a warning in the only form that the specification allows. Other warnings come from
/// caches in between.
fn warning_text(value: &[u8]) -> Option<String> {
    let value = String::from_utf8_lossy(value);
    let quoted = value.strip_prefix("299 - ").filter(|text| text.starts_with('"'))?;
    let text = unquote(quoted);
    (!text.trim().is_empty()).then(|| printable(text.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&[u8]]) -> HeaderMap {
        let values = values.iter().map(|value| reqwest::header::HeaderValue::from_bytes(value).unwrap());
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WARNING, value);
        }
        headers
    }

    #[test]
    fn each_is_new_once() {
        let warned = ShownWarnings::default();
        let given: [&[u8]; 6] = [
            b"299 - \"This image is \\\"old\\\".\"",
            b"299 - \"\xe9t\xe9\"",
            b"110 - \"Response is stale\"",
            b"299 r.io \"another agent\"",
            b"299 - unquoted",
            b"299 - \"\"",
        ];
        let found = warned.take_new("r.io", &headers(&given));
        assert_eq!(found, ["This image is \"old\".", "\u{fffd}t\u{fffd}"]);
        assert_eq!(warned.take_new("r.io", &headers(&given)), Vec::<String>::new());
        assert_eq!(warned.take_new("other.io", &headers(&given)).len(), 2);
    }

    #[test]
    fn they_are_bounded() {
        let warned = ShownWarnings::default();
        let many: Vec<String> = (0..100).map(|n| format!("299 - \"{n} {}\"", "x".repeat(5000))).collect();
        let many: Vec<&[u8]> = many.iter().map(|text| text.as_bytes()).collect();
        let found = warned.take_new("r.io", &headers(&many));
        assert_eq!(found.len(), MAX_WARNINGS);
        assert!(found.iter().all(|text| text.chars().count() <= 301));
    }
}
