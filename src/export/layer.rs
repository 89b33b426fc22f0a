//! Rebuilding of a layer's tar, which is verified as it is streamed.

use std::io::Write;

use bytes::Bytes;

use super::cache::Cache;
use super::{Error, Monitor};
use larder_layer::decode::ChunkSource as _;
use larder_model::class::Class;
use larder_model::digest::{Algorithm, Hasher};
use larder_model::io_error::{Context as _, FileRole, class};
use larder_model::seal::Layer;

/// Passes the tar of `layer` to `take` in chunks. After an error the chunks must be discarded.
///
/// # Errors
/// The tar cannot be rebuilt, its digest is not the diff ID, or `take` fails.
pub(super) fn rebuild(
    cache: &Cache,
    layer: &Layer,
    monitor: &Monitor,
    take: &mut dyn FnMut(Bytes) -> Result<(), Error>,
) -> Result<(), Error> {
    let fail =
        |class: Class, message: String| Error::Layer { diff_id: layer.diff_id.clone(), message, class };
    let mut tar = cache.tar(layer)?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut size = 0;
    while let Some(chunk) = tar.next().map_err(|e| fail(class(&e, FileRole::Sealed), e.to_string()))? {
        size += chunk.len() as u64;
        if size > layer.size {
            break;
        }
        monitor.advance(chunk.len() as u64)?;
        hasher.update(&chunk);
        take(chunk)?;
    }
    let found = hasher.finish();
    if size != layer.size || found != layer.diff_id {
        let message = format!(
            "its tar has digest {found} and {size} bytes instead of {} bytes: the volume was changed",
            layer.size
        );
        return Err(fail(Class::Corrupt, message));
    }
    Ok(())
}

/// Writes the tar of `layer` to `out`.
pub(super) fn rebuild_into(
    cache: &Cache,
    layer: &Layer,
    monitor: &Monitor,
    out: &mut dyn Write,
) -> Result<(), Error> {
    rebuild(cache, layer, monitor, &mut |chunk| Ok(out.write_all(&chunk).context("writing", "a layer")?))
}
