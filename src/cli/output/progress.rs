//! Progress of a build, computed only from its events and the time.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use larder_model::digest::Digest;
use larder_model::event::Event;
use larder_model::size::ByteSize;

/// Maximum time between two lines.
const INTERVAL: Duration = Duration::from_secs(10);
/// Progress after which a line is printed before [`INTERVAL`] has passed, percent.
const STEP: u64 = 10;
/// Minimum time between two lines, for builds of a few seconds.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Time over which the rate is averaged.
const WINDOW: Duration = Duration::from_secs(15);
/// Minimum time between two samples of the rate.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);

/// Sums over the events so far. Layers that are on the volume or reused from another one are not part of
/// them.
#[derive(Debug, Default)]
pub(in crate::cli) struct Progress {
    phase: Phase,
    images: usize,
    resolved: usize,
    /// Number of layers to fetch. `None` if the plan was sent before this display started.
    layers: Option<usize>,
    committed: usize,
    fetch_bytes: u64,
    blobs: HashMap<Digest, Blob>,
    started: Option<Instant>,
    samples: VecDeque<(Instant, u64)>,
    /// Time and percentage of the last line.
    printed: Option<(Instant, u64)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// No event has been received.
    #[default]
    Idle,
    Resolving,
    Fetching,
    /// Every layer is on the volume.
    Syncing,
    Sealed,
}

#[derive(Clone, Copy, Debug)]
struct Blob {
    size: u64,
    received: u64,
    is_reused: bool,
}

impl Progress {
    /// Updates the sums with an event.
    pub(super) fn observe(&mut self, event: &Event, now: Instant) {
        match event {
            Event::Started { images, .. } => {
                *self = Progress { phase: Phase::Resolving, images: *images, ..Progress::default() };
                self.printed = Some((now, 0));
            }
            Event::Resolved { .. } => self.resolved += 1,
            Event::Planned { layers, present, fetch_bytes, .. } => {
                self.join(*fetch_bytes, now);
                self.layers = Some(layers.saturating_sub(*present));
            }
            // A layer starts again if a copy could not be used.
            Event::LayerStarted { blob, compressed_size, from, .. } => {
                let new = Blob { size: *compressed_size, received: 0, is_reused: from.is_some() };
                self.blobs.insert(blob.clone(), new);
            }
            Event::LayerProgress { blob, received, .. } => {
                if let Some(blob) = self.blobs.get_mut(blob) {
                    blob.received = (*received).min(blob.size);
                }
            }
            Event::LayerCommitted { blob, .. } => self.commit(blob),
            Event::Sealed { .. } => self.phase = Phase::Sealed,
            _ => {}
        }
        if self.phase == Phase::Fetching && self.layers == Some(self.committed) {
            self.phase = Phase::Syncing;
        }
        self.sample(now);
    }

    /// Starts with the number of bytes that are still to be fetched, for a build whose first events were
    /// missed.
    pub(super) fn join(&mut self, fetch_bytes: u64, now: Instant) {
        let (images, resolved) = (self.images, self.resolved);
        *self = Progress { phase: Phase::Fetching, images, resolved, fetch_bytes, ..Progress::default() };
        (self.started, self.printed) = (Some(now), Some((now, 0)));
        self.samples.push_back((now, 0));
    }

    /// Counts a commit. A blob can be committed under several chain IDs, each of which is a layer.
    fn commit(&mut self, blob: &Digest) {
        match self.blobs.get_mut(blob) {
            Some(Blob { is_reused: true, .. }) => {
                self.layers = self.layers.map(|layers| layers.saturating_sub(1));
            }
            Some(blob) => {
                blob.received = blob.size;
                self.committed += 1;
            }
            None => self.committed += 1,
        }
    }

    /// Returns the compressed bytes to fetch.
    pub(super) fn total(&self) -> u64 {
        let reused: u64 = self.blobs.values().filter(|blob| blob.is_reused).map(|blob| blob.size).sum();
        self.fetch_bytes.saturating_sub(reused)
    }

