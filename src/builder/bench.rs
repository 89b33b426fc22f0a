//! What a node can do with one image: each stage of a build alone, then all of them together, on this machine's own network,
//! processors and disk.
//!
//! ```text
//! network ─► files of an OCI layout ─► inflate ─► hash ─► together ─► create ─► write ─► sync ─► report
//!                                                         decode: the files, to digests
//!                                                         apply:  the files, to a sealed volume
//!                                                         build:  the registry, to a sealed volume
//! ```
//! What is built comes before the stages of the disk, and everything is removed at the very end: an ext4 without a journal takes ten
//! times as long for a file where others were removed in the last minutes. Between stages the file system is flushed, so that none
//! pays for another. Files are read back from the page cache, as far as it holds them.

mod decode;
mod disk;
mod fetch;
mod layout;
mod place;
mod stopwatch;

use std::collections::HashMap;
use std::fmt;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use self::decode::Kept;
use self::disk::Share;
use self::place::Place;
use self::stopwatch::Stopwatch;
use super::cancel::Cancel;
use super::events::{self, Events};
use super::failure::Fail;
use super::layers::{Change, Layers};
use super::order::{Order, SourceOrder};
use super::registry;
use super::resolve::{NothingKnown, ResolvedImage};
use super::run::{self, Prepared, blocking};
use super::source::{self, Source};
use crate::archive::Format;
use crate::config::Config;
use larder_model::bench_report::{
    BenchReport, Kind, MeasuredImage, MeasuredLayer, Settings, Stage, StageName, Took, approximate,
};
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::event::{Event, Failure, Status};
use larder_model::job::{LayerFormat, VolumeKind};
use larder_model::size::ByteSize;
use larder_model::sizing::Sizing;

/// Bytes of a header in a tar, one for each member at least.
const TAR_HEADER: u64 = 512;

/// Room for inodes, directories and documents, bytes.
const ROOM: u64 = 32 << 20;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Request {
    /// What is done together.
    pub kind: Kind,
    /// A directory on the file system to be measured. All happens in one directory that is made in it and removed at the end.
    pub dir: PathBuf,
    /// The image, and how it is built. Its volume, size and source are chosen here.
    pub order: Order,
}

/// What begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A stage alone.
    Stage(StageName),
    /// All that counts.
    Together(Kind),
    /// Removing what was made.
    Removing,
}

/// Hears of each step.
pub type Tell = Box<dyn Fn(Step) + Send + Sync>;

/// Measures. What was made is gone afterwards, whatever happens.
///
/// # Errors
/// Every failure, the decisive one first.
pub async fn run(
    request: Request,
    config: Config,
    events: Events,
    tell: Tell,
    cancel: Cancel,
) -> Result<BenchReport, Vec<Failure>> {
    let reference = request.order.images.first().map(|image| image.given().to_owned());
    let measured = within(request, config, events, tell, cancel).await;
    measured.map_err(|fails| decisive_first(fails, reference))
}

async fn within(
    request: Request,
    config: Config,
    events: Events,
    tell: Tell,
    cancel: Cancel,
) -> Result<BenchReport, Vec<Fail>> {
    let Request { kind, dir, order } = request;
    if kind.builds() {
        // Told before gigabytes move, not by the build in the end.
        run::rights(&order)?;
    }
    let place = Arc::new(blocking(move || Place::make(&dir)).await?);
    let bench =
        Bench { kind, order, config, events, tell, cancel, place: Arc::clone(&place), stages: Vec::new() };
    // Boxed: all of a build is in it.
    let measured = Box::pin(bench.measure()).await;
    blocking(move || {
        place.remove();
        Ok(())
    })
    .await?;
    measured
}

/// All that the stages share.
struct Bench {
    kind: Kind,
    order: Order,
    config: Config,
    events: Events,
    tell: Tell,
    cancel: Cancel,
    place: Arc<Place>,
    stages: Vec<Stage>,
}

impl fmt::Debug for Bench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bench").field("kind", &self.kind).field("place", &self.place).finish_non_exhaustive()
    }
}

