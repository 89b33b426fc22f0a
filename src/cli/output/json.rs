//! NDJSON: one event per line. Each line is flushed, so that the reader gets it immediately.

use std::io::{self, Write};

use super::Renderer;
use crate::telemetry::Console;
use larder_model::event::Line;

/// Writes every event to a `W` as a JSON line.
#[derive(Debug)]
pub(in crate::cli) struct Json<W>(pub(in crate::cli) W);

impl<W: Write + Send> Renderer for Json<W> {
    fn show(&mut self, line: &Line) -> io::Result<()> {
        let mut json = serde_json::to_vec(line)?;
        json.push(b'\n');
        self.0.write_all(&json)?;
        self.0.flush()
    }
}

/// Writes every event to standard error as a JSON line. Unlike standard output, it may be closed.
#[derive(Debug)]
pub(super) struct JsonProgress(pub(super) Console);

impl Renderer for JsonProgress {
    fn show(&mut self, line: &Line) -> io::Result<()> {
        let json = serde_json::to_string(line)?;
        self.0.print(&format!("{json}\n"));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use larder_model::event::{Event, VERSION};

    #[test]
    fn each_event_is_a_line() {
        let mut out = Vec::new();
        for event in [
            Event::Retried {
                host: "r.io".into(),
                what: "manifest 1".into(),
                reason: "429\n\u{1b}[2J".into(),
                wait_ms: 5,
            },
            Event::Synced { layers: 3, elapsed_ms: 0 },
        ] {
            Json(&mut out).show(&Line { v: VERSION, time: DateTime::UNIX_EPOCH, event }).unwrap();
        }
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"v\":1,\"time\":\"1970-01-01T00:00:00Z\",\"event\":\"retried\",\"host\":\"r.io\",\
             \"what\":\"manifest 1\",\"reason\":\"429\\n\\u001b[2J\",\"wait_ms\":5}\n\
             {\"v\":1,\"time\":\"1970-01-01T00:00:00Z\",\"event\":\"synced\",\"layers\":3,\"elapsed_ms\":0}\n"
        );
    }
}
