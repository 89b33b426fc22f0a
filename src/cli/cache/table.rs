//! The daemon's answers as text. All values are escaped, because they come from another system.

use std::fmt::Write as _;

use serde_json::Value;

use larder_model::escape::escape;
use larder_model::size::ByteSize;

/// Formats the daemon's JSON for programs.
pub(super) fn json(answer: &Value) -> String {
    format!("{answer:#}\n")
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => escape(text),
        other => escape(&other.to_string()),
    }
}

fn bytes(value: &Value) -> String {
    value.as_u64().map(|bytes| ByteSize(bytes).to_string()).unwrap_or_default()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
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

fn row(cache: &Value) -> Vec<String> {
    let images: Vec<String> = items(&cache["images"]).map(text).collect();
    let images = match images.as_slice() {
        [first, rest @ ..] if !rest.is_empty() => format!("{first} and {} more", rest.len()),
        images => images.concat(),
    };
    let size = format!("{}GiB", text(&cache["image_cache_size"]));
    vec![
        text(&cache["name"]),
        text(&cache["status"]),
        size,
        images,
        text(&cache["id"]),
        text(&cache["message"]),
    ]
}

/// Formats the list in `image_caches`.
pub(super) fn list(answer: &Value) -> String {
    let caches: Vec<Vec<String>> = items(&answer["image_caches"]).map(row).collect();
    rows(&HEAD, &caches)
}

/// Formats the single cache in `image_cache`.
pub(super) fn one(answer: &Value) -> String {
    rows(&HEAD, &[row(&answer["image_cache"])])
}

/// Formats the best cache for a workload.
pub(super) fn matched(answer: &Value) -> String {
    let found = &answer["match"];
    let mut out = one(found);
    let (images, bytes) = (text(&found["images"]), bytes(&found["bytes"]));
    let _ = writeln!(out, "contains {images} of the images, {bytes} compressed");
    out
}

/// Formats a cache with its images and layers.
pub(super) fn details(answer: &Value) -> String {
    let (cache, details) = (&answer["image_cache"], &answer["details"]);
    let mut out = String::new();
    let mut field = |name: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(out, "{name:<12}{value}");
        }
    };
    for name in ["name", "id", "status", "message", "created_at"] {
        field(name, text(&cache[name]));
    }
    field("size", format!("{} GiB", text(&cache["image_cache_size"])));
    for name in ["expires_at", "sealed_at", "digest"] {
        field(name, text(&details[name]));
    }
    if details["refreshing"] == true {
        field("refreshing", "yes".into());
    }
    let images: Vec<Vec<String>> = items(&details["images"]).map(image).collect();
    if !images.is_empty() {
        out.push('\n');
        out.push_str(&rows(&["IMAGE", "LAYERS", "COMPRESSED", "MANIFEST"], &images));
    }
    let layers: Vec<Vec<String>> = items(&details["layers"]).map(layer).collect();
    if !layers.is_empty() {
        out.push('\n');
        out.push_str(&rows(&["LAYER", "COMPRESSED", "SIZE", "SECONDS", "STATE", "ORIGIN"], &layers));
    }
    out
}

fn image(image: &Value) -> Vec<String> {
    let done = format!("{}/{}", text(&image["layers_done"]), text(&image["layers"]));
    vec![text(&image["reference"]), done, bytes(&image["compressed_size"]), text(&image["manifest"])]
}

fn layer(layer: &Value) -> Vec<String> {
    let origin = match layer["from"].as_str() {
        Some(from) => format!("reused from {}", escape(from)),
        None => text(&layer["origin"]),
    };
    let ms = layer["elapsed_ms"].as_u64().unwrap_or_default();
    let blob = text(&layer["blob"]);
    let short = blob.split(':').next_back().unwrap_or_default().chars().take(12).collect();
    let seconds = format!("{}.{}", ms / 1000, ms % 1000 / 100);
    vec![
        short,
        bytes(&layer["compressed_size"]),
        bytes(&layer["size"]),
        seconds,
        text(&layer["state"]),
        origin,
    ]
}

/// Formats the sealed volumes of a cache.
pub(super) fn snapshots(answer: &Value) -> String {
    let cells = items(&answer["snapshots"]).map(|snapshot| {
        let state = match (snapshot["served"] == true, snapshot["in_use"] == true) {
            (true, true) => "served, in use",
            (true, false) => "served",
            (false, true) => "in use",
            (false, false) => "being deleted",
        };
        let of = |name: &str| text(&snapshot[name]);
        let kind = match &snapshot["image_allocated"] {
            Value::Null => of("kind"),
            allocated => format!("{}, {}", of("kind"), bytes(allocated)),
        };
        let size = bytes(&snapshot["size"]);
        vec![of("generation"), state.to_owned(), of("sealed_at"), size, kind, of("digest"), of("path")]
    });
    rows(&["SNAPSHOT", "STATE", "SEALED", "LAYERS", "KIND", "DIGEST", "PATH"], &cells.collect::<Vec<_>>())
}

/// Formats the plan of a create request.
pub(super) fn plan(answer: &Value) -> String {
    let plan = &answer["plan"];
    let images = items(&plan["images"]).map(|image| {
        let layers = items(&image["layers"]).count().to_string();
        vec![text(&image["reference"]), layers, bytes(&image["compressed_size"]), text(&image["manifest"])]
    });
    let mut out = rows(&["IMAGE", "LAYERS", "COMPRESSED", "MANIFEST"], &images.collect::<Vec<_>>());
    let admission = &plan["admission"];
    let fits = if plan["fits"] == true { "fits" } else { "does not fit" };
    let _ = writeln!(
        out,
        "to download {}, shared {}; needs a volume of {}, has {}: {fits}",
        bytes(&plan["distinct_bytes"]),
        bytes(&plan["shared_bytes"]),
        bytes(&admission["need"]),
        bytes(&admission["have"]),
    );
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_line_up_and_nothing_reaches_the_terminal() {
        let cache = |name: &str, images: &[&str]| json!({"name": name, "status": "Available", "image_cache_size": 20, "images": images, "id": "x"});
        let answer =
            json!({"image_caches": [cache("a", &["nginx:1"]), cache("longer", &["a\u{1b}[2J", "b"])]});
        let lines: Vec<String> = list(&answer).lines().map(str::to_owned).collect();
        assert_eq!(lines[0], "NAME    STATUS     SIZE   IMAGES                 ID  MESSAGE");
        assert_eq!(lines[1], "a       Available  20GiB  nginx:1                x");
        assert_eq!(lines[2], "longer  Available  20GiB  a\\u{1b}[2J and 1 more  x");
    }
}
