//! Layers that an earlier run of this boot committed and did not make durable are proven before they are believed.
//!
//! The memory of the machine has what such a run wrote, unless the disk was lost meanwhile and came back: then the journal
//! names layers whose bytes never arrived. That is a fault of the disk and not of the images, so the layers are fetched
//! again.

use super::cancel::Cancel;
use super::events::Events;
use super::failure::Fail;
use super::order::Order;
use super::run;
use crate::verify;
use crate::volume::{Opened, Trust, Volume};
use larder_model::class::Class;
use larder_model::event::Event;

/// Returns the volume of `order` without the layers that were damaged. Each of them is reported as a warning.
///
/// # Errors
/// The volume cannot be opened again, or the build was interrupted.
pub(super) async fn prove(
    order: &Order,
    volume: Volume,
    events: &Events,
    cancel: &Cancel,
) -> Result<Volume, Vec<Fail>> {
    let (order, events, cancel) = (order.clone(), events.clone(), cancel.clone());
    let proven = run::blocking(move || {
        let doubtful = volume.unsynced();
        if doubtful.is_empty() {
            return Ok(volume);
        }
        let stop = || cancel.reason().is_some();
        let damaged = verify::damaged(volume.root(), volume.format(), &volume.layers(), &doubtful, stop);
        let damaged = damaged.map_err(|e| Fail::job(e.class(), e.to_string()))?;
        if stop() {
            return Err(Fail::job(Class::Cancelled, "interrupted"));
        }
        if damaged.is_empty() {
            return Ok(volume);
        }
        for (layer, error) in &damaged {
            let message = format!("layer {layer} on the volume is damaged, so it is fetched again: {error}");
            events.emit(Event::Warning { message });
        }
        volume.mark_lost(damaged.into_iter().map(|(layer, _)| layer).collect())?;
        // Opening it again removes what was given up, and counts the room that this leaves.
        drop(volume);
        match run::open_volume(&order, Trust::ThisBoot)? {
            Opened::Filling(volume) => Ok(*volume),
            Opened::Sealed(_) => Err(Fail::job(
                Class::Busy,
                "another builder sealed the volume meanwhile: run the build again",
            )),
        }
    });
    proven.await
}
