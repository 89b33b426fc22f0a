//! Standard output and standard error, as text and as JSON.

pub(super) mod bar;
pub(super) mod display;
pub(super) mod json;
mod progress;
pub(super) mod result_file;
pub(super) mod stdout;
pub(super) mod summary;
pub(super) mod terminal;
pub(super) mod text;
pub(super) mod timeline;

use std::io;

use larder_model::event::Line;

/// Shows a build while it runs.
pub(super) trait Renderer: Send {
    /// Sets the number of bytes that are still to be fetched, if the plan was sent before this renderer
    /// started.
    fn join(&mut self, _fetch_bytes: u64) {}

    /// Shows one line. An error means that the output is closed.
    fn show(&mut self, line: &Line) -> io::Result<()>;

    /// Updates what depends on the time. Called about once per second while there are no lines.
    fn tick(&mut self) {}
}
