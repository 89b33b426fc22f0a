//! Cleans up a disk after an earlier run, before it is filled further. Everything that the journal does not
//! list is removed. If the disk was not unmounted cleanly, the rest is verified from its own content.
//!
//! This is a separate run because the disk is mounted again afterwards. An ext4 without a journal skips each
//! inode that was freed in the last minutes (Linux, recently_deleted() in fs/ext4/ialloc.c), which made
//! filling the disk eighty times slower. Unmounting makes it forget these inodes.

use std::time::Instant;

use super::cancel::Cancel;
use super::order::BuildRequest;
use super::{blocking, opening, outcome};
use crate::verify;
use crate::volume::{Opened, Trust};
use larder_model::class::Class;
use larder_model::event::{Failure, Outcome};

/// Sweeps the volume of `order`. A failure of class [`Class::Corrupt`] means that nothing on it can be used.
pub async fn sweep(order: BuildRequest, trust: Trust, cancel: Cancel) -> Outcome {
    let started = Instant::now();
    match blocking::blocking(move || swept(&order, trust)).await {
        Ok(()) => outcome::swept(started.elapsed()),
        Err(fails) => outcome::failed(fails, &cancel, started.elapsed()),
    }
}

fn swept(order: &BuildRequest, trust: Trust) -> Result<(), Failure> {
    let failed =
        |e: verify::Error| Failure::job(e.class(), format!("verifying the volume of an earlier run: {e}"));
    match opening::open_volume(order, trust)? {
        Opened::Sealed(_) if trust == Trust::Synced => {
            verify::verify(&order.volume).map(|_| ()).map_err(failed)
        }
        Opened::Sealed(_) => Ok(()),
        Opened::Filling(volume) => {
            if trust == Trust::Synced {
                let layers = volume.layers();
                if !order.tar_split && !layers.is_empty() {
                    let message = "the layers of an earlier run cannot be verified without tar-split files";
                    return Err(Failure::job(Class::Corrupt, message));
                }
                verify::layers(&order.volume, volume.format(), &layers).map_err(failed)?;
            }
            volume.sync()?;
            Ok(())
        }
    }
}
