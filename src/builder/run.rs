//! A build from its order to the seal.

mod cached;
mod seal;

use std::sync::Arc;
use std::time::Instant;

use super::blocking::blocking;
use super::cancel::Cancel;
use super::events::Events;
use super::extraction::Shared;
use super::layers::{self, Layers};
use super::opening::open_volume;
use super::order::{BuildRequest, Sharing};
use super::pipeline::Pipeline;
use super::prepare::{OpenedSource, ReadySource};
use super::resolve::{self, DocumentCache, EmptyCache, ResolvedImage};
use super::share::Share;
use super::source::Source;
use super::{outcome, registry, unsynced};
use crate::config::Config;
use crate::volume::{self, Opened, Trust, Volume};
use cached::{VolumeCache, keep_documents};
use larder_layer::overlay::attributes::Rights;
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::event::{Event, Failure, Outcome};
use larder_model::job::{LayerFormat, VolumeKind};
use larder_model::manifest::Descriptor;
use larder_model::plan_report::{PlanReport, PlannedImage, PlannedLayer};
use larder_model::pull_secret::{PullSecretName, no_credential_in};
use larder_model::seal::CacheManifest;
use larder_model::size::ByteSize;
use larder_model::sizing::{Admission, Sizing};
use larder_sys::privilege::{Capabilities, Capability};
use larder_sys::process;
use seal::{check_signed, seal, verify};

/// Runs an order. Failures are part of the outcome.
pub async fn run(order: BuildRequest, config: Config, events: Events, cancel: Cancel) -> Outcome {
    Prepared::new(order, config, events).run(cancel).await
}

/// An order after all local files except the volume were read. From here only the volume and the network are
/// needed.
#[derive(Debug)]
pub struct Prepared {
    order: BuildRequest,
    config: Config,
    events: Events,
    source: OpenedSource,
    started: Instant,
}

impl Prepared {
    /// Emits the start event, and reads pull secrets, certificates, keys and the configuration of registries.
    pub fn new(order: BuildRequest, config: Config, events: Events) -> Self {
        let started = Instant::now();
        events.emit(Event::Started { larder: env!("CARGO_PKG_VERSION").into(), images: order.images.len() });
        let source = match (OpenedSource::archive(&order), &order.fetcher) {
            (Some(archive), _) => archive,
            (None, Some(fetcher)) => OpenedSource::Remote(fetcher.clone()),
            (None, None) => OpenedSource::Registry(registry::client(&order, &config, &events)),
        };
        Prepared { order, config, events, source, started }
    }

    /// Runs the order. Failures are part of the outcome.
    pub async fn run(self, cancel: Cancel) -> Outcome {
        let Prepared { order, config, events, source, started } = self;
        let client = source.registry();
        let built = build(order, &config, source, &events, &cancel).await;
        if let Some(client) = client {
            registry::report_traffic(&client, &events);
        }
        match built {
            Ok(Built { sealed, already }) => {
                Outcome { already_sealed: already, ..outcome::sealed(&sealed, started.elapsed()) }
            }
            Err(fails) => outcome::failed(fails, &cancel, started.elapsed()),
        }
    }

    /// Resolves the images of the order and applies the 3x rule. No layer data is read.
    ///
    /// # Errors
    /// All failures that occurred.
    pub async fn plan(self, cancel: Cancel) -> Result<PlanReport, Vec<Failure>> {
        let Prepared { order, source, events, .. } = self;
        plan(order, source, &events, &cancel).await
    }
}

/// A sealed volume.
struct Built {
    sealed: CacheManifest,
    /// `true` if an earlier build sealed it.
    already: bool,
}

