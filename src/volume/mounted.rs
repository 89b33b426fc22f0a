//! A volume that is a whole file system, mounted by someone else.

use std::path::Path;

use super::CapEnforcement;
use super::error::Error;
use larder_model::io_error::Context as _;
use larder_model::size::ByteSize;
use larder_sys::{Dir, mount, space};

/// Reciprocal of the share of a disk's size that its file system may lack: 20 GiB of ext4 have 19.5 GiB for
/// files.
const TOLERANCE: u64 = 20;

/// Returns how a cap of `size` is enforced on the file system mounted at `path`.
///
/// # Errors
/// [`Error::NotMounted`] if nothing is mounted there, [`Error::TooSmall`] if it is smaller than `size`.
pub fn cap(path: &Path, size: ByteSize) -> Result<CapEnforcement, Error> {
    let shown = path.display().to_string();
    let root = Dir::open(path).context("opening the volume", &shown)?;
    if !mount::is_mount_point(&root).context("examining", &shown)? {
        return Err(Error::NotMounted { path: shown });
    }
    let have = space::usage(&root).context("reading the size of", &shown)?.size;
    if have < size.0 - size.0 / TOLERANCE {
        return Err(Error::TooSmall { path: shown, need: size.0, have });
    }
    Ok(if have <= size.0 { CapEnforcement::Kernel } else { CapEnforcement::Counted })
}
