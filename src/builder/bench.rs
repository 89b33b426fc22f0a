//! Benchmark of a node with one image: each stage of a build alone, then all of them together, on this
//! machine's own network, processors and disk.
//!
//! ```text
//! network ─► files of an OCI layout ─► decompress ─► hash ─► together ─► create ─► write ─► sync ─► report
//!                                                            decode: the files, to digests
//!                                                            apply:  the files, to a sealed volume
//!                                                            build:  the registry, to a sealed volume
//! ```
//! The build comes before the stages of the disk, and all files are removed at the very end. The reason is
//! that an ext4 without a journal takes ten times as long to create a file if others were removed in the last
//! minutes. So each run has its own directory, and all are removed after the last run. The file system is
//! flushed between stages, so that none pays for another. Files are read back from the page cache, as far as
//! they fit.

mod decode;
mod disk;
mod fetch;
mod layout;
mod load;
mod stopwatch;
mod workdir;

use std::collections::HashMap;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, thread};

use self::decode::StoredLayers;
use self::disk::Sample;
use self::load::LoadMeter;
use self::stopwatch::Stopwatch;
use self::workdir::WorkDir;
use super::blocking::blocking;
use super::cancel::Cancel;
use super::events::{self, Events};
use super::layers::{ChangeSet, Layers};
use super::order::{BuildRequest, ImageSource};
use super::prepare::OpenedSource;
use super::registry;
use super::resolve::{EmptyCache, ResolvedImage};
use super::run::{self, Prepared};
use super::source::Source;
use crate::archive::Format;
use crate::config::Config;
use larder_model::bench_report::{
    BenchReport, Elapsed, Kind, MeasuredImage, MeasuredLayer, Settings, Stage, StageName, approximate,
};
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::event::{Event, Failure, Status};
use larder_model::job::{LayerFormat, VolumeKind};
use larder_model::size::ByteSize;
use larder_model::sizing::Sizing;
use larder_model::timeline::Recorder;

/// Size of a header in a tar, bytes. Each member has at least one.
const TAR_HEADER: u64 = 512;

/// Space for inodes, directories and documents, bytes.
const ROOM: u64 = 32 << 20;

/// Options of a benchmark.
#[derive(Clone, Debug)]
pub struct Request {
    /// The stages that are run together.
    pub kind: Kind,
    /// A directory on the file system to be measured. All files are created in one directory below it, which
    /// is removed at the end.
    pub dir: PathBuf,
    /// Number of runs to measure.
    pub runs: u16,
    /// The image and its build options. Volume, size and source are set by the benchmark.
    pub order: BuildRequest,
}

/// A step of the benchmark that starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// One stage alone.
    Stage(StageName),
    /// All stages together.
    Together(Kind),
    /// A run, after the first one.
    Run(u16),
    /// Removal of the created files.
    Removing,
}

/// Callback for the start of each step.
pub type StepCallback = Arc<dyn Fn(Step) + Send + Sync>;

/// Runs the benchmark. The created files are removed in any case.
///
/// # Errors
/// All failures, the decisive one first.
pub async fn run(
    request: Request,
    config: Config,
    events: Events,
    tell: StepCallback,
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
    tell: StepCallback,
    cancel: Cancel,
) -> Result<BenchReport, Vec<Failure>> {
    let Request { kind, dir, runs, order } = request;
    if kind.builds() {
        // Reported before gigabytes are moved, and not only by the build at the end.
        run::rights(&order)?;
    }
    let meter = LoadMeter::start();
    let start = |workdir| Bench {
        kind,
        order: order.clone(),
        config: config.clone(),
        events: events.clone(),
        tell: Arc::clone(&tell),
        cancel: cancel.clone(),
        workdir,
        stages: Vec::new(),
    };
    let mut workdirs = Vec::new();
    let measured = measure_all(runs, &dir, start, &mut workdirs).await;
    let load = meter.and_then(LoadMeter::end);
    tell(Step::Removing);
    blocking(move || {
        workdirs.iter().for_each(|workdir| workdir.remove());
        Ok(())
    })
    .await?;
    let none = || vec![Failure::job(Class::Internal, "no run was measured")];
    BenchReport::of_runs(measured?, load).ok_or_else(none)
}