impl Bench {
    /// Whatever this answers, no thread of it is left that writes.
    async fn measure(mut self) -> Result<BenchReport, Vec<Fail>> {
        let (image, changes) = self.network().await?;
        let kept = Arc::new(self.keep(changes).await?);

        self.begin(Step::Stage(StageName::Inflate))?;
        let inflating = Arc::clone(&kept);
        let (layers, took) = blocking(move || inflating.inflate()).await?;
        let mut image = measured(&image, layers);
        let tars = image.tar_bytes();
        self.note(StageName::Inflate, took, (Some(tars), None), 1.0);
        if self.kind.builds() {
            let need = tars.saturating_add(tars.min(disk::MOST_BYTES)).saturating_add(ROOM);
            let place = Arc::clone(&self.place);
            blocking(move || place.require(need, "the volume that is built, and what is written")).await?;
        }

        self.begin(Step::Stage(StageName::Hash))?;
        let (hashed, cancel) = (image.hashed_bytes(), self.cancel.clone());
        let (took, share) = blocking(move || decode::hash(hashed, &cancel)).await?;
        self.note(StageName::Hash, took, (Some(hashed), None), share);

        self.begin(Step::Together(self.kind))?;
        let together = match self.kind {
            Kind::Decode => self.decode(&kept).await?,
            Kind::Apply | Kind::Build => {
                let (took, entries) = self.build().await?;
                for layer in &mut image.layers {
                    layer.entries = entries.get(&layer.digest).copied();
                }
                self.disk(&image).await?;
                took
            }
        };
        Ok(BenchReport::new(self.kind, image, self.settings(), self.stages, together))
    }

    /// Everything that a build asks a registry for: documents, then layers, which are kept.
    async fn network(&mut self) -> Result<(ResolvedImage, Vec<Change>), Vec<Fail>> {
        self.begin(Step::Stage(StageName::Network))?;
        let (registry, absent) = registry::client(&self.order, &self.config, &self.events)?;
        let source = Source::Registry(registry);
        let named = |fails| run::name_absent(fails, &absent);
        let asking = Stopwatch::start();
        let known = Arc::new(NothingKnown);
        let resolved = run::resolve(&self.order, &source, &self.events, &self.cancel, known).await;
        let asked = asking.took(Duration::ZERO);
        let image = resolved.map_err(named)?.pop();
        let image = image.ok_or_else(|| vec![Fail::job(Class::Internal, "no image was resolved")])?;
        let changes = Layers::of(std::slice::from_ref(&image)).changes;
        let compressed = changes.iter().map(Change::size).sum();

        let (kind, place, documents) = (self.kind, Arc::clone(&self.place), image.clone());
        let layout = blocking(move || {
            let (need, what) = need(kind, compressed);
            place.require(need, what)?;
            let layout = place.make_layout()?;
            layout::documents(&layout, &documents)?;
            Ok(layout)
        })
        .await?;
        let receiving = Stopwatch::start();
        let writing = fetch::layers(&source, &changes, &layout, self.order.concurrency, &self.cancel).await;
        let writing = writing.map_err(named)?;
        let received = receiving.took(writing);
        let took = Took {
            wall_seconds: asked.wall_seconds + received.wall_seconds,
            processor_seconds: asked.processor_seconds + received.processor_seconds,
        };
        self.note(StageName::Network, took, (Some(compressed), None), 1.0);
        self.flush().await?;
        Ok((image, changes))
    }

    /// The kept layers, to be read.
    async fn keep(&self, changes: Vec<Change>) -> Result<Kept, Vec<Fail>> {
        let mut order = self.order(self.kept());
        let opened = source::Opened::archive(&order)
            .ok_or_else(|| vec![Fail::job(Class::Internal, "what was kept is no archive")])?;
        let (source, _) = opened.settle(&mut order).await?.source()?;
        let ratio = registry::limits(&self.config).ratio;
        Ok(Kept { source, changes, ratio, cancel: self.cancel.clone() })
    }

