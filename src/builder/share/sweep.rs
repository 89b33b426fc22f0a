//! Removal of records of layers whose volumes no longer exist.

use std::path::Path;

use super::entry::{Entry, SIZE};
use super::{Error, LAYERS, VOLUMES};
use larder_model::digest::Digest;
use larder_model::io_error::Context as _;
use larder_sys::Dir;
use larder_sys::lock::LockedFile;

/// Removes unlocked files in `dir/layers` that name no volume in `dir/volumes`. Returns their number. Files
/// whose name is not that of a layer are kept, because Larder did not create them.
///
/// # Errors
/// A directory cannot be opened or listed, or a file cannot be removed.
pub fn sweep(dir: &Path) -> Result<usize, Error> {
    let shown = dir.display();
    let root = Dir::open(dir).context("opening", &shown)?;
    let layers = match root.open_dir(LAYERS) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        other => other.context("opening layers/ in", &shown)?,
    };
    let volumes = match root.open_dir(VOLUMES) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        other => Some(other.context("opening volumes/ in", &shown)?),
    };
    let mut removed = 0;
    for name in layers.names().context("listing layers/ in", &shown)? {
        if !names_a_layer(&name) || !layers.try_stat(&name).is_ok_and(|stat| stat.is_some()) {
            continue;
        }
        // A file that cannot be locked is in use, or was not created by a builder.
        let Ok(Some(file)) = LockedFile::try_exclusive(&layers, &name) else { continue };
        let entry = file.read(SIZE as u64).ok().and_then(|bytes| Entry::parse(&bytes));
        let alive = entry.is_some_and(|entry| {
            let volume = entry.volume().as_str().as_bytes();
            // A volume that cannot be examined now might exist.
            volumes.as_ref().is_some_and(|volumes| !matches!(volumes.try_stat(volume), Ok(None)))
        });
        if !alive {
            file.remove(&layers, &name).context("removing a file of layers/ in", &shown)?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn names_a_layer(name: &[u8]) -> bool {
    let text = std::str::from_utf8(name).ok();
    text.is_some_and(|text| text.replacen('-', ":", 1).parse::<Digest>().is_ok())
}
