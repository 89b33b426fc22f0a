//! Names of images in an archive.

use super::Error;
use larder_model::digest::Digest;
use larder_model::reference::ImageReference;
use larder_model::seal::Image;

/// Returns `registry/repository:tag`, or `None` if the image has no tag.
pub(super) fn tagged(image: &Image) -> Result<Option<String>, Error> {
    let reference = parse(image)?;
    Ok(reference.tag().map(|tag| format!("{}:{tag}", reference.name())))
}

/// Returns the name by tag, or else by the manifest digest in the archive. The digest in the reference is not
/// used, because the archive can have another manifest.
pub(super) fn full(image: &Image, manifest: &Digest) -> Result<String, Error> {
    match tagged(image)? {
        Some(name) => Ok(name),
        None => Ok(format!("{}@{manifest}", parse(image)?.name())),
    }
}

fn parse(image: &Image) -> Result<ImageReference, Error> {
    image.name.parse().map_err(|e| Error::Contradiction { what: format!("an image has no name: {e}") })
}
