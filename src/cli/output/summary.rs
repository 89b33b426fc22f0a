//! Summaries of a build as text.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use crate::cli::exit;
use larder_model::escape::escape;
use larder_model::event::{Failure, Outcome};
use larder_model::size::ByteSize;

/// Formats the summary of a sealed volume, for standard output.
pub(in crate::cli) fn sealed(outcome: &Outcome, volume: &Path) -> String {
    let volume = escape(&volume.display().to_string());
    let mut out = match outcome.already_sealed {
        true => format!("{volume} is already sealed, nothing to do"),
        false => format!("sealed {volume}"),
    };
    if let Some(totals) = &outcome.totals {
        let (size, compressed) = (ByteSize(totals.size), ByteSize(totals.compressed_size));
        let (images, layers) = (outcome.images.len(), totals.layers);
        let _ = write!(out, ": {images} images, {layers} layers, {size} unpacked, {compressed} compressed");
    }
    match outcome.already_sealed {
        true => out.push('\n'),
        false => {
            let _ = writeln!(out, ", in {:.1} s", Duration::from_millis(outcome.elapsed_ms).as_secs_f64());
        }
    }
    for image in &outcome.images {
        let _ = writeln!(out, "  {}  {}", escape(&image.reference), image.manifest);
    }
    if let Some(digest) = &outcome.digest {
        let _ = writeln!(out, "cache.json {digest}");
    }
    out
}

/// Formats every failure and the meaning of the exit code, for standard error.
pub(in crate::cli) fn failed(failures: &[Failure], message: &str, exit_code: u8) -> String {
    let mut out = String::new();
    for failure in failures {
        if failure.images.is_empty() {
            out.push_str("larder: ");
        } else {
            let images: Vec<String> = failure.images.iter().map(|image| escape(image)).collect();
            let _ = write!(out, "larder: {}: ", images.join(", "));
        }
        if let Some(layer) = &failure.layer {
            let _ = write!(out, "layer {layer}: ");
        }
        let _ = writeln!(out, "{}", escape(&failure.message));
    }
    if failures.is_empty() {
        let _ = writeln!(out, "larder: {}", escape(message));
    }
    let _ = writeln!(out, "exit {exit_code}: {}", exit::meaning(exit_code));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::class::Class;
    use larder_model::digest::Digest;

    #[test]
    fn a_volume_that_was_already_sealed_is_not_reported_as_new() {
        let new = Outcome::succeeded("");
        assert_eq!(sealed(&new, Path::new("v")), "sealed v, in 0.0 s\n");
        let old = Outcome { already_sealed: true, ..new };
        assert_eq!(sealed(&old, Path::new("v")), "v is already sealed, nothing to do\n");
    }

    #[test]
    fn every_failed_image_is_named() {
        let layer = Digest::sha256(b"x");
        let failures = [
            Failure {
                class: Class::Corrupt,
                images: vec!["a:1".into(), "b:1".into()],
                layer: Some(layer.clone()),
                message: "entry \x1b: bad".into(),
            },
            Failure { class: Class::Denied, images: vec!["c:1".into()], layer: None, message: "401".into() },
        ];
        assert_eq!(
            failed(&failures, "", 65),
            format!(
                "larder: a:1, b:1: layer {layer}: entry \\u{{1b}}: bad\nlarder: c:1: 401\nexit 65: {}\n",
                exit::meaning(65)
            )
        );
    }
}