/// Measures `runs` times, and adds the directory of each run to `workdirs`.
async fn measure_all(
    runs: u16,
    dir: &Path,
    start: impl Fn(Arc<WorkDir>) -> Bench,
    workdirs: &mut Vec<Arc<WorkDir>>,
) -> Result<Vec<BenchReport>, Vec<Failure>> {
    let mut reports = Vec::new();
    for run in 1..=runs {
        let parent = dir.to_owned();
        let workdir = Arc::new(blocking(move || WorkDir::make(&parent)).await?);
        workdirs.push(Arc::clone(&workdir));
        let bench = start(workdir);
        let events = bench.events.clone();
        if run > 1 {
            (bench.tell)(Step::Run(run));
        }
        // Boxed because the future contains a whole build.
        match Box::pin(bench.measure()).await {
            Ok(report) => reports.push(report),
            // The files of earlier runs take space. A report of fewer runs is better than none.
            Err(fails) if run > 1 && fails.iter().all(|fail| fail.class == Class::NoSpace) => {
                let why = fails.first().map(|fail| fail.message.as_str()).unwrap_or_default();
                events.emit(Event::Warning { message: format!("only {} of {runs} runs: {why}", run - 1) });
                break;
            }
            Err(fails) => return Err(fails),
        }
    }
    Ok(reports)
}

/// A regular build.
struct Built {
    took: Elapsed,
    /// Number of members of each layer.
    members: HashMap<Digest, u64>,
    recorder: Recorder,
}

/// State that the stages of a run share.
struct Bench {
    kind: Kind,
    order: BuildRequest,
    config: Config,
    events: Events,
    tell: StepCallback,
    cancel: Cancel,
    workdir: Arc<WorkDir>,
    stages: Vec<Stage>,
}

impl fmt::Debug for Bench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bench")
            .field("kind", &self.kind)
            .field("workdir", &self.workdir)
            .finish_non_exhaustive()
    }
}

impl Bench {
    /// Runs the stages. When it returns, no thread of it writes any more.
    async fn measure(mut self) -> Result<BenchReport, Vec<Failure>> {
        let (image, changes) = self.network().await?;
        let stored = Arc::new(self.open_layout(changes).await?);

        self.begin(Step::Stage(StageName::Inflate))?;
        let inflating = Arc::clone(&stored);
        let (layers, took) = blocking(move || inflating.inflate()).await?;
        let mut image = measured(&image, layers);
        let tars = image.tar_bytes();
        self.note(StageName::Inflate, took, (Some(tars), None), 1.0);
        if self.kind.builds() {
            let need = tars.saturating_add(tars.min(disk::MAX_BYTES)).saturating_add(ROOM);
            let workdir = Arc::clone(&self.workdir);
            blocking(move || workdir.require(need, "the built volume and the written files")).await?;
        }

        self.begin(Step::Stage(StageName::Hash))?;
        let (hashed, together) = (image.hashed_bytes(), image.hashed_together_bytes());
        let cancel = self.cancel.clone();
        let (took, fraction) = blocking(move || decode::hash(hashed, together, &cancel)).await?;
        self.note(StageName::Hash, took, (Some(hashed), None), fraction);

        self.begin(Step::Together(self.kind))?;
        let (together, timeline) = match self.kind {
            Kind::Decode => (self.decode(&stored).await?, None),
            Kind::Apply | Kind::Build => {
                let built = self.build().await?;
                for layer in &mut image.layers {
                    layer.entries = built.members.get(&layer.digest).copied();
                }
                self.disk(&image).await?;
                (built.took, built.recorder.timeline().cloned().map(Box::new))
            }
        };
        let report = BenchReport::new(self.kind, image, self.settings(), self.stages, together);
        Ok(BenchReport { timeline, ..report })
    }

    /// Fetches everything that a build requests from a registry: documents, then layers, which are stored.
    async fn network(&mut self) -> Result<(ResolvedImage, Vec<ChangeSet>), Vec<Failure>> {
        self.begin(Step::Stage(StageName::Network))?;
        let (registry, absent) = registry::client(&self.order, &self.config, &self.events)?;
        let source = Source::Registry(registry);
        let named = |fails| run::name_absent(fails, &absent);
        let asking = Stopwatch::start();
        let cache = Arc::new(EmptyCache);
        let resolved = run::resolve(&self.order, &source, &self.events, &self.cancel, cache).await;
        let asked = asking.took(Duration::ZERO);
        let image = resolved.map_err(named)?.pop();
        let image = image.ok_or_else(|| vec![Failure::job(Class::Internal, "no image was resolved")])?;
        let changes = Layers::of(std::slice::from_ref(&image)).changes;
        let compressed = changes.iter().map(ChangeSet::size).sum();

        let (kind, workdir, documents) = (self.kind, Arc::clone(&self.workdir), image.clone());
        let layout = blocking(move || {
            let (need, what) = need(kind, compressed);
            workdir.require(need, what)?;
            let layout = workdir.make_layout()?;
            layout::documents(&layout, &documents)?;
            Ok(layout)
        })
        .await?;
        let receiving = Stopwatch::start();
        let writing = fetch::layers(&source, &changes, &layout, self.order.concurrency, &self.cancel).await;
        let writing = writing.map_err(named)?;
        let received = receiving.took(writing);
        let took = Elapsed {
            wall_seconds: asked.wall_seconds + received.wall_seconds,
            processor_seconds: asked.processor_seconds + received.processor_seconds,
        };
        self.note(StageName::Network, took, (Some(compressed), None), 1.0);
        self.flush().await?;
        Ok((image, changes))
    }

