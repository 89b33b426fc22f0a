//! What goes to standard output and standard error, for people and for machines.

pub(super) mod bar;
pub(super) mod json;
pub(super) mod result_file;
pub(super) mod stdout;
pub(super) mod summary;
pub(super) mod terminal;
pub(super) mod text;

use std::io;

use larder_model::event::Line;

/// Shows a build while it runs.
pub(super) trait Renderer: Send {
    /// What is still to be fetched, where the plan was told before anybody looked.
    fn join(&mut self, _fetch_bytes: u64) {}

    /// Shows one line. An error means that nobody reads any more.
    fn show(&mut self, line: &Line) -> io::Result<()>;
}
