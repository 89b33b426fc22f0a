//! What is done to a disk that an earlier run left, before it is filled further: what no line of the journal vouches for is
//! removed, and where the disk was not unmounted in order, what is left is proven from its own bytes.
//!
//! It is a run of its own because the disk is mounted anew afterwards: an ext4 without a journal steps over each inode that was
//! freed in the last minutes (Linux, recently_deleted() in fs/ext4/ialloc.c), which made filling it eighty times slower, and
//! forgets which those are when it is unmounted.

use std::time::Instant;

use super::cancel::Cancel;
use super::failure::Fail;
use super::order::Order;
use super::{outcome, run};
use crate::verify;
use crate::volume::{Opened, Trust};
use larder_model::class::Class;
use larder_model::event::Outcome;

/// Sweeps the volume of `order`. A failure of class [`Class::Corrupt`] means that nothing on it can be used.
pub async fn sweep(order: Order, trust: Trust, cancel: Cancel) -> Outcome {
    let started = Instant::now();
    match run::blocking(move || swept(&order, trust)).await {
        Ok(()) => outcome::swept(started.elapsed()),
        Err(fails) => outcome::failed(fails, &cancel, started.elapsed()),
    }
}

fn swept(order: &Order, trust: Trust) -> Result<(), Fail> {
    let failed = |e: verify::Error| Fail::job(e.class(), format!("examining what an earlier run left: {e}"));
    match run::open_volume(order, trust)? {
        Opened::Sealed(_) if trust == Trust::Synced => {
            verify::verify(&order.volume).map(|_| ()).map_err(failed)
        }
        Opened::Sealed(_) => Ok(()),
        Opened::Filling(volume) => {
            if trust == Trust::Synced {
                let layers = volume.layers();
                if !order.tar_split && !layers.is_empty() {
                    let message = "what an earlier run left cannot be proven without tar-split files";
                    return Err(Fail::job(Class::Corrupt, message));
                }
                verify::layers(&order.volume, volume.format(), &layers).map_err(failed)?;
            }
            volume.sync()?;
            Ok(())
        }
    }
}