    /// Returns the compressed bytes received so far, never more than [`total`](Self::total).
    pub(super) fn received(&self) -> u64 {
        let fetched = self.blobs.values().filter(|blob| !blob.is_reused);
        fetched.map(|blob| blob.received).sum::<u64>().min(self.total())
    }

    /// Returns the line to print now. `None` if it is not due.
    pub(super) fn due(&mut self, now: Instant) -> Option<String> {
        self.sample(now);
        // The last line of the layers is due once and without a delay, unless the build was short.
        if matches!(self.phase, Phase::Syncing | Phase::Sealed)
            && let Some(started) = self.started.take()
        {
            self.printed = Some((now, 100));
            let time = now.duration_since(started);
            let is_shown = self.committed > 0 && time >= MIN_INTERVAL;
            return is_shown.then(|| format!("{}, in {}", self.counts(), format_time(time)));
        }
        let (last, percent) = self.printed?;
        let passed = now.duration_since(last);
        let is_step = passed >= MIN_INTERVAL && self.percent() / STEP > percent / STEP;
        if passed < INTERVAL && !is_step {
            return None;
        }
        self.printed = Some((now, self.percent()));
        self.line(now)
    }

    /// Describes the current phase. `None` before the first event and after the last one.
    pub(super) fn line(&self, now: Instant) -> Option<String> {
        Some(match self.phase {
            Phase::Idle | Phase::Sealed => return None,
            Phase::Resolving if self.images == 0 => "reading images".to_owned(),
            Phase::Resolving => format!("resolving images: {}/{}", self.resolved, self.images),
            Phase::Fetching => format!("{}, {}", self.counts(), self.activity(now)),
            Phase::Syncing => "syncing and sealing the volume".to_owned(),
        })
    }

    /// Reports whether the layers are known.
    pub(super) fn is_planned(&self) -> bool {
        !matches!(self.phase, Phase::Idle | Phase::Resolving)
    }

    /// Formats the number of committed layers. `None` if their total is unknown.
    pub(super) fn layers(&self) -> Option<String> {
        self.layers.map(|layers| format!("{}/{layers} layers", self.committed))
    }

    /// Describes what the build does after the plan: the rate and the remaining time, or the phase.
    pub(super) fn activity(&self, now: Instant) -> String {
        let left = self.total() - self.received();
        match (self.phase, left) {
            (Phase::Syncing | Phase::Sealed, _) => return "syncing".to_owned(),
            (_, 0) => return "unpacking".to_owned(),
            _ => {}
        }
        let Some(rate) = self.rate(now) else { return "starting".to_owned() };
        let text = format!("{}/s", ByteSize(rate));
        match left.checked_div(rate) {
            Some(seconds) => format!("{text}, {} left", format_time(Duration::from_secs(seconds))),
            None => text,
        }
    }

    fn counts(&self) -> String {
        let bytes = format!("{} of {}", ByteSize(self.received()), ByteSize(self.total()));
        match self.layers() {
            Some(layers) => format!("{layers}, {bytes}"),
            None => bytes,
        }
    }

    fn percent(&self) -> u64 {
        let percent = u128::from(self.received()) * 100 / u128::from(self.total().max(1));
        u64::try_from(percent).unwrap_or(100)
    }

    /// Returns the bytes per second in the last [`WINDOW`]. `None` if it is too early.
    fn rate(&self, now: Instant) -> Option<u64> {
        let (since, before) = *self.samples.front()?;
        let passed = now.duration_since(since);
        let millis = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        let received = self.received().saturating_sub(before);
        (passed >= SAMPLE_INTERVAL).then(|| received.saturating_mul(1000) / millis)
    }

