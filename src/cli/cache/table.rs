//! The daemon's answers as text. All values are escaped, because they come from another system.

use std::fmt::Write as _;

use super::list;
use crate::api::wire::beyond::{Detailed, Matched, Planned, Snapshots};
use crate::api::wire::{ImageCache, One};
use crate::caches::progress::LayerState;
use crate::caches::record::{ImageDetails, Origin};
use crate::caches::service::LayerDetails;
use crate::caches::volumes::{Kind, Snapshot};
use crate::cli::table::{bytes, rfc3339, rows};
use larder_model::escape::escape;
use larder_model::plan_report::PlannedImage;

const HEAD: [&str; 6] = ["NAME", "STATUS", "SIZE", "IMAGES", "ID", "MESSAGE"];

fn row(cache: &ImageCache) -> Vec<String> {
    let images = match cache.images.as_slice() {
        [first, rest @ ..] if !rest.is_empty() => format!("{} and {} more", escape(first), rest.len()),
        images => escape(&images.concat()),
    };
    vec![
        cache.name.to_string(),
        cache.status.to_string(),
        format!("{} GiB", cache.image_cache_size),
        images,
        cache.id.to_string(),
        escape(cache.message.as_deref().unwrap_or_default()),
    ]
}

/// Formats a single cache.
pub(super) fn one(answer: &One) -> String {
    rows(&HEAD, &[row(&answer.image_cache)], None)
}

/// Formats the best cache for a workload.
pub(super) fn matched(answer: &Matched) -> String {
    let Some(found) = &answer.found else { return String::new() };
    let mut out = rows(&HEAD, &[row(&found.image_cache)], None);
    let _ = writeln!(out, "contains {} of the images, {} compressed", found.images, bytes(found.bytes));
    out
}

/// Formats a cache with its images and layers.
pub(super) fn details(answer: &Detailed) -> String {
    let Detailed { image_cache: cache, details, overview } = answer;
    let mut out = String::new();
    let mut field = |name: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(out, "{name:<12}{value}");
        }
    };
    field("name", cache.name.to_string());
    field("id", cache.id.to_string());
    field("status", cache.status.to_string());
    field("message", escape(cache.message.as_deref().unwrap_or_default()));
    if let Some(build) = &overview.build {
        field("attempts", build.attempts.to_string());
        field("last_error", escape(build.last_error.as_deref().unwrap_or_default()));
    }
    field("created_at", rfc3339(overview.ordered_at));
    field("size", format!("{} GiB", cache.image_cache_size));
    field("used", bytes(overview.used_bytes));
    field("reserved", bytes(overview.reserved_bytes));
    field("attached", list::attached(overview));
    field("expires_at", details.expires_at.map(rfc3339).unwrap_or_default());
    field("sealed_at", details.sealed_at.map(rfc3339).unwrap_or_default());
    field("digest", details.digest.as_ref().map(ToString::to_string).unwrap_or_default());
    if details.refreshing {
        field("refreshing", "yes".into());
    }
    let mut images: Vec<Vec<String>> = details.images.iter().map(image).collect();
    // Images that no build has resolved yet.
    let resolved = |name: &&String| details.images.iter().any(|image| image.reference == **name);
    let unresolved = cache.images.iter().filter(|name| !resolved(name));
    images.extend(unresolved.map(|name| vec![escape(name), "-".into(), "-".into(), "-".into()]));
    if !images.is_empty() {
        out.push('\n');
        out.push_str(&rows(&["IMAGE", "LAYERS", "COMPRESSED", "MANIFEST"], &images, None));
    }
    let layers: Vec<Vec<String>> = details.layers.iter().map(layer).collect();
    if !layers.is_empty() {
        out.push('\n');
        out.push_str(&rows(&["LAYER", "COMPRESSED", "SIZE", "SECONDS", "STATE", "ORIGIN"], &layers, None));
    }
    out
}

fn image(image: &ImageDetails) -> Vec<String> {
    let done = format!("{}/{}", image.layers_done, image.layers);
    vec![escape(&image.reference), done, bytes(image.compressed_size), image.manifest.to_string()]
}

fn layer(layer: &LayerDetails) -> Vec<String> {
    let origin = match (layer.from, layer.origin) {
        (Some(from), _) => format!("reused from {from}"),
        (None, Origin::Fetched) => "fetched".to_owned(),
        (None, Origin::Present) => "present".to_owned(),
        (None, Origin::Reused) => "reused".to_owned(),
    };
    let state = match layer.state {
        LayerState::Running => "running",
        LayerState::Committed => "committed",
    };
    let ms = layer.elapsed_ms;
    vec![
        layer.blob.hex().chars().take(12).collect(),
        bytes(layer.compressed_size),
        bytes(layer.size),
        format!("{}.{}", ms / 1000, ms % 1000 / 100),
        state.to_owned(),
        origin,
    ]
}

/// Formats the sealed volumes of a cache.
pub(super) fn snapshots(answer: &Snapshots) -> String {
    let snapshots: Vec<Vec<String>> = answer.snapshots.iter().map(snapshot).collect();
    rows(&["SNAPSHOT", "STATE", "SEALED", "LAYERS", "KIND", "DIGEST", "PATH"], &snapshots, None)
}

fn snapshot(snapshot: &Snapshot) -> Vec<String> {
    let state = match (snapshot.served, snapshot.in_use) {
        (true, true) => "served, in use",
        (true, false) => "served",
        (false, true) => "in use",
        (false, false) => "being deleted",
    };
    let kind = match snapshot.kind {
        Kind::Directory => "directory",
        Kind::Disk => "disk",
        Kind::VolumeSnapshot => "volume_snapshot",
    };
    let kind = match snapshot.image_allocated {
        None => kind.to_owned(),
        Some(allocated) => format!("{kind}, {}", bytes(allocated)),
    };
    let path = snapshot.path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    vec![
        snapshot.generation.to_string(),
        state.to_owned(),
        rfc3339(snapshot.sealed_at),
        bytes(snapshot.size),
        kind,
        snapshot.digest.to_string(),
        escape(&path),
    ]
}

/// Formats the plan of a create request.
pub(super) fn plan(answer: &Planned) -> String {
    let plan = &answer.plan;
    let images: Vec<Vec<String>> = plan.images.iter().map(planned).collect();
    let mut out = rows(&["IMAGE", "LAYERS", "COMPRESSED", "MANIFEST"], &images, None);
    let fits = if plan.fits == Some(true) { "fits" } else { "does not fit" };
    let _ = writeln!(
        out,
        "to download {}, shared {}; needs a volume of {}, has {}: {fits}",
        bytes(plan.distinct_bytes),
        bytes(plan.shared_bytes),
        plan.admission.need,
        plan.admission.have,
    );
    out
}

fn planned(image: &PlannedImage) -> Vec<String> {
    let layers = image.layers.len().to_string();
    vec![escape(&image.reference), layers, bytes(image.compressed_size), image.manifest.to_string()]
}