    /// Opens the stored layers for reading.
    async fn open_layout(&self, changes: Vec<ChangeSet>) -> Result<StoredLayers, Vec<Failure>> {
        let mut order = self.order(self.layout_source());
        let opened = OpenedSource::archive(&order)
            .ok_or_else(|| vec![Failure::job(Class::Internal, "the stored layers are not an archive")])?;
        let (source, _) = opened.prepare(&mut order).await?.source()?;
        let ratio = registry::limits(&self.config).ratio;
        Ok(StoredLayers { source, changes, ratio, cancel: self.cancel.clone() })
    }

    async fn decode(&self, stored: &Arc<StoredLayers>) -> Result<Elapsed, Vec<Failure>> {
        let (stored, concurrency) = (Arc::clone(stored), self.order.concurrency);
        let decoding = crate::blocking::spawn(move || stored.decode(concurrency)).await;
        decoding.map_err(|e| {
            vec![Failure::job(Class::Internal, format!("the task that decodes layers failed: {e}"))]
        })?
    }

    /// Runs a regular build.
    async fn build(&self) -> Result<Built, Vec<Failure>> {
        let source = if self.kind == Kind::Build { ImageSource::Registries } else { self.layout_source() };
        let mut order = self.order(source);
        let workdir = Arc::clone(&self.workdir);
        // All free space: the 3x rule does not apply, because nothing stays on the volume.
        order.size = ByteSize(blocking(move || workdir.free()).await?);
        let (events, lines) = events::channel();
        let watch = Stopwatch::start();
        let prepared = Prepared::new(order, self.config.clone(), events.clone());
        let outcome = Box::pin(prepared.run(self.cancel.clone())).await;
        let took = watch.took(Duration::ZERO);
        let (status, failures) = (outcome.status, outcome.failures.clone());
        events.emit(Event::Result(outcome));
        let mut built = Built { took, members: HashMap::new(), recorder: Recorder::default() };
        for line in lines {
            built.recorder.take(&line);
            match line.event {
                Event::LayerCommitted { blob, entries, .. } => drop(built.members.insert(blob, entries)),
                // These explain a slow build; other events were already reported.
                event @ (Event::Retried { .. } | Event::ConnectionReplaced { .. }) => self.events.emit(event),
                Event::Result(_) => break,
                _ => {}
            }
        }
        match status {
            Status::Ok => Ok(built),
            Status::Failed => Err(failures),
        }
    }

    /// Creates files, writes contents and syncs them, as many as the image has.
    async fn disk(&mut self, image: &MeasuredImage) -> Result<(), Vec<Failure>> {
        let entries = image.entries().unwrap_or_default();
        let (names, bytes) = match self.order.layer_format {
            LayerFormat::Overlay => (entries, image.tar_bytes().saturating_sub(entries * TAR_HEADER)),
            LayerFormat::Erofs => (0, image.tar_bytes()),
        };
        let sample = Sample::of(names, bytes);
        self.flush().await?;
        let (workdir, cancel) = (Arc::clone(&self.workdir), self.cancel.clone());
        if self.order.layer_format == LayerFormat::Overlay {
            self.begin(Step::Stage(StageName::Create))?;
            let (workdir, cancel) = (Arc::clone(&workdir), cancel.clone());
            let took = blocking(move || disk::create(&workdir, sample.names, &cancel)).await?;
            self.note(StageName::Create, took, (None, Some(names)), sample.of_image);
        }
        self.begin(Step::Stage(StageName::Write))?;
        let writing = Arc::clone(&workdir);
        let took = blocking(move || {
            writing.require(sample.bytes, "the written files")?;
            disk::write(&writing, sample.bytes, &cancel)
        })
        .await?;
        self.note(StageName::Write, took, (Some(bytes), None), sample.of_image);
        self.begin(Step::Stage(StageName::Sync))?;
        let took = blocking(move || disk::sync(&workdir)).await?;
        let names = (names > 0).then_some(names);
        self.note(StageName::Sync, took, (Some(bytes), names), sample.of_image);
        Ok(())
    }

