//! Opening the volume of an order.

use super::order::BuildRequest;
use crate::volume::{self, CapEnforcement, Opened, Trust, VolumeOptions};
use larder_model::class::Class;
use larder_model::event::Failure;
use larder_model::job::VolumeKind;

/// Opens the volume of an order.
pub(super) fn open_volume(order: &BuildRequest, trust: Trust) -> Result<Opened, Failure> {
    let cap = match order.volume_kind {
        VolumeKind::Directory => CapEnforcement::Counted,
        VolumeKind::Mounted => volume::mounted::cap(&order.volume, order.size)?,
        VolumeKind::Disk | VolumeKind::Block if order.supervisor.is_some() => CapEnforcement::Kernel,
        VolumeKind::Disk | VolumeKind::Block => {
            return Err(Failure::job(Class::Invalid, "only `larder build` can mount a disk"));
        }
    };
    let opening = VolumeOptions { identity: &order.identity(), size: order.size, cap, trust };
    Ok(volume::open(&order.volume, &opening)?)
}
