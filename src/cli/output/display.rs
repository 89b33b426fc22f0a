//! What a command prints while it runs: the formats of standard output and of the progress.

use std::time::Duration;
use std::{io, thread};

use super::Renderer;
use super::json::{Json, JsonProgress};
use super::terminal::Terminal;
use super::text::{Plain, Warnings};
use crate::builder::cancel::{Cancel, Reason};
use crate::builder::events::{Lines, NextLine};
use crate::cli::args::{BuildOptions, Output, ProgressFormat};
use crate::telemetry::Console;
use larder_model::event::{Event, Line};

/// Interval between updates of the progress while there are no events.
pub(in crate::cli) const TICK_INTERVAL: Duration = Duration::from_secs(1);

/// The formats of both outputs.
#[derive(Clone, Copy, Debug)]
pub(in crate::cli) struct Display {
    pub(in crate::cli) output: Output,
    pub(in crate::cli) progress: ProgressFormat,
    /// Omits the summary on standard output.
    pub(in crate::cli) quiet: bool,
}

impl Display {
    /// The display of a child, whose only reader is its supervisor.
    pub(in crate::cli) const CHILD: Display =
        Display { output: Output::Json, progress: ProgressFormat::None, quiet: true };

    /// Returns the formats that `options` select.
    pub(in crate::cli) fn of(options: &BuildOptions) -> Self {
        let progress = match options.quiet {
            true => ProgressFormat::None,
            false => options.progress,
        };
        Display { output: options.output.format(), progress, quiet: options.quiet }
    }

    /// Reports whether failures are part of the events on standard error, which must stay JSON.
    pub(in crate::cli) fn is_json_progress(self) -> bool {
        self.progress == ProgressFormat::Json
    }

    /// Returns the renderer of the events of a build.
    pub(in crate::cli) fn of_build(self, console: &Console) -> Box<dyn Renderer> {
        let progress = self.progress(console);
        match self.output {
            Output::Text => progress,
            Output::Json => Box::new(Both(Json(io::stdout()), progress)),
        }
    }

    /// Returns the renderer of the progress on standard error.
    fn progress(self, console: &Console) -> Box<dyn Renderer> {
        match (self.progress, self.output) {
            // Standard output already contains all of it.
            (ProgressFormat::Auto | ProgressFormat::None, Output::Json) => Box::new(Nothing),
            (ProgressFormat::Auto, Output::Text) => automatic(console),
            (ProgressFormat::Plain, _) => Box::new(Plain::new(console.clone())),
            (ProgressFormat::Json, _) => Box::new(JsonProgress(console.clone())),
            (ProgressFormat::None, Output::Text) => Box::new(Warnings(console.clone())),
        }
    }

    /// Returns the renderer of a command without layers. It has no bars, because the sandbox of the command
    /// forbids measuring the terminal.
    pub(in crate::cli) fn of_plan(self, console: &Console) -> Box<dyn Renderer> {
        let progress = match (self.progress, self.output) {
            (ProgressFormat::Auto, Output::Text) => ProgressFormat::Plain,
            (progress, _) => progress,
        };
        Display { progress, ..self }.progress(console)
    }
}

/// Returns bars if standard error is a terminal, and plain lines otherwise.
pub(in crate::cli) fn automatic(console: &Console) -> Box<dyn Renderer> {
    match console.is_terminal() {
        true => Box::new(Terminal::new(console.clone())),
        false => Box::new(Plain::new(console.clone())),
    }
}

/// Shows events up to the result, on a thread of its own. If the output is closed, cancels the build, because
/// its reader is its owner.
pub(in crate::cli) fn spawn(
    lines: Lines,
    renderer: Box<dyn Renderer>,
    cancel: Cancel,
) -> thread::JoinHandle<()> {
    thread::spawn(move || show(lines, renderer, &cancel))
}

/// Shows events up to the result.
pub(in crate::cli) fn show(mut lines: Lines, mut renderer: Box<dyn Renderer>, cancel: &Cancel) {
    loop {
        let line = match lines.next_within(TICK_INTERVAL) {
            NextLine::Line(line) => line,
            NextLine::Timeout => {
                renderer.tick();
                continue;
            }
            NextLine::Ended => return,
        };
        if let Err(error) = renderer.show(&line) {
            tracing::warn!(%error, "writing events");
            cancel.cancel(Reason::ReaderGone);
            return;
        }
        if matches!(line.event, Event::Result(_)) {
            return;
        }
    }
}

/// Shows nothing.
struct Nothing;

impl Renderer for Nothing {
    fn show(&mut self, _: &Line) -> io::Result<()> {
        Ok(())
    }
}

/// Shows the events on standard output, and the progress on standard error.
struct Both(Json<io::Stdout>, Box<dyn Renderer>);

impl Renderer for Both {
    fn show(&mut self, line: &Line) -> io::Result<()> {
        let Both(output, progress) = self;
        progress.show(line)?;
        output.show(line)
    }

    fn tick(&mut self) {
        self.1.tick();
    }
}