    async fn flush(&self) -> Result<(), Vec<Failure>> {
        let workdir = Arc::clone(&self.workdir);
        blocking(move || workdir.sync()).await
    }

    fn begin(&self, step: Step) -> Result<(), Vec<Failure>> {
        check_cancelled(&self.cancel).map_err(|fail| vec![fail])?;
        (self.tell)(step);
        Ok(())
    }

    fn note(&mut self, name: StageName, took: Elapsed, amount: (Option<u64>, Option<u64>), fraction: f64) {
        self.stages.push(Stage::new(name, self.kind, took, amount, fraction));
    }

    /// Returns the stored layout as a source.
    fn layout_source(&self) -> ImageSource {
        let format = Some(Format::OciLayout);
        ImageSource::Archive { path: self.workdir.layout(), format, received: false }
    }

    /// Returns the order of a build whose volume is temporary.
    fn order(&self, source: ImageSource) -> BuildRequest {
        BuildRequest {
            volume: self.workdir.volume(),
            volume_kind: VolumeKind::Directory,
            sizing: Sizing::Warn,
            source,
            ..self.order.clone()
        }
    }

    fn settings(&self) -> Settings {
        let BuildRequest { concurrency, layer_format, tar_split, .. } = self.order;
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

/// Returns the space needed before the decompressed size is known: three times the compressed size, as in the
/// 3x rule.
fn need(kind: Kind, compressed: u64) -> (u64, &'static str) {
    if !kind.builds() {
        return (compressed.saturating_add(ROOM), "the compressed image");
    }
    let decompressed = compressed.saturating_mul(3);
    let need = [compressed, decompressed, decompressed.min(disk::MAX_BYTES), ROOM];
    let need = need.into_iter().fold(0, u64::saturating_add);
    (need, "the compressed image, the built volume and the written files")
}

/// Fails if the benchmark was cancelled.
fn check_cancelled(cancel: &Cancel) -> Result<(), Failure> {
    match cancel.reason() {
        None => Ok(()),
        Some(_) => Err(Failure::job(Class::Cancelled, "interrupted")),
    }
}

/// Returns `some` as a fraction of `all`; 1 if `all` is 0.
fn fraction(some: u64, all: u64) -> f64 {
    if all == 0 { 1.0 } else { approximate(some) / approximate(all) }
}

/// Sorts the decisive failure first. A cancellation is reported only if there is no other failure.
fn decisive_first(mut fails: Vec<Failure>, reference: Option<String>) -> Vec<Failure> {
    if fails.iter().any(|fail| fail.class != Class::Cancelled) {
        fails.retain(|fail| fail.class != Class::Cancelled);
    } else {
        fails = vec![Failure::job(Class::Cancelled, "interrupted; all created files were removed")];
    }
    Failure::sort_decisive(&mut fails);
    // There is only one image, so every layer belongs to it.
    for fail in fails.iter_mut().filter(|fail| fail.layer.is_some() && fail.images.is_empty()) {
        fail.images.extend(reference.clone());
    }
    fails
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needed_space_depends_on_the_kind() {
        assert_eq!(need(Kind::Decode, 100).0, 100 + ROOM);
        assert_eq!(need(Kind::Apply, 100).0, 700 + ROOM);
        assert_eq!(need(Kind::Build, 4 << 30).0, (4 << 30) + (12 << 30) + (2 << 30) + ROOM);
        assert_eq!(need(Kind::Build, u64::MAX).0, u64::MAX);
    }

    #[test]
    fn the_decisive_failure_comes_first() {
        let layer = Failure::layer(&Digest::sha256(b"x"), Class::Corrupt, "bad");
        let cancelled = || Failure::job(Class::Cancelled, "interrupted");
        let fails = vec![cancelled(), Failure::job(Class::Transient, "slow"), layer];
        let failures = decisive_first(fails, Some("a:1".into()));
        assert_eq!(
            failures.iter().map(|failure| failure.class).collect::<Vec<_>>(),
            [Class::Corrupt, Class::Transient]
        );
        assert_eq!(failures[0].images, ["a:1"]);
        let failures = decisive_first(vec![cancelled(), cancelled()], None);
        assert!(failures.len() == 1 && failures[0].message.contains("files were removed"));
    }
}
