//! Progress bars: one for each running layer and one for the total.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::progress::Progress;
use super::{Renderer, text};
use crate::telemetry::Console;
use larder_model::digest::Digest;
use larder_model::escape::escape;
use larder_model::event::{Event, Line};
use larder_model::size::ByteSize;

const LAYER: &str = "  {prefix} {bar:20} {binary_bytes:>10} / {binary_total_bytes:<10} {msg}";
const BUILD: &str = "{prefix} {bar:20} {binary_bytes:>10} / {binary_total_bytes:<10} {msg}";
const PLANNING: &str = "{spinner} {msg}";
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
    layers: HashMap<Digest, LayerBar>,
    progress: Progress,
}

/// The bar of a layer.
#[derive(Debug)]
struct LayerBar {
    bar: ProgressBar,
    size: u64,
    is_copied: bool,
    /// The image that needs the layer, escaped.
    image: String,
}

impl LayerBar {
    fn update(&self, blob: &Digest, received: u64, written: u64) {
        let phase = match self.is_copied {
            true => "copy",
            false if received >= self.size => "unpack",
            false => "download",
        };
        let short: String = blob.hex().chars().take(12).collect();
        self.bar.set_prefix(format!("{short} {phase:<8}"));
        self.bar.set_position(received);
        self.bar.set_message(match phase {
            "unpack" => format!("{} unpacked, {}", ByteSize(written), self.image),
            _ => self.image.clone(),
        });
    }
}

impl Terminal {
    /// Creates a renderer without bars, and registers it with `console`.
    pub(in crate::cli) fn new(console: Console) -> Self {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(RATE));
        console.attach(bars.clone());
        Terminal { console, bars, total: None, layers: HashMap::new(), progress: Progress::default() }
    }

    /// Returns the bar below all others, and creates it first if necessary.
    fn total(&mut self) -> &ProgressBar {
        let bars = &self.bars;
        self.total.get_or_insert_with(|| {
            let bar = bars.add(ProgressBar::new(0).with_style(style(PLANNING)));
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        })
    }

    fn start(&mut self, blob: &Digest, layer: LayerBar) {
        let total = self.total().clone();
        self.bars.insert_before(&total, layer.bar.clone());
        layer.update(blob, 0, 0);
        // A layer starts again if a copy could not be used.
        if let Some(first) = self.layers.insert(blob.clone(), layer) {
            self.remove(&first.bar);
        }
    }

    fn remove(&self, bar: &ProgressBar) {
        bar.finish_and_clear();
        self.bars.remove(bar);
    }

    /// Updates the bar below all others.
    fn update(&mut self, now: Instant) {
        let (received, total) = (self.progress.received(), self.progress.total());
        let (layers, activity) = (self.progress.layers(), self.progress.activity(now));
        let line = self.progress.line(now);
        let planned = self.progress.is_planned();
        let Some(bar) = &self.total else { return };
        if planned {
            bar.set_length(total);
            bar.set_position(received);
            bar.set_prefix(layers.unwrap_or_else(|| "total".to_owned()));
            bar.set_message(activity);
        } else {
            bar.set_message(line.unwrap_or_default());
        }
    }

    fn end(&mut self) -> io::Result<()> {
        self.total = None;
        self.layers.clear();
        self.console.detach();
        self.bars.clear()
    }
}

impl Renderer for Terminal {
    fn join(&mut self, fetch_bytes: u64) {
        self.progress.join(fetch_bytes, Instant::now());
        self.total().set_style(style(BUILD));
    }

    fn show(&mut self, line: &Line) -> io::Result<()> {
        let now = Instant::now();
        self.progress.observe(&line.event, now);
        if let Some(text) = text::line_of(&line.event) {
            self.console.print(&format!("{text}\n"));
        }
        match &line.event {
            Event::Started { .. } => self.total().set_style(style(PLANNING)),
            Event::Planned { .. } => self.total().set_style(style(BUILD)),
            Event::LayerStarted { blob, compressed_size: size, images, from } => {
                let bar = ProgressBar::new(*size).with_style(style(LAYER));
                let image = images.first().map(|image| escape(image)).unwrap_or_default();
                self.start(blob, LayerBar { bar, size: *size, is_copied: from.is_some(), image });
            }
            Event::LayerProgress { blob, received, written } => {
                if let Some(layer) = self.layers.get(blob) {
                    layer.update(blob, *received, *written);
                }
            }
            Event::LayerCommitted { blob, .. } => {
                if let Some(layer) = self.layers.remove(blob) {
                    self.remove(&layer.bar);
                }
            }
            Event::Result(_) => return self.end(),
            _ => {}
        }
        self.update(now);
        Ok(())
    }

    fn tick(&mut self) {
        self.update(Instant::now());
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
        for template in [LAYER, BUILD, PLANNING, TOTAL] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
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
        assert_eq!(
            show(Event::LayerCommitted { blob, diff_id: None, chain_id, size: 9, entries: 1, elapsed_ms: 1 }),
            0
        );
    }
}
