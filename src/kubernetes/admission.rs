//! What an object must pass that nobody has looked at yet, by the configuration.

use crate::caches::store::Admission;
use crate::caches::volumes::UNLIMITED;
use crate::config::caches::Caches;

/// The quota and, where the configuration sets one, the capacity.
pub fn of(caches: &Caches) -> Admission {
    let capacity_gib = match caches.capacity.0 {
        0 => UNLIMITED,
        bytes => bytes >> 30,
    };
    Admission { max_per_tenant: caches.max_per_tenant, capacity_gib }
}
