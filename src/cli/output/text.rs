//! Short lines on standard error, for the events that matter to a person.

use std::io;
use std::time::{Duration, Instant};

use super::Renderer;
use super::progress::Progress;
use crate::telemetry::Console;
use larder_model::count::counted;
use larder_model::escape::escape;
use larder_model::event::{Event, Line};
use larder_model::size::ByteSize;

/// The lines of the events, without progress.
#[derive(Debug)]
pub(in crate::cli) struct Text(pub(in crate::cli) Console);

impl Renderer for Text {
    fn show(&mut self, line: &Line) -> io::Result<()> {
        if let Some(text) = line_of(&line.event) {
            self.0.print(&format!("{text}\n"));
        }
        Ok(())
    }
}

/// The lines of the events, and a line of progress now and then, for a standard error that is not a terminal.
#[derive(Debug)]
pub(super) struct Plain {
    text: Text,
    progress: Progress,
}

impl Plain {
    /// Creates a renderer without progress.
    pub(super) fn new(console: Console) -> Self {
        Plain { text: Text(console), progress: Progress::default() }
    }
}

impl Renderer for Plain {
    fn join(&mut self, fetch_bytes: u64) {
        self.progress.join(fetch_bytes, Instant::now());
    }

    fn show(&mut self, line: &Line) -> io::Result<()> {
        self.text.show(line)?;
        self.progress.observe(&line.event, Instant::now());
        self.tick();
        Ok(())
    }

    fn tick(&mut self) {
        if let Some(line) = self.progress.due(Instant::now()) {
            self.text.0.print(&format!("{line}\n"));
        }
    }
}

/// The warnings, and no other lines.
#[derive(Debug)]
pub(super) struct Warnings(pub(super) Console);

impl Renderer for Warnings {
    fn show(&mut self, line: &Line) -> io::Result<()> {
        match line.event {
            Event::Warning { .. } => Text(self.0.clone()).show(line),
            _ => Ok(()),
        }
    }
}

/// Formats an event as one line. `None` if it is not worth showing.
pub(super) fn line_of(event: &Event) -> Option<String> {
    Some(match event {
        Event::Resolved { reference, manifest, platform, layers, compressed_size } => {
            let (platform, size) = (escape(&platform.to_string()), ByteSize(*compressed_size));
            format!("{}: {manifest} ({platform}, {}, {size})", escape(reference), counted(*layers, "layer"))
        }
        Event::Sized { size } => {
            format!("size: {} (three times the compressed images, at least 16 MiB)", size.exact())
        }
        Event::Planned { admission, layers, present, fetch_bytes } => format!(
            "{}, {present} already on the volume, {} to download; the volume needs {} and has {}",
            counted(*layers, "layer"),
            ByteSize(*fetch_bytes),
            admission.need,
            admission.have
        ),
        Event::LayerReused { blob, from, size, .. } => {
            format!("{blob}: reused from the volume {} ({})", escape(from), ByteSize(*size))
        }
        Event::Retried { host, what, reason, wait_ms } => {
            // The name of an image can contain the host.
            let host = if what.contains(host) { String::new() } else { format!("{}: ", escape(host)) };
            let seconds = Duration::from_millis(*wait_ms).as_secs_f64();
            format!("{host}{}: {}; retrying in {seconds:.1} s", escape(what), escape(reason))
        }
        Event::ConnectionReplaced { host, what, rate, median } => format!(
            "{}: slow connection to {} ({}/s, others {}/s) replaced",
            escape(what),
            escape(host),
            ByteSize(*rate),
            ByteSize(*median)
        ),
        Event::Waiting { reason: Some(reason) } => format!("waiting: {}", escape(reason)),
        Event::Warning { message } => format!("warning: {}", escape(message)),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_text_is_escaped_and_progress_is_quiet() {
        let warning = Event::Warning { message: "a\x1b[1mb".into() };
        assert_eq!(line_of(&warning).unwrap(), "warning: a\\u{1b}[1mb");
        let retried = |host: &str| Event::Retried {
            host: host.into(),
            what: "reading manifest r.io/a:1".into(),
            reason: "refused".into(),
            wait_ms: 250,
        };
        let of_image = "reading manifest r.io/a:1: refused; retrying in 0.2 s";
        assert_eq!(line_of(&retried("r.io")).unwrap(), of_image);
        assert_eq!(line_of(&retried("m.io")).unwrap(), format!("m.io: {of_image}"));
        assert_eq!(line_of(&Event::Synced { layers: 1, elapsed_ms: 0 }), None);
    }
}