    async fn decode(&self, kept: &Arc<Kept>) -> Result<Took, Vec<Fail>> {
        let (kept, concurrency) = (Arc::clone(kept), self.order.concurrency);
        let decoding = tokio::task::spawn_blocking(move || kept.decode(concurrency)).await;
        decoding.map_err(|e| vec![Fail::job(Class::Internal, format!("decoding all layers ended: {e}"))])?
    }

    /// A build as any other; answers the members of each layer, too.
    async fn build(&self) -> Result<(Took, HashMap<Digest, u64>), Vec<Fail>> {
        let source = if self.kind == Kind::Build { SourceOrder::Registries } else { self.kept() };
        let mut order = self.order(source);
        let place = Arc::clone(&self.place);
        // Whatever there is, for the rule was applied when the image was ordered, and here nothing stays.
        order.size = ByteSize(blocking(move || place.free()).await?);
        let (events, lines) = events::channel();
        let watch = Stopwatch::start();
        let prepared = Prepared::new(order, self.config.clone(), events.clone());
        let outcome = Box::pin(prepared.run(self.cancel.clone())).await;
        let took = watch.took(Duration::ZERO);
        let (status, failures) = (outcome.status, outcome.failures.clone());
        events.emit(Event::Result(outcome));
        let mut members = HashMap::new();
        for line in lines {
            match line.event {
                Event::LayerCommitted { blob, entries, .. } => drop(members.insert(blob, entries)),
                // They explain a slow build; everything else was told before.
                retried @ Event::Retried { .. } => self.events.emit(retried),
                Event::Result(_) => break,
                _ => {}
            }
        }
        match status {
            Status::Ok => Ok((took, members)),
            Status::Failed => Err(failures
                .into_iter()
                .map(|Failure { class, images, layer, message }| Fail { class, images, layer, message })
                .collect()),
        }
    }

    /// Names, contents and a sync, as many as the image has.
    async fn disk(&mut self, image: &MeasuredImage) -> Result<(), Vec<Fail>> {
        let entries = image.entries().unwrap_or_default();
        let (names, bytes) = match self.order.layer_format {
            LayerFormat::Overlay => (entries, image.tar_bytes().saturating_sub(entries * TAR_HEADER)),
            LayerFormat::Erofs => (0, image.tar_bytes()),
        };
        let share = Share::of(names, bytes);
        self.flush().await?;
        let (place, cancel) = (Arc::clone(&self.place), self.cancel.clone());
        if self.order.layer_format == LayerFormat::Overlay {
            self.begin(Step::Stage(StageName::Create))?;
            let (place, cancel) = (Arc::clone(&place), cancel.clone());
            let took = blocking(move || disk::create(&place, share.names, &cancel)).await?;
            self.note(StageName::Create, took, (None, Some(names)), share.of_image);
        }
        self.begin(Step::Stage(StageName::Write))?;
        let writing = Arc::clone(&place);
        let took = blocking(move || {
            writing.require(share.bytes, "what is written")?;
            disk::write(&writing, share.bytes, &cancel)
        })
        .await?;
        self.note(StageName::Write, took, (Some(bytes), None), share.of_image);
        self.begin(Step::Stage(StageName::Sync))?;
        let took = blocking(move || disk::sync(&place)).await?;
        let names = (names > 0).then_some(names);
        self.note(StageName::Sync, took, (Some(bytes), names), share.of_image);
        (self.tell)(Step::Removing);
        Ok(())
    }

    async fn flush(&self) -> Result<(), Vec<Fail>> {
        let place = Arc::clone(&self.place);
        blocking(move || place.sync()).await
    }

    fn begin(&self, step: Step) -> Result<(), Vec<Fail>> {
        go_on(&self.cancel).map_err(|fail| vec![fail])?;
        (self.tell)(step);
        Ok(())
    }

    fn note(&mut self, name: StageName, took: Took, amount: (Option<u64>, Option<u64>), share: f64) {
        self.stages.push(Stage::new(name, self.kind, took, amount, share));
    }

    /// The layout, as a source.
    fn kept(&self) -> SourceOrder {
        let format = Some(Format::OciLayout);
        SourceOrder::Archive { path: self.place.layout(), format, received: false }
    }

