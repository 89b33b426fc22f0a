//! The outcome of a build as defined in the contract of the builder.

use std::time::Duration;

use super::cancel::Cancel;
use larder_model::class::Class;
use larder_model::count::counted;
use larder_model::event::{Failure, Outcome, SealedImage, milliseconds};
use larder_model::seal::CacheManifest;

/// Returns the outcome of a sealed volume.
pub fn sealed(manifest: &CacheManifest, elapsed: Duration) -> Outcome {
    let content = &manifest.content;
    let images = content.images.iter().map(|image| SealedImage {
        reference: image.reference.clone(),
        index: image.index.clone(),
        manifest: image.manifest.clone(),
    });
    let message = format!(
        "{}, {}, sealed",
        counted(content.images.len(), "image"),
        counted(content.layers.len(), "layer")
    );
    Outcome {
        images: images.collect(),
        digest: Some(manifest.digest.clone()),
        totals: Some(content.totals),
        elapsed_ms: milliseconds(elapsed),
        ..Outcome::succeeded(message)
    }
}

/// Returns the outcome of a volume that can be filled further.
pub(super) fn swept(elapsed: Duration) -> Outcome {
    Outcome { elapsed_ms: milliseconds(elapsed), ..Outcome::succeeded("swept") }
}

/// Returns the outcome of a failed build. A permanent failure takes precedence and comes first.
pub(super) fn failed(mut fails: Vec<Failure>, cancel: &Cancel, elapsed: Duration) -> Outcome {
    // A cancellation is reported once. A deadline is also one, with its own class.
    if let Some((class, message)) = cancel.explanation() {
        let real = fails.iter().any(|fail| !matches!(fail.class, Class::Cancelled | Class::Transient));
        if !real {
            fails = vec![Failure::job(class, message)];
        }
    }
    if fails.iter().any(|fail| fail.class != Class::Cancelled) {
        fails.retain(|fail| fail.class != Class::Cancelled);
    }
    let mut outcome = Outcome::failed(fails);
    if outcome.class == Some(Class::Cancelled)
        && let Some(exit_code) = cancel.exit_code()
    {
        outcome.exit_code = exit_code;
    }
    outcome.elapsed_ms = milliseconds(elapsed);
    outcome
}
