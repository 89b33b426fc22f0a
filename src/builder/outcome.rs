//! The outcome of a build as defined in the contract of the builder.

use std::time::Duration;

use super::cancel::Cancel;
use super::failure::Fail;
use larder_model::class::Class;
use larder_model::event::{Failure, Outcome, SealedImage, Status};
use larder_model::seal::CacheManifest;

/// Returns the outcome of a sealed volume.
pub fn sealed(manifest: &CacheManifest, elapsed: Duration) -> Outcome {
    let content = &manifest.content;
    let images = content.images.iter().map(|image| SealedImage {
        reference: image.reference.clone(),
        index: image.index.clone(),
        manifest: image.manifest.clone(),
    });
    Outcome {
        status: Status::Ok,
        exit_code: 0,
        message: format!("{} images, {} layers, sealed", content.images.len(), content.layers.len()),
        class: None,
        failures: Vec::new(),
        images: images.collect(),
        digest: Some(manifest.digest.clone()),
        totals: Some(content.totals),
        elapsed_ms: milliseconds(elapsed),
        truncated: false,
    }
}

/// Returns the outcome of a volume that can be filled further.
pub(super) fn swept(elapsed: Duration) -> Outcome {
    Outcome {
        status: Status::Ok,
        exit_code: 0,
        message: "swept".to_owned(),
        class: None,
        failures: Vec::new(),
        images: Vec::new(),
        digest: None,
        totals: None,
        elapsed_ms: milliseconds(elapsed),
        truncated: false,
    }
}

/// Returns the outcome of a failed build. A permanent failure takes precedence and comes first.
pub(super) fn failed(mut fails: Vec<Fail>, cancel: &Cancel, elapsed: Duration) -> Outcome {
    // A cancellation is reported once. A deadline is also one, with its own class.
    if let Some((class, message)) = cancel.explanation() {
        let real = fails.iter().any(|fail| !matches!(fail.class, Class::Cancelled | Class::Transient));
        if !real {
            fails = vec![Fail::job(class, message)];
        }
    }
    if fails.iter().any(|fail| fail.class != Class::Cancelled) {
        fails.retain(|fail| fail.class != Class::Cancelled);
    }
    let class = Class::decisive(fails.iter().map(|fail| fail.class)).unwrap_or(Class::Internal);
    fails.sort_by_key(|fail| fail.class != class);
    let exit_code = match class {
        Class::Cancelled => cancel.exit_code().unwrap_or(class.exit_code()),
        class => class.exit_code(),
    };
    let failures: Vec<Failure> = fails.into_iter().map(Failure::from).collect();
    let message =
        failures.first().map_or_else(|| "the build failed".to_owned(), |first| first.message.clone());
    Outcome {
        status: Status::Failed,
        exit_code,
        message,
        class: Some(class),
        failures,
        images: Vec::new(),
        digest: None,
        totals: None,
        elapsed_ms: milliseconds(elapsed),
        truncated: false,
    }
}

fn milliseconds(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}