async fn build(
    mut order: BuildRequest,
    config: &Config,
    source: OpenedSource,
    events: &Events,
    cancel: &Cancel,
) -> Result<Built, Vec<Failure>> {
    if !order.layer_format_given
        && let Some(format) = volume::job::format_at(&order.volume)
    {
        order.layer_format = format;
    }
    if order.verity && order.layer_format != LayerFormat::Erofs {
        let message = "--verity requires EROFS layers: give --layer-format erofs, or omit --verity";
        return Err(vec![Failure::job(Class::Invalid, message)]);
    }
    let rights = rights(&order)?;
    process::clear_umask();
    // Failure is ignored: with a low soft limit, fewer layers can be processed at a time.
    let _ = process::raise_open_files();

    let source = prepare_source(source, &mut order, cancel).await?;
    let order = &order;
    let identity = order.identity();
    let opening = order.clone();
    let volume = match blocking(move || open_volume(&opening, Trust::ThisBoot)).await? {
        Opened::Sealed(sealed) => {
            source.check_sealed(order, &sealed)?;
            check_size(order, &sealed)?;
            check_signed(order).await?;
            if order.verify_after {
                verify(order).await?;
            }
            events.emit(Event::Sealed { digest: sealed.digest.clone() });
            return Ok(Built { sealed: *sealed, already: true });
        }
        Opened::Filling(volume) => Arc::new(unsynced::verify(order, *volume, events, cancel).await?),
    };
    let (source, absent) = source.source()?;
    let cache = Arc::new(VolumeCache::of(&volume)?);
    let resolved = resolve(order, &source, events, cancel, cache).await;
    let images = resolved.map_err(|fails| name_absent(fails, &absent))?;
    let layers = Layers::of(&images);
    let admission = admit(order, &volume, &images, &layers, events)?;
    if let Some(supervisor) = order.supervisor.clone().filter(|_| order.volume_kind == VolumeKind::Disk) {
        let bytes = admission.need.min(order.size).0;
        let checked = blocking(move || {
            supervisor.check_space(bytes).map_err(|refusal| Failure::job(refusal.class, refusal.message))
        });
        match (checked.await, order.sizing) {
            (Err(failures), Sizing::Warn) if failures.iter().all(|one| one.class == Class::NoSpace) => {
                for Failure { message, .. } in failures {
                    events.emit(Event::Warning { message });
                }
            }
            (checked, _) => checked?,
        }
    }
    keep_documents(&volume, &identity, &images).await?;

    let share = match &order.share {
        None => None,
        Some(Sharing { dir, volume }) => {
            // Only builds of disks mount the disks of other volumes, because only their supervisors have a
            // mount namespace.
            let supervisor = order.supervisor.clone().filter(|_| order.volume_kind.is_disk());
            let (dir, volume) = (dir.clone(), volume.clone());
            let opened = blocking(move || {
                Share::open(&dir, &volume, supervisor)
                    .map_err(|e| Failure::job(Class::Internal, e.to_string()))
            });
            Some(Arc::new(opened.await?))
        }
    };
    let pipeline = Pipeline {
        shared: Arc::new(Shared {
            volume: Arc::clone(&volume),
            rights,
            limits: registry::limits(config),
            tar_split: order.tar_split,
            verity: order.verity,
            cancel: cancel.clone(),
        }),
        share,
        source,
        events: events.clone(),
        concurrency: order.concurrency,
        images: order.images.clone(),
    };
    let content_of = layers.clone();
    pipeline.run(layers).await.map_err(|fails| name_absent(fails, &absent))?;
    drop(pipeline);
    let sealed = seal(order, identity, volume, images, content_of).await?;
    if order.verify_after
        && let Err(fails) = verify(order).await
    {
        let path = order.volume.clone();
        blocking(move || Ok(Volume::unseal(&path)?)).await?;
        return Err(fails);
    }
    events.emit(Event::Sealed { digest: sealed.digest.clone() });
    Ok(Built { sealed, already: false })
}

/// Checks that a sealed volume has the size that the user gave.
fn check_size(order: &BuildRequest, sealed: &CacheManifest) -> Result<(), Vec<Failure>> {
    let (have, wanted) = (sealed.content.size, order.size);
    if order.size_is_computed || wanted == have {
        return Ok(());
    }
    let path = order.volume.display().to_string();
    Err(vec![volume::Error::OtherSize { path, have, wanted }.into()])
}

