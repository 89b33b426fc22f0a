//! Names of images in an archive.

use super::Error;
use larder_model::digest::Digest;
use larder_model::reference::ImageReference;
use larder_model::seal::Image;

/// `registry/repository:tag`, where the image has a tag.
pub(super) fn tagged(image: &Image) -> Result<Option<String>, Error> {
    let reference = parse(image)?;
    Ok(reference.tag().map(|tag| format!("{}:{tag}", reference.name())))
}

/// The name by tag, else by the digest that the manifest has in the archive: the digest in the reference may be that of a
/// manifest that is not in it.
pub(super) fn full(image: &Image, manifest: &Digest) -> Result<String, Error> {
    match tagged(image)? {
        Some(name) => Ok(name),
        None => Ok(format!("{}@{manifest}", parse(image)?.name())),
    }
}

fn parse(image: &Image) -> Result<ImageReference, Error> {
    image.name.parse().map_err(|e| Error::Contradiction { what: format!("an image has no name: {e}") })
}