    /// The order of a build that leaves nothing.
    fn order(&self, source: SourceOrder) -> Order {
        Order {
            volume: self.place.volume(),
            volume_kind: VolumeKind::Directory,
            sizing: Sizing::Warn,
            source,
            ..self.order.clone()
        }
    }

    fn settings(&self) -> Settings {
        let Order { concurrency, layer_format, tar_split, .. } = self.order;
        Settings {
            processors: thread::available_parallelism().map_or(1, NonZero::get),
            concurrency,
            connections_per_host: self.order.registry.connections_per_host,
            ranges_per_blob: self.config.registry.ranges_per_blob,
            layer_format: self.kind.builds().then_some(layer_format),
            tar_split: self.kind.builds().then_some(tar_split),
        }
    }
}

fn measured(image: &ResolvedImage, layers: Vec<MeasuredLayer>) -> MeasuredImage {
    MeasuredImage {
        reference: image.reference.given().to_owned(),
        name: image.reference.to_string(),
        manifest: image.manifest_digest.clone(),
        platform: image.platform.clone(),
        layers,
    }
}

/// Room that it takes before anybody knows how far the layers inflate: three times, as in the 3x rule.
fn need(kind: Kind, compressed: u64) -> (u64, &'static str) {
    if !kind.builds() {
        return (compressed.saturating_add(ROOM), "the compressed image");
    }
    let inflated = compressed.saturating_mul(3);
    let need = [compressed, inflated, inflated.min(disk::MOST_BYTES), ROOM];
    let need = need.into_iter().fold(0, u64::saturating_add);
    (need, "the compressed image, the volume that is built, and what is written")
}

/// An error once somebody asked to stop.
fn go_on(cancel: &Cancel) -> Result<(), Fail> {
    match cancel.reason() {
        None => Ok(()),
        Some(_) => Err(Fail::job(Class::Cancelled, "interrupted")),
    }
}

/// The share of `all` that `some` is; all of nothing is all.
fn share(some: u64, all: u64) -> f64 {
    if all == 0 { 1.0 } else { approximate(some) / approximate(all) }
}

/// An interruption explains itself, and nothing beside a failure.
fn decisive_first(mut fails: Vec<Fail>, reference: Option<String>) -> Vec<Failure> {
    if fails.iter().any(|fail| fail.class != Class::Cancelled) {
        fails.retain(|fail| fail.class != Class::Cancelled);
    } else {
        fails = vec![Fail::job(Class::Cancelled, "interrupted; nothing is left of it")];
    }
    let class = Class::decisive(fails.iter().map(|fail| fail.class));
    fails.sort_by_key(|fail| Some(fail.class) != class);
    let named = fails.into_iter().map(|mut fail| {
        // There is one image, and a layer is of it.
        if fail.layer.is_some() && fail.images.is_empty() {
            fail.images.extend(reference.clone());
        }
        Failure::from(fail)
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_asked_for_by_what_is_done() {
        assert_eq!(need(Kind::Decode, 100).0, 100 + ROOM);
        assert_eq!(need(Kind::Apply, 100).0, 700 + ROOM);
        assert_eq!(need(Kind::Build, 4 << 30).0, (4 << 30) + (12 << 30) + (2 << 30) + ROOM);
        assert_eq!(need(Kind::Build, u64::MAX).0, u64::MAX);
    }

    #[test]
    fn a_failure_comes_before_what_followed_from_it() {
        let layer = Fail { layer: Some(Digest::sha256(b"x")), ..Fail::job(Class::Corrupt, "bad") };
        let cancelled = || Fail::job(Class::Cancelled, "interrupted");
        let fails = vec![cancelled(), Fail::job(Class::Transient, "slow"), layer];
        let told = decisive_first(fails, Some("a:1".into()));
        assert_eq!(
            told.iter().map(|failure| failure.class).collect::<Vec<_>>(),
            [Class::Corrupt, Class::Transient]
        );
        assert_eq!(told[0].images, ["a:1"]);
        let told = decisive_first(vec![cancelled(), cancelled()], None);
        assert!(told.len() == 1 && told[0].message.contains("nothing is left"));
    }
}