async fn plan(
    mut order: BuildRequest,
    source: OpenedSource,
    events: &Events,
    cancel: &Cancel,
) -> Result<PlanReport, Vec<Failure>> {
    // If no size was given, the plan reports the required size.
    let size = order.size;
    let (source, absent) = prepare_source(source, &mut order, cancel).await?.source()?;
    let resolved = resolve(&order, &source, events, cancel, Arc::new(EmptyCache)).await;
    let images = resolved.map_err(|fails| name_absent(fails, &absent))?;
    let planned = images.iter().map(|image| PlannedImage {
        reference: image.reference.given().to_owned(),
        name: image.reference.to_string(),
        index: image.index.as_ref().map(|(digest, _)| digest.clone()),
        manifest: image.manifest_digest.clone(),
        platform: image.platform.clone(),
        // Computed by the report, as is `shared_with`.
        compressed_size: 0,
        layers: image.manifest.layers.iter().map(planned_layer).collect(),
    });
    Ok(PlanReport::new(planned.collect(), size))
}

fn planned_layer(layer: &Descriptor) -> PlannedLayer {
    PlannedLayer {
        digest: layer.digest.clone(),
        media_type: layer.media_type.clone(),
        size: layer.size,
        shared_with: Vec::new(),
    }
}

/// Determines the rights of the process. The error names all missing capabilities at once.
pub(super) fn rights(order: &BuildRequest) -> Result<Rights, Vec<Failure>> {
    let rootless = order.rootless;
    let capabilities = Capabilities::effective().map_err(|e| {
        vec![Failure::job(Class::Internal, format!("reading the capabilities of this process: {e}"))]
    })?;
    let missing = capabilities.missing();
    // EROFS images are ordinary files of this process, which need no capability.
    if !missing.is_empty() && !rootless && order.layer_format == LayerFormat::Overlay {
        let list: Vec<String> = missing.iter().map(|c| format!("{c} (to {})", c.purpose())).collect();
        let message = format!(
            "this process lacks {}: run as root, grant them, give --layer-format erofs, which needs none, or --rootless to record attributes that cannot be written",
            list.join(", ")
        );
        return Err(vec![Failure::job(Class::Denied, message)]);
    }
    Ok(Rights { ids: process::ids(), trusted: capabilities.has(Capability::SysAdmin), rootless })
}

/// Prepares the source, unless the build is cancelled.
async fn prepare_source(
    source: OpenedSource,
    order: &mut BuildRequest,
    cancel: &Cancel,
) -> Result<ReadySource, Vec<Failure>> {
    tokio::select! {
        ready = source.prepare(order) => ready,
        () = cancel.cancelled() => Err(vec![Failure::job(Class::Cancelled, "interrupted")]),
    }
}

/// Resolves the images of an order.
pub(super) async fn resolve(
    order: &BuildRequest,
    source: &Source,
    events: &Events,
    cancel: &Cancel,
    cache: Arc<dyn DocumentCache>,
) -> Result<Vec<ResolvedImage>, Vec<Failure>> {
    let resolving = resolve::resolve_all(source, &order.images, &order.platform, cache);
    let results = tokio::select! {
        results = resolving => results,
        () = cancel.cancelled() => return Err(vec![Failure::job(Class::Cancelled, "interrupted")]),
    };
    let mut images = Vec::new();
    let mut fails = Vec::new();
    for result in results {
        match result {
            Ok(image) => {
                events.emit(Event::Resolved {
                    reference: image.reference.given().to_owned(),
                    manifest: image.manifest_digest.clone(),
                    platform: image.platform.clone(),
                    layers: image.manifest.layers.len(),
                    compressed_size: layers::distinct_blobs(std::slice::from_ref(&image)).values().sum(),
                });
                images.push(image);
            }
            Err(fail) => fails.push(fail),
        }
    }
    if let Err(fail) = layers::check_sizes(&images) {
        fails.push(fail);
    }
    if fails.is_empty() { Ok(images) } else { Err(fails) }
}

