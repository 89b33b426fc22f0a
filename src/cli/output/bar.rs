//! A single progress bar, for work without events.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget};

use super::terminal::{RATE, TOTAL, style};
use crate::telemetry::Console;

/// Interval between updates of the bar.
pub(in crate::cli) const UPDATE_INTERVAL: Duration = Duration::from_millis(100);

/// A progress bar on standard error. Shows nothing if standard error is not a terminal.
#[derive(Debug)]
pub(in crate::cli) struct Bar {
    console: Console,
    shown: Option<(MultiProgress, ProgressBar)>,
}

impl Bar {
    /// Creates an empty progress bar.
    pub(in crate::cli) fn new(console: &Console) -> Self {
        let shown = console.is_terminal().then(|| {
            let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(RATE));
            console.attach(bars.clone());
            let bar = bars.add(ProgressBar::new(0).with_style(style(TOTAL)));
            (bars, bar)
        });
        Bar { console: console.clone(), shown }
    }

    /// Updates the position and the total, both in bytes.
    pub(in crate::cli) fn set(&self, (done, total): (u64, u64)) {
        if let Some((_, bar)) = &self.shown {
            bar.set_length(total);
            bar.set_position(done);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some((bars, bar)) = self.shown.take() {
            bar.finish_and_clear();
            self.console.detach();
            // If clearing fails, the bar stays on the screen.
            let _ = bars.clear();
        }
    }
}
