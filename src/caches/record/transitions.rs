//! Changes of a record's status. Each sets status, message and class together, so that no message or class
//! outlives the state that it describes.

use chrono::{DateTime, Utc};

use super::{Content, Record, Work};
use larder_model::class::Class;
use larder_model::image_cache::Status;

/// Maximum length of a record's message, bytes.
const MAX_MESSAGE: usize = 4096;
/// Maximum length of an event's message, bytes.
const MAX_EVENT: usize = 512;

impl Record {
    /// Changes the status and appends an event. The message stays.
    pub fn set_status(&mut self, status: Status, now: DateTime<Utc>, why: impl Into<String>) {
        self.status = status;
        self.status_since = now;
        self.note(now, why);
    }

    /// Sets the message that explains the state, and the class of the failure that it describes, if any.
    pub fn set_message(&mut self, message: &str, class: Option<Class>) {
        self.message = Some(cut(message, MAX_MESSAGE).to_owned());
        self.class = class;
    }

    /// Removes the message and its class.
    pub fn clear_message(&mut self) {
        (self.message, self.class) = (None, None);
    }

    /// Starts a second volume next to the served one.
    pub fn start_refresh(&mut self, now: DateTime<Utc>) {
        self.generation += 1;
        self.work = Some(Work::new(self.generation));
        self.clear_message();
        self.note(now, "refresh requested");
    }

    /// Serves a sealed volume. Returns `true` if it replaces an earlier one.
    pub fn finish_build(&mut self, now: DateTime<Utc>, content: Content) -> bool {
        let replaces = self.content.is_some();
        let event = format!("{}: {}", if replaces { "refreshed" } else { "sealed" }, content.digest);
        self.content = Some(content);
        self.end_work();
        self.clear_message();
        self.set_status(Status::Available, now, event);
        replaces
    }

    /// Keeps the error of an attempt that is followed by another one, and appends an event.
    pub fn retry_build(&mut self, now: DateTime<Utc>, event: impl Into<String>, message: &str) {
        if let Some(work) = &mut self.work {
            work.last_error = Some(cut(message, MAX_EVENT).to_owned());
        }
        self.note(now, event);
    }

    /// Ends the work without a result. A new cache fails; a refreshed cache keeps its content.
    pub fn fail_build(&mut self, now: DateTime<Utc>, class: Class, message: &str) {
        self.end_work();
        if self.content.is_some() {
            let message = format!("the refresh failed: {message}");
            self.set_message(&message, Some(class));
            self.note(now, cut(&message, MAX_EVENT));
            return;
        }
        self.set_message(message, Some(class));
        self.set_status(Status::Failed, now, cut(message, MAX_EVENT));
    }

    /// Stops serving the cache. A refresh is dropped, because its result would be discarded.
    pub fn make_unavailable(&mut self, now: DateTime<Utc>, message: &str) {
        self.end_work();
        self.set_message(message, None);
        self.set_status(Status::Unavailable, now, cut(message, MAX_EVENT));
    }

    /// Serves the volume again that was missing.
    pub fn make_available_again(&mut self, now: DateTime<Utc>) {
        self.clear_message();
        self.set_status(Status::Available, now, "the volume is present again");
    }

    fn end_work(&mut self) {
        self.work = None;
        self.progress.clear();
    }
}

/// Returns at most `limit` bytes of a text, in whole characters.
pub(in crate::caches) fn cut(text: &str, limit: usize) -> &str {
    match text.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= limit).last() {
        Some(end) => &text[..end],
        None => "",
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::record;
    use super::*;
    use larder_model::digest::Digest;
    use larder_model::seal::Totals;

    const NOW: DateTime<Utc> = DateTime::UNIX_EPOCH;

    fn content() -> Content {
        Content {
            generation: 1,
            sealed_at: NOW,
            digest: Digest::sha256(b"content"),
            images: Vec::new(),
            totals: Totals::default(),
            layers: Vec::new(),
            snapshot: None,
        }
    }

    #[test]
    fn the_class_of_a_failed_refresh_ends_with_its_message() {
        let failed = || {
            let mut record = record();
            assert!(!record.finish_build(NOW, content()));
            record.start_refresh(NOW);
            record.fail_build(NOW, Class::Transient, "no answer");
            assert_eq!((record.status, record.class), (Status::Available, Some(Class::Transient)));
            assert_eq!(record.message.as_deref(), Some("the refresh failed: no answer"));
            record
        };
        let mut record = failed();
        record.make_unavailable(NOW, "expired after 2 days");
        assert_eq!((record.status, record.class), (Status::Unavailable, None));
        assert_eq!(record.message.as_deref(), Some("expired after 2 days"));
        record.make_available_again(NOW);
        assert_eq!((record.status, record.class, record.message), (Status::Available, None, None));
        let mut record = failed();
        record.start_refresh(NOW);
        assert_eq!((record.class, &record.message, record.generation), (None, &None, 3));
        assert!(record.finish_build(NOW, content()));
        assert_eq!((record.class, record.message, record.work), (None, None, None));
    }

    #[test]
    fn an_unavailable_cache_has_no_work() {
        let mut record = record();
        record.finish_build(NOW, content());
        record.start_refresh(NOW);
        record.make_unavailable(NOW, "gone");
        assert_eq!((record.reserved_gib(), record.work), (20, None));
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!((cut("aé", 2), cut("aé", 3), cut("é", 1)), ("a", "aé", ""));
    }
}