    fn sample(&mut self, now: Instant) {
        if self.samples.back().is_some_and(|(last, _)| now.duration_since(*last) >= SAMPLE_INTERVAL) {
            self.samples.push_back((now, self.received()));
        }
        while self.samples.get(1).is_some_and(|(time, _)| now.duration_since(*time) >= WINDOW) {
            self.samples.pop_front();
        }
    }
}

fn format_time(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::chain::ChainId;
    use larder_model::sizing::Admission;

    const MIB: u64 = 1 << 20;

    /// A display with a scripted clock.
    struct Script {
        progress: Progress,
        start: Instant,
    }

    impl Script {
        /// Starts a build of one image with `layers` layers, and finishes its plan after 0 seconds.
        fn planned(layers: usize, present: usize, fetch_bytes: u64) -> Self {
            let mut script = Script { progress: Progress::default(), start: Instant::now() };
            let admission = Admission::new([fetch_bytes], ByteSize(1 << 40));
            script.at(0.0, &Event::Started { larder: String::new(), images: 1 });
            script.at(0.0, &Event::Planned { admission, layers, present, fetch_bytes });
            script
        }

        fn time(&self, seconds: f64) -> Instant {
            self.start + Duration::from_secs_f64(seconds)
        }

        /// Applies an event and returns the line that is then due.
        fn at(&mut self, seconds: f64, event: &Event) -> Option<String> {
            let now = self.time(seconds);
            self.progress.observe(event, now);
            self.progress.due(now)
        }

        fn idle(&mut self, seconds: f64) -> Option<String> {
            let now = self.time(seconds);
            self.progress.due(now)
        }
    }

    fn blob(name: &str) -> Digest {
        Digest::sha256(name.as_bytes())
    }

    fn started(name: &str, compressed_size: u64, from: Option<&str>) -> Event {
        let from = from.map(str::to_owned);
        Event::LayerStarted { blob: blob(name), compressed_size, images: vec![], from }
    }

    fn received(name: &str, received: u64) -> Event {
        Event::LayerProgress { blob: blob(name), received, written: 0 }
    }

    fn committed(name: &str) -> Event {
        let chain_id = ChainId::base(&blob(name));
        Event::LayerCommitted {
            blob: blob(name),
            diff_id: None,
            chain_id,
            size: 1,
            entries: 1,
            elapsed_ms: 1,
        }
    }

    fn sealed() -> Event {
        Event::Sealed { digest: blob("seal") }
    }

    #[test]
    fn a_line_is_due_every_ten_seconds_or_ten_percent() {
        let mut script = Script::planned(3, 1, 200 * MIB);
        assert_eq!(script.at(0.0, &started("a", 100 * MIB, None)), None);
        assert_eq!(script.at(0.0, &started("b", 100 * MIB, None)), None);
        assert_eq!(script.at(1.0, &received("a", 10 * MIB)), None, "5 percent");
        let line = script.at(2.0, &received("a", 20 * MIB));
        assert_eq!(line.as_deref(), Some("0/2 layers, 20 MiB of 200 MiB, 10 MiB/s, 18 s left"));
        assert_eq!(script.at(2.5, &received("a", 60 * MIB)), None, "less than a second later");
        assert_eq!(script.idle(3.0).as_deref(), Some("0/2 layers, 60 MiB of 200 MiB, 20 MiB/s, 7 s left"));
        assert_eq!(script.idle(12.9), None);
        assert_eq!(
            script.idle(13.0).as_deref(),
            Some("0/2 layers, 60 MiB of 200 MiB, 4.61 MiB/s, 30 s left")
        );
        assert_eq!(script.idle(33.0).as_deref(), Some("0/2 layers, 60 MiB of 200 MiB, 0 B/s"));
    }

    #[test]
    fn the_phases_after_the_download_are_named() {
        let mut script = Script::planned(1, 0, 10 * MIB);
        script.at(0.0, &started("a", 10 * MIB, None));
        let line = script.at(2.0, &received("a", 10 * MIB));
        assert_eq!(line.as_deref(), Some("0/1 layers, 10 MiB of 10 MiB, unpacking"));
        assert_eq!(script.at(2.1, &committed("a")).as_deref(), Some("1/1 layers, 10 MiB of 10 MiB, in 2 s"));
        assert_eq!(script.idle(11.0), None);
        assert_eq!(script.idle(12.1).as_deref(), Some("syncing and sealing the volume"));
        assert_eq!(script.at(30.0, &sealed()), None);
        assert_eq!(script.idle(60.0), None);
    }

    #[test]
    fn reused_layers_leave_the_total() {
        let mut script = Script::planned(3, 0, 300);
        script.at(0.0, &started("a", 100, None));
        script.at(0.0, &started("b", 200, Some("other")));
        script.at(0.1, &received("b", 200));
        assert_eq!((script.progress.received(), script.progress.total()), (0, 100));
        script.at(0.2, &committed("b"));
        script.at(0.2, &committed("b"));
        assert_eq!(script.progress.layers().unwrap(), "0/1 layers");
        assert_eq!(script.at(1.0, &committed("a")).as_deref(), Some("1/1 layers, 100 B of 100 B, in 1 s"));
    }

    #[test]
    fn an_unusable_copy_returns_to_the_total() {
        let mut script = Script::planned(1, 0, 200);
        script.at(0.0, &started("b", 200, Some("other")));
        assert_eq!(script.progress.total(), 0);
        script.at(0.1, &started("b", 200, None));
        assert_eq!(script.progress.total(), 200);
    }

    #[test]
    fn a_short_build_prints_nothing() {
        let mut script = Script::planned(1, 0, 100);
        script.at(0.1, &started("a", 100, None));
        assert_eq!(script.at(0.2, &received("a", 90)), None);
        assert_eq!(script.at(0.9, &committed("a")), None);
    }

    #[test]
    fn a_build_that_fetches_nothing_prints_nothing() {
        let mut script = Script::planned(2, 1, 200);
        script.at(0.0, &started("b", 200, Some("other")));
        assert_eq!(script.at(2.0, &committed("b")), None);
        assert_eq!(script.at(2.2, &sealed()), None);
    }

    #[test]
    fn bytes_of_one_blob_count_once() {
        let mut script = Script::planned(2, 0, 100);
        script.at(0.0, &started("x", 60, None));
        script.at(0.0, &received("x", 999));
        assert_eq!((script.progress.received(), script.progress.total()), (60, 100));
        script.at(0.1, &committed("x"));
        script.at(0.1, &committed("x"));
        assert_eq!(script.progress.received(), 60);
    }

    #[test]
    fn waiting_for_a_registry_is_reported() {
        let mut script = Script { progress: Progress::default(), start: Instant::now() };
        assert_eq!(script.idle(20.0), None, "no build has started");
        script.at(20.0, &Event::Started { larder: String::new(), images: 2 });
        assert_eq!(script.idle(30.0).as_deref(), Some("resolving images: 0/2"));
    }

    #[test]
    fn a_display_that_starts_late_shows_bytes_only() {
        let mut script = Script { progress: Progress::default(), start: Instant::now() };
        let now = script.time(0.0);
        script.progress.join(100, now);
        script.at(0.0, &started("a", 100, None));
        assert_eq!(script.at(2.0, &received("a", 50)).as_deref(), Some("50 B of 100 B, 25 B/s, 2 s left"));
        script.at(2.5, &committed("a"));
        assert_eq!(script.at(3.0, &sealed()).as_deref(), Some("100 B of 100 B, in 3 s"));
    }

    #[test]
    fn times_are_formatted() {
        let format = |seconds| format_time(Duration::from_secs(seconds));
        assert_eq!([21, 200, 7500].map(format), ["21 s", "3 min 20 s", "2 h 5 min"]);
    }
}
