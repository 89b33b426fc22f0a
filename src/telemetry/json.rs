//! The JSON format of log lines: that of tracing-subscriber, but with lists as arrays.
//!
//! A field of tracing is a number, a Boolean or a string. A list is therefore recorded as a string with JSON
//! in it ([`List`]), and this format replaces the string by the array.

use std::fmt;

use serde::Serialize;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Format, Json, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The start of the only field that is a list, as a JSON object contains it. Inside of a string the quotation
/// marks would have a backslash.
const START: &str = "\"images\":";

/// A list as the value of the field `images`. Displays as a JSON array in every log format.
#[derive(Clone, Copy, Debug)]
pub struct List<'a, T>(pub &'a [T]);

impl<T: Serialize> fmt::Display for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self.0).map_err(|_| fmt::Error)?)
    }
}

/// Formats events as JSON.
#[derive(Debug)]
pub(super) struct JsonLines(Format<Json>);

impl JsonLines {
    pub(super) fn new() -> Self {
        JsonLines(tracing_subscriber::fmt::format().json())
    }
}

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::with_capacity(512);
        self.0.format_event(context, Writer::new(&mut line), event)?;
        writer.write_str(&with_array(&line).unwrap_or(line))
    }
}

/// Replaces the list of a line by an array. `None` if the line has no list.
fn with_array(line: &str) -> Option<String> {
    let start = line.find(START)? + START.len();
    let mut rest = serde_json::Deserializer::from_str(&line[start..]).into_iter::<String>();
    let list = rest.next()?.ok()?;
    serde_json::from_str::<Vec<serde_json::Value>>(&list).ok()?;
    Some(format!("{}{list}{}", &line[..start], &line[start + rest.byte_offset()..]))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};
    use tracing_subscriber::fmt::format::JsonFields;

    use super::*;

    fn logged(events: impl FnOnce()) -> Vec<Value> {
        let lines = tempfile::NamedTempFile::new().unwrap();
        let subscriber = tracing_subscriber::fmt()
            .fmt_fields(JsonFields::new())
            .event_format(JsonLines::new())
            .with_writer(Arc::new(lines.reopen().unwrap()))
            .finish();
        tracing::subscriber::with_default(subscriber, events);
        let text = std::fs::read_to_string(lines.path()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_list_is_an_array() {
        let lines = logged(|| {
            let span = tracing::error_span!("cache", cache_name = "web");
            let _entered = span.enter();
            tracing::info!(bytes = 3, images = %List(&["a\"b", "c\u{301}"]), after = 1, "ordered");
        });
        assert_eq!(
            lines[0]["fields"],
            json!({"message": "ordered", "bytes": 3, "images": ["a\"b", "c\u{301}"], "after": 1})
        );
        assert_eq!(lines[0]["span"], json!({"name": "cache", "cache_name": "web"}));
    }

    /// Text that looks like the field stays text.
    #[test]
    fn other_strings_stay_strings() {
        let fake = "\"images\":\"[1]\"";
        let lines = logged(|| {
            tracing::info!(images = "no list", "{fake}");
            tracing::info!(name = fake, images = %List::<&str>(&[]), "x");
        });
        assert_eq!(lines[0]["fields"], json!({"message": fake, "images": "no list"}));
        assert_eq!(lines[1]["fields"], json!({"message": "x", "name": fake, "images": []}));
    }
}
