//! Summaries of a build as text.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use crate::cli::exit;
use larder_model::count::counted;
use larder_model::escape::escape;
use larder_model::event::{Explanation, Failure, Outcome};
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
        let (images, layers) = (counted(outcome.images.len(), "image"), counted(totals.layers, "layer"));
        let _ = write!(out, ": {images}, {layers}, {size} unpacked, {compressed} compressed");
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
        add_failure(&mut out, failure);
    }
    if failures.is_empty() {
        let _ = writeln!(out, "larder: {}", escape(message));
    }
    let _ = writeln!(out, "exit {exit_code}: {}", exit::meaning(exit_code));
    out
}

/// Appends what failed, why, each mirror that was tried, and a hint.
fn add_failure(out: &mut String, failure: &Failure) {
    let images: Vec<String> = failure.images.iter().map(|image| escape(image)).collect();
    let layer = failure.layer.as_ref().map(|layer| format!("layer {layer}"));
    let mut lines: Vec<String> = [images.join(", "), layer.unwrap_or_default()].into();
    lines.retain(|line| !line.is_empty());
    let Some(explanation) = &failure.explanation else {
        lines.push(escape(&failure.message));
        let _ = writeln!(out, "larder: {}", lines.join(":\n  "));
        return;
    };
    let Explanation { operation, host, reason, hint, mirrors } = &**explanation;
    lines.push(format!("{} failed", escape(operation)));
    let _ = writeln!(out, "larder: {}", lines.join(": "));
    let _ = writeln!(out, "  {}", escape(without_host(reason, host.as_deref(), &failure.images)));
    for mirror in mirrors {
        let _ = writeln!(out, "  mirror {}", escape(mirror));
    }
    if let Some(hint) = hint {
        let _ = writeln!(out, "  hint: {}", escape(hint));
    }
}

/// Returns the reason without its host, if the names of the images contain it.
fn without_host<'a>(reason: &'a str, host: Option<&str>, images: &[String]) -> &'a str {
    let named = host.filter(|host| {
        let in_name = |image: &String| image.strip_prefix(host).is_some_and(|rest| rest.starts_with('/'));
        images.iter().all(in_name)
    });
    let rest = named.and_then(|host| reason.strip_prefix(host)?.strip_prefix(": "));
    rest.unwrap_or(reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::class::Class;
    use larder_model::digest::Digest;

    #[test]
    fn a_registrys_failure_is_what_why_and_hint() {
        let explanation = Explanation {
            operation: String::new(),
            host: Some("r.io".into()),
            reason: "r.io: not found (404 Not Found: MANIFEST_UNKNOWN)".into(),
            hint: Some("check the tag".into()),
            mirrors: vec!["m.io: refused\nhint: run this".into()],
        };
        let image = "r.io/a:1".parse().unwrap();
        let failure = Failure::image(&image, Class::NotFound, "one line");
        let shown = failed(&[failure.explained("fetching the manifest", Some(explanation))], "", 64);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(
            lines[..4],
            [
                "larder: r.io/a:1: fetching the manifest failed",
                "  not found (404 Not Found: MANIFEST_UNKNOWN)",
                "  mirror m.io: refused\\u{a}hint: run this",
                "  hint: check the tag",
            ]
        );
    }

    #[test]
    fn the_host_is_shown_unless_the_image_names_it() {
        let reason = "r.io:5000: refused";
        let shown = |host, image: &str| without_host(reason, Some(host), &[image.to_owned()]);
        assert_eq!(shown("r.io:5000", "r.io:5000/a:1"), "refused");
        assert_eq!(shown("r.io:5000", "r.io:50001/a:1"), reason);
        assert_eq!(shown("r.io:5000", "a:1"), reason);
    }

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
                explanation: None,
            },
            Failure {
                class: Class::Denied,
                images: vec!["c:1".into()],
                layer: None,
                message: "401".into(),
                explanation: None,
            },
        ];
        assert_eq!(
            failed(&failures, "", 65),
            format!(
                "larder: a:1, b:1:\n  layer {layer}:\n  entry \\u{{1b}}: bad\nlarder: c:1:\n  401\nexit 65: {}\n",
                exit::meaning(65)
            )
        );
    }
}
