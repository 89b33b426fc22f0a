//! Progress bars: one for each running layer and one for the total.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Renderer, text};
use crate::builder::progress::Progress;
use crate::telemetry::Console;
use larder_model::digest::Digest;
use larder_model::escape::escape;
use larder_model::event::{Event, Line};

const LAYER: &str = "  {prefix} {bar:24} {binary_bytes:>10} / {binary_total_bytes:<10} {msg}";
pub(super) const TOTAL: &str =
    "total {bar:33} {binary_bytes:>10} / {binary_total_bytes:<10} {binary_bytes_per_sec}, {eta} left";
/// Number of redraws per second.
pub(super) const RATE: u8 = 10;

/// Progress bars on standard error, and above them the lines of [`text`].
#[derive(Debug)]
pub(in crate::cli) struct Terminal {
    console: Console,
    bars: MultiProgress,
    total: Option<ProgressBar>,
    layers: HashMap<Digest, ProgressBar>,
    progress: Progress,
}

impl Terminal {
    /// Creates a renderer without bars, and registers it with `console`.
    pub(in crate::cli) fn new(console: Console) -> Self {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(RATE));
        console.attach(bars.clone());
        Terminal { console, bars, total: None, layers: HashMap::new(), progress: Progress::default() }
    }

    fn total(&mut self) -> &ProgressBar {
        let (bars, length) = (&self.bars, self.progress.total());
        self.total.get_or_insert_with(|| {
            let bar = bars.add(ProgressBar::new(length).with_style(style(TOTAL)));
            // Redraw also without new data, to update the rate and the remaining time.
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        })
    }

    fn start(&mut self, blob: &Digest, size: u64, images: &[String]) {
        let bar = ProgressBar::new(size).with_style(style(LAYER));
        let total = self.total().clone();
        let bar = self.bars.insert_before(&total, bar);
        bar.set_prefix(blob.hex().chars().take(12).collect::<String>());
        bar.set_message(images.first().map(|image| escape(image)).unwrap_or_default());
        // A layer starts again if a copy could not be used.
        if let Some(first) = self.layers.insert(blob.clone(), bar) {
            first.finish_and_clear();
            self.bars.remove(&first);
        }
    }
}

impl Renderer for Terminal {
    fn join(&mut self, fetch_bytes: u64) {
        self.progress.join(fetch_bytes);
    }

    fn show(&mut self, line: &Line) -> io::Result<()> {
        self.progress.observe(&line.event);
        if let Some(text) = text::line_of(&line.event) {
            self.console.print(&format!("{text}\n"));
        }
        match &line.event {
            Event::LayerStarted { blob, compressed_size, images, .. } => {
                self.start(blob, *compressed_size, images);
            }
            Event::LayerProgress { blob, received, .. } => {
                if let Some(bar) = self.layers.get(blob) {
                    bar.set_position(*received);
                }
            }
            Event::LayerCommitted { blob, .. } => {
                if let Some(bar) = self.layers.remove(blob) {
                    bar.finish_and_clear();
                    self.bars.remove(&bar);
                }
            }
            Event::Result(_) => {
                self.total = None;
                self.layers.clear();
                self.console.detach();
                return self.bars.clear();
            }
            _ => {}
        }
        let received = self.progress.received();
        if let Some(total) = &self.total {
            total.set_position(received);
        }
        Ok(())
    }
}

pub(super) fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_valid() {
        assert!(ProgressStyle::with_template(LAYER).is_ok() && ProgressStyle::with_template(TOTAL).is_ok());
    }

    #[test]
    fn bars_come_and_go() {
        let mut terminal = Terminal::new(Console::default());
        let blob = Digest::sha256(b"x");
        let chain_id = larder_model::chain::ChainId::base(&blob);
        let mut show = |event| {
            terminal.show(&Line { v: 1, time: chrono::DateTime::UNIX_EPOCH, event }).unwrap();
            terminal.layers.len()
        };
        let images = vec!["a\x1b".to_owned()];
        assert_eq!(
            show(Event::LayerStarted {
                blob: blob.clone(),
                compressed_size: 9,
                images: images.clone(),
                from: Some("v".into())
            }),
            1
        );
        assert_eq!(
            show(Event::LayerStarted { blob: blob.clone(), compressed_size: 9, images, from: None }),
            1
        );
        assert_eq!(show(Event::LayerProgress { blob: blob.clone(), received: 4, written: 9 }), 1);
        assert_eq!(show(Event::LayerCommitted { blob, diff_id: None, chain_id, size: 9, entries: 1 }), 0);
    }
}
