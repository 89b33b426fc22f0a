//! Verification of layers that an earlier run since boot committed but did not make durable.
//!
//! The kernel still has the data of such a run in memory, unless the disk was lost in between and came back.
//! Then the journal names layers whose data was never written. That is an error of the disk and not of the
//! images, so the layers are fetched again.

use super::cancel::Cancel;
use super::events::Events;
use super::order::BuildRequest;
use super::{blocking, opening};
use crate::verify;
use crate::volume::{Opened, Trust, Volume};
use larder_model::class::Class;
use larder_model::event::{Event, Failure};

/// Returns the volume of `order` without the layers that were damaged. Each of them is reported as a warning.
///
/// # Errors
/// The volume cannot be opened again, or the build was cancelled.
pub(super) async fn verify(
    order: &BuildRequest,
    volume: Volume,
    events: &Events,
    cancel: &Cancel,
) -> Result<Volume, Vec<Failure>> {
    let (order, events, cancel) = (order.clone(), events.clone(), cancel.clone());
    let verified = blocking::blocking(move || {
        let unsynced = volume.unsynced();
        if unsynced.is_empty() {
            return Ok(volume);
        }
        let stop = || cancel.reason().is_some();
        let damaged = verify::damaged(volume.root(), volume.format(), &volume.layers(), &unsynced, stop);
        let damaged = damaged.map_err(|e| Failure::job(e.class(), e.to_string()))?;
        if stop() {
            return Err(Failure::job(Class::Cancelled, "interrupted"));
        }
        if damaged.is_empty() {
            return Ok(volume);
        }
        for (layer, error) in &damaged {
            let message =
                format!("layer {layer} on the volume is damaged and will be fetched again: {error}");
            events.emit(Event::Warning { message });
        }
        volume.mark_lost(damaged.into_iter().map(|(layer, _)| layer).collect())?;
        // Opening it again removes the discarded layers and updates the free space.
        drop(volume);
        match opening::open_volume(&order, Trust::ThisBoot)? {
            Opened::Filling(volume) => Ok(*volume),
            Opened::Sealed(_) => {
                Err(Failure::job(Class::Busy, "another builder has sealed the volume: run the build again"))
            }
        }
    });
    verified.await
}
