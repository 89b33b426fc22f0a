//! Records the timeline of a build, for a file to send.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::Renderer;
use crate::waterfall::file;
use larder_model::event::{Line, Outcome, Status};
use larder_model::size::ByteSize;
use larder_model::timeline::Recorder;

/// A timeline that is being recorded. Clones share it.
#[derive(Clone, Debug, Default)]
pub(in crate::cli) struct Recording(Arc<Mutex<Recorder>>);

impl Recording {
    /// Returns a renderer that records what `shown` shows.
    pub(in crate::cli) fn of(&self, shown: Box<dyn Renderer>) -> Box<dyn Renderer> {
        Box::new(Recorded { shown, recording: self.clone() })
    }

    /// Writes the page of a build. A failure is only logged, because the build has already ended.
    pub(in crate::cli) fn write(&self, path: &Path, outcome: &Outcome, volume: &Path) {
        let recorder = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let page = file::page("Build of an image cache", &facts(outcome, volume), recorder.timeline());
        if let Err(error) = file::write(path, &page) {
            tracing::error!(%error, "cannot write the timeline");
        }
    }
}

fn facts(outcome: &Outcome, volume: &Path) -> Vec<file::Fact> {
    let result = match outcome.status {
        Status::Ok => "sealed".to_owned(),
        Status::Failed => format!("failed, exit code {}: {}", outcome.exit_code, outcome.message),
    };
    let images = outcome.images.iter().map(|image| format!("{} ({})", image.reference, image.manifest));
    let mut facts = vec![("Volume", volume.display().to_string()), ("Result", result)];
    facts.extend(images.map(|image| ("Image", image)));
    if let Some(totals) = &outcome.totals {
        facts.push(("Size", format!("{} in {} layers", ByteSize(totals.size), totals.layers)));
    }
    facts
}

struct Recorded {
    shown: Box<dyn Renderer>,
    recording: Recording,
}

impl Renderer for Recorded {
    fn join(&mut self, fetch_bytes: u64) {
        self.shown.join(fetch_bytes);
    }

    fn show(&mut self, line: &Line) -> io::Result<()> {
        self.recording.0.lock().unwrap_or_else(PoisonError::into_inner).take(line);
        self.shown.show(line)
    }

    fn tick(&mut self) {
        self.shown.tick();
    }
}
