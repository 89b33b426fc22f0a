//! Events in the systemd journal: with a priority, with fields that `journalctl` can select, and without a
//! second time stamp.
//!
//! The message is the same as in a text log: the text of the event, then its fields and those of its spans.
//! Each field is also a field of the journal, in upper case with the prefix `LARDER_`: `journalctl
//! LARDER_TENANT=a`.
//! The protocol is <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>.

use std::env;
use std::fmt::{self, Write as _};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::sys::stat::fstat;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::Console;

/// The socket of the journal.
const SOCKET: &str = "/run/systemd/journal/socket";
/// Maximum length of a field name, bytes (systemd, src/libsystemd/sd-journal/journal-file.c).
const MAX_NAME: usize = 64;

/// Reports whether standard error is connected to the journal (systemd.exec(5), `JOURNAL_STREAM`).
pub(super) fn is_stderr() -> bool {
    let Some(stream) = env::var("JOURNAL_STREAM").ok() else { return false };
    fstat(io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// A layer that sends events to the journal.
#[derive(Debug)]
pub(super) struct Journal {
    socket: UnixDatagram,
    /// Receives messages that the journal does not take, for example because one is too long for a datagram.
    console: Console,
}

impl Journal {
    /// Connects to the journal.
    pub(super) fn connect(console: &Console) -> io::Result<Self> {
        Journal::connect_to(Path::new(SOCKET), console)
    }

    fn connect_to(path: &Path, console: &Console) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        Ok(Journal { socket, console: console.clone() })
    }
}

/// The fields of an event or a span, in order.
#[derive(Debug, Default)]
struct Fields {
    message: String,
    rest: Vec<(&'static str, String)>,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push(field, format!("{value:?}"));
    }
}

impl Fields {
    fn push(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            name => self.rest.push((name, value)),
        }
    }

    /// Returns the line that people read.
    fn line<'a>(&'a self, spans: impl Iterator<Item = &'a (&'static str, String)>) -> String {
        let mut line = self.message.clone();
        for (name, value) in self.rest.iter().chain(spans) {
            let plain = !value.is_empty() && !value.contains(|c: char| c.is_whitespace() || c == '"');
            // Writing to a string cannot fail.
            let _ = if plain { write!(line, " {name}={value}") } else { write!(line, " {name}={value:?}") };
        }
        line
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Journal {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut outer: Vec<(&'static str, String)> = Vec::new();
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(of_span) = span.extensions().get::<Fields>() {
                // A request and its image cache have the same tenant.
                let new =
                    of_span.rest.iter().filter(|pair| !outer.contains(pair) && !fields.rest.contains(pair));
                outer.extend(new.cloned().collect::<Vec<_>>());
            }
        }
        let metadata = event.metadata();
        let priority = priority(*metadata.level());
        let line = fields.line(outer.iter());
        let mut datagram = Vec::with_capacity(256 + 2 * line.len());
        put(&mut datagram, "MESSAGE", &line);
        put(&mut datagram, "PRIORITY", &priority.to_string());
        put(&mut datagram, "SYSLOG_IDENTIFIER", env!("CARGO_PKG_NAME"));
        put(&mut datagram, "LARDER_TARGET", metadata.target());
        for (name, value) in fields.rest.iter().chain(&outer) {
            put(&mut datagram, &journal_name(name), value);
        }
        if self.socket.send(&datagram).is_err() {
            // The journal reads the priority from the start of a line of standard error (sd-daemon(3)).
            self.console.print(&format!("<{priority}>{}\n", line.replace('\n', " ")));
        }
    }
}

/// Returns the priority of syslog(3) for a level.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// Returns the name of a field in the journal: upper case letters, digits and underscores.
fn journal_name(name: &str) -> String {
    let letters = name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' });
    "LARDER_".chars().chain(letters).take(MAX_NAME).collect()
}

/// Adds a field to a datagram. A value with a line feed needs the form with a length.
fn put(datagram: &mut Vec<u8>, name: &str, value: &str) {
    datagram.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        datagram.push(b'\n');
        datagram.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        datagram.push(b'=');
    }
    datagram.extend_from_slice(value.as_bytes());
    datagram.push(b'\n');
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// Sends events to a socket that this test owns, as the journal owns its socket. Returns the datagrams.
    fn sent(events: impl FnOnce()) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        journal.set_nonblocking(true).unwrap();
        let layer = Journal::connect_to(&path, &Console::default()).unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), events);
        let mut datagrams = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length) = journal.recv(&mut buffer) {
            datagrams.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
        }
        datagrams
    }

    #[test]
    fn an_event_has_a_priority_and_fields() {
        let datagrams = sent(|| {
            let span = tracing::info_span!("request", tenant = tracing::field::Empty);
            span.record("tenant", "a");
            let _entered = span.enter();
            tracing::warn!(cache = 7, reason = "no space", "the build failed");
        });
        let [datagram] = &datagrams[..] else { panic!("{datagrams:?}") };
        let lines: Vec<_> = datagram.lines().collect();
        assert_eq!(lines[0], "MESSAGE=the build failed cache=7 reason=\"no space\" tenant=a");
        for line in [
            "PRIORITY=4",
            "SYSLOG_IDENTIFIER=larder",
            "LARDER_CACHE=7",
            "LARDER_REASON=no space",
            "LARDER_TENANT=a",
        ] {
            assert!(lines.contains(&line), "{line}: {lines:?}");
        }
    }

    #[test]
    fn a_field_of_two_spans_is_sent_once() {
        let datagrams = sent(|| {
            let request = tracing::info_span!("request", tenant = "a", request = 1);
            let _entered = request.enter();
            let cache = tracing::info_span!("cache", tenant = "a", cache_name = "web");
            let _entered = cache.enter();
            tracing::info!("ordered");
        });
        let first = datagrams[0].lines().next().unwrap();
        assert_eq!(first, "MESSAGE=ordered tenant=a cache_name=web request=1");
        assert_eq!(datagrams[0].matches("LARDER_TENANT=a").count(), 1, "{datagrams:?}");
    }

    /// A value cannot add a field.
    #[test]
    fn a_value_with_a_line_feed_has_a_length() {
        let datagrams = sent(|| tracing::info!(name = "a\nPRIORITY=0", "created"));
        let want = format!(
            "LARDER_NAME\n{}a\nPRIORITY=0\n",
            String::from_utf8(12_u64.to_le_bytes().to_vec()).unwrap()
        );
        assert!(datagrams[0].contains(&want), "{datagrams:?}");
        assert!(datagrams[0].starts_with("MESSAGE=created name=\"a\\nPRIORITY=0\"\n"), "{datagrams:?}");
    }

    #[test]
    fn names_have_upper_case_letters() {
        assert_eq!(journal_name("blob.size"), "LARDER_BLOB_SIZE");
        assert_eq!(journal_name(&"x".repeat(100)).len(), MAX_NAME);
    }
}
