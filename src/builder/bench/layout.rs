//! The image as an OCI image layout (OCI image spec, image-layout.md), so that a build can use it as an
//! archive.

use std::io::{self, Write as _};

use serde_json::{Value, json};

use crate::builder::resolve::ResolvedImage;
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::event::Failure;
use larder_model::io_error::{self, FileRole};
use larder_sys::Dir;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Writes everything except the layers. The only image has no name, so any reference matches it.
pub(super) fn documents(layout: &Dir, image: &ResolvedImage) -> Result<(), Failure> {
    let listed = match &image.index {
        Some((digest, bytes)) => {
            blob(layout, digest, bytes)?;
            json!({"mediaType": type_of_index(bytes), "digest": digest, "size": bytes.len()})
        }
        None => {
            let (digest, size) = (&image.manifest_digest, image.manifest_bytes.len());
            json!({"mediaType": image.manifest_type, "digest": digest, "size": size})
        }
    };
    blob(layout, &image.manifest_digest, &image.manifest_bytes)?;
    blob(layout, &image.manifest.config.digest, &image.config_bytes)?;
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [listed]});
    write(layout, "index.json", index.to_string().as_bytes())?;
    write(layout, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
}

/// Returns the directory of blobs with the same digest algorithm as `digest`.
pub(super) fn blobs(layout: &Dir, digest: &Digest) -> Result<Dir, Failure> {
    let blobs = layout.ensure_dir(b"blobs", 0o700);
    let of_algorithm = blobs.and_then(|blobs| blobs.ensure_dir(digest.algorithm().name().as_bytes(), 0o700));
    of_algorithm.map_err(|e| failed(&format!("the directory of {digest}"), &e))
}

/// Returns the media type in an index, or the OCI type if it has none.
fn type_of_index(bytes: &[u8]) -> String {
    let index: Option<Value> = serde_json::from_slice(bytes).ok();
    let own = index.as_ref().and_then(|index| index.get("mediaType")?.as_str());
    own.unwrap_or(INDEX).to_owned()
}

fn blob(layout: &Dir, digest: &Digest, bytes: &[u8]) -> Result<(), Failure> {
    write(&blobs(layout, digest)?, digest.hex(), bytes)
}

fn write(dir: &Dir, name: &str, bytes: &[u8]) -> Result<(), Failure> {
    let written = dir.create_file(name.as_bytes(), 0o600).and_then(|mut file| file.write_all(bytes));
    written.map_err(|e| failed(name, &e))
}

/// Returns the class for a blob that cannot be stored.
pub(super) fn class(error: &io::Error) -> Class {
    match error.kind() {
        // Two documents with the same digest: a manifest that lists its config as a layer.
        io::ErrorKind::AlreadyExists => Class::Corrupt,
        _ => io_error::class(error, FileRole::Own),
    }
}

fn failed(what: &str, error: &io::Error) -> Failure {
    Failure::job(class(error), format!("storing {what} of the image: {error}"))
}