/// Adds the pull secrets without credentials to failures. They are a likely reason why an image is denied or
/// not found, because registries hide private repositories. Missing, unreadable and malformed secrets are
/// reported in the same words.
pub(super) fn name_absent(mut fails: Vec<Failure>, absent: &[PullSecretName]) -> Vec<Failure> {
    if absent.is_empty() {
        return fails;
    }
    let words = no_credential_in(absent);
    for fail in fails.iter_mut().filter(|fail| matches!(fail.class, Class::Denied | Class::NotFound)) {
        fail.message.push_str(&words);
        if let Some(explanation) = &mut fail.explanation {
            explanation.reason.push_str(&words);
        }
    }
    fails
}

/// Applies the 3x rule (model::sizing) before any layer is fetched.
fn admit(
    order: &BuildRequest,
    volume: &Volume,
    images: &[ResolvedImage],
    layers: &Layers,
    events: &Events,
) -> Result<Admission, Vec<Failure>> {
    let blobs = layers::distinct_blobs(images);
    let admission = Admission::new(blobs.values().copied(), order.size);
    let present = layers.links.iter().filter(|link| volume.has(&link.chain_id)).count();
    let missing: std::collections::HashSet<&Digest> =
        layers.links.iter().filter(|link| !volume.has(&link.chain_id)).map(|link| &link.diff_id).collect();
    let fetch_bytes =
        layers.changes.iter().filter(|c| missing.contains(&c.diff_id)).map(layers::ChangeSet::size).sum();
    for link in layers.links.iter().filter(|link| volume.has(&link.chain_id)) {
        if let Some(layer) = volume.layer(&link.chain_id) {
            let (blob, chain_id) = (layer.blob, layer.chain_id);
            events.emit(Event::LayerPresent { blob, chain_id, compressed_size: layer.compressed_size });
        }
    }
    events.emit(Event::Planned { admission, layers: layers.links.len(), present, fetch_bytes });
    for image in images {
        if let Some(warning) = depth_warning(image) {
            events.emit(Event::Warning { message: warning });
        }
    }
    let shortage = volume.shortage().map_err(|e| vec![Failure::from(e)])?;
    if shortage > 0 {
        let message =
            format!("the file system has {} less than --size: the build can fail", ByteSize(shortage));
        events.emit(Event::Warning { message });
    }
    if admission.fits() {
        return Ok(admission);
    }
    let message = rule_message(&admission);
    match order.sizing {
        Sizing::Warn => {
            let message = format!("{message}: give a larger --size");
            events.emit(Event::Warning { message });
            Ok(admission)
        }
        Sizing::Enforce => {
            let images = order.images.iter().map(|image| image.given().to_owned()).collect();
            let message = format!("{message}: give a larger --size, or --sizing warn");
            Err(vec![Failure { images, ..Failure::job(Class::NoSpace, message) }])
        }
    }
}

/// Returns the message for a violation of the 3x rule.
fn rule_message(admission: &Admission) -> String {
    let images = ByteSize(admission.images_bytes);
    format!(
        "the volume needs {} (three times {images} compressed), but has {}",
        admission.need, admission.have
    )
}

/// Returns a warning for an image with very many layers. All lower directories of an overlayfs must fit in
/// one page of mount options. With a mount point of up to 11 characters that is enough for 120 layers with
/// every consumer.
fn depth_warning(image: &ResolvedImage) -> Option<String> {
    const MAX_LAYERS: usize = 120;
    let layers = image.manifest.layers.len();
    (layers > MAX_LAYERS).then(|| {
        format!(
            "{} has {layers} layers: some runtimes cannot mount more than {MAX_LAYERS}",
            image.reference.given()
        )
    })
}
