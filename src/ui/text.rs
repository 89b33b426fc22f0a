//! Texts and small elements that several pages show.

use chrono::{DateTime, SecondsFormat, Utc};
use maud::{Markup, html};

use larder_model::age::age;
use larder_model::escape::escape;
use larder_model::image_cache::Status;
use larder_model::size::ByteSize;

/// Formats a number of bytes.
pub(super) fn bytes(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// Returns a message of several lines, with control and direction characters escaped.
pub(super) fn lines(text: &str) -> Markup {
    html! { @for line in text.lines() { p { (escape(line)) } } }
}

/// Returns a time as an age, with the exact time on hover.
pub(super) fn since(then: DateTime<Utc>, now: DateTime<Utc>) -> Markup {
    let exact = exact(then);
    html! { time datetime=(exact) title=(exact) { (age(then, now)) } }
}

/// Returns a time in the future as a distance, with the exact time on hover.
pub(super) fn until(then: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Markup {
    let Some(then) = then else { return html! { "never" } };
    let exact = exact(then);
    html! { time datetime=(exact) title=(exact) { @if then > now { "in " (age(now, then)) } @else { "expired" } } }
}

/// Formats a time as in the API.
pub(super) fn exact(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Returns a status with a colour.
pub(super) fn status(status: Status) -> Markup {
    let class = match status {
        Status::Creating => "s-creating",
        Status::Available => "s-available",
        Status::Failed => "s-failed",
        Status::Unavailable => "s-unavailable",
        Status::Deleting => "s-deleting",
    };
    html! { span.status.(class) { (status) } }
}

/// Returns the first characters of a digest, with the whole of it on hover.
pub(super) fn short(digest: &larder_model::digest::Digest) -> Markup {
    let text: String = digest.hex().chars().take(12).collect();
    html! { code title=(digest) { (text) } }
}
