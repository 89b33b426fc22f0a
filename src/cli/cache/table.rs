//! The daemon's answers as text. All values are escaped, because they come from another system.

use std::fmt::Write as _;

use chrono::{DateTime, SecondsFormat, Utc};

use crate::api::wire::beyond::{Detailed, Matched, Planned, Snapshots};
use crate::api::wire::{ImageCache, Many, One};
use crate::caches::progress::LayerState;
use crate::caches::record::{ImageDetails, Origin};
use crate::caches::service::LayerDetails;
use crate::caches::volumes::{Kind, Snapshot};
use larder_model::escape::escape;
use larder_model::plan_report::PlannedImage;
use larder_model::size::ByteSize;

/// Formats a time as in the daemon's JSON.
pub(super) fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

fn bytes(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// Formats rows under a header, with columns as wide as their content.
fn rows(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut written = String::new();
        for (cell, width) in cells.zip(&widths) {
            let _ = write!(written, "{cell:<width$}  ");
        }
        out.push_str(written.trim_end());
        out.push('\n');
    };
    line(&mut head.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    out
}

const HEAD: [&str; 6] = ["NAME", "STATUS", "SIZE", "IMAGES", "ID", "MESSAGE"];

fn row(cache: &ImageCache) -> Vec<String> {
    let images = match cache.images.as_slice() {
        [first, rest @ ..] if !rest.is_empty() => format!("{} and {} more", escape(first), rest.len()),
        images => escape(&images.concat()),
    };
    vec![
        cache.name.to_string(),
        cache.status.to_string(),
        format!("{}GiB", cache.image_cache_size),
        images,
        cache.id.to_string(),
        escape(cache.message.as_deref().unwrap_or_default()),
    ]
}

/// Formats a list of caches.
pub(super) fn list(answer: &Many) -> String {
    let caches: Vec<Vec<String>> = answer.image_caches.iter().map(row).collect();
    rows(&HEAD, &caches)
}

/// Formats a single cache.
pub(super) fn one(answer: &One) -> String {
    rows(&HEAD, &[row(&answer.image_cache)])
}

/// Formats the best cache for a workload.
pub(super) fn matched(answer: &Matched) -> String {
    let Some(found) = &answer.found else { return String::new() };
    let mut out = rows(&HEAD, &[row(&found.image_cache)]);
    let _ = writeln!(out, "contains {} of the images, {} compressed", found.images, bytes(found.bytes));
    out
}

/// Formats a cache with its images and layers.
pub(super) fn details(answer: &Detailed) -> String {
    let Detailed { image_cache: cache, details } = answer;
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
    field("created_at", escape(&cache.created_at));
    field("size", format!("{} GiB", cache.image_cache_size));
    field("expires_at", details.expires_at.map(rfc3339).unwrap_or_default());
    field("sealed_at", details.sealed_at.map(rfc3339).unwrap_or_default());
    field("digest", details.digest.as_ref().map(ToString::to_string).unwrap_or_default());
    if details.refreshing {
        field("refreshing", "yes".into());
    }
    let images: Vec<Vec<String>> = details.images.iter().map(image).collect();
    if !images.is_empty() {
        out.push('\n');
        out.push_str(&rows(&["IMAGE", "LAYERS", "COMPRESSED", "MANIFEST"], &images));
    }
    let layers: Vec<Vec<String>> = details.layers.iter().map(layer).collect();
    if !layers.is_empty() {
        out.push('\n');
        out.push_str(&rows(&["LAYER", "COMPRESSED", "SIZE", "SECONDS", "STATE", "ORIGIN"], &layers));
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
    rows(&["SNAPSHOT", "STATE", "SEALED", "LAYERS", "KIND", "DIGEST", "PATH"], &snapshots)
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
    let mut out = rows(&["IMAGE", "LAYERS", "COMPRESSED", "MANIFEST"], &images);
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use larder_model::image_cache::CacheId;

    #[test]
    fn columns_line_up_and_nothing_reaches_the_terminal() {
        let id = CacheId::random();
        let cache = |name: &str, images: &[&str]| {
            json!({
                "name": name, "id": id, "created_at": "", "images": images, "image_cache_size": 20,
                "retention_days": 0, "building_config": {"cluster": "c"}, "status": "Available", "new": 1,
            })
        };
        let answer =
            json!({"image_caches": [cache("a", &["nginx:1"]), cache("longer", &["a\u{1b}[2J", "b"])]});
        let answer = serde_json::from_value(answer).unwrap();
        let lines: Vec<String> = list(&answer).lines().map(str::to_owned).collect();
        assert_eq!(
            lines[0],
            "NAME    STATUS     SIZE   IMAGES                 ID                                    MESSAGE"
        );
        assert_eq!(lines[1], format!("a       Available  20GiB  nginx:1                {id}"));
        assert_eq!(lines[2], format!("longer  Available  20GiB  a\\u{{1b}}[2J and 1 more  {id}"));
    }
}
