//! Capability sets with no more in them than writing layers takes.

use rustix::io::{Errno, Result};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

use crate::sys::privilege::Capability;

/// What extraction needs; `CAP_SYS_ADMIN` for trusted.* attributes. Under Landlock the latter mounts nothing
/// (landlock(7)).
fn needed() -> CapabilitySet {
    let all = Capability::REQUIRED.into_iter().chain([Capability::SysAdmin]);
    CapabilitySet::from_bits_retain(all.fold(0, |set, capability| set | 1 << capability.bit()))
}

/// Gives up all else, in every set of this thread. What is not there now is not asked for.
pub(super) fn reduce() -> Result<()> {
    let needed = needed();
    clear_ambient_capability_set()?;
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match capability_is_in_bounding_set(capability) {
            Ok(true) if !needed.contains(capability) => {}
            Ok(_) => continue,
            // Above the last one that this kernel knows.
            Err(Errno::INVAL) => break,
            Err(e) => return Err(e),
        }
        match remove_capability_from_bounding_set(capability) {
            // Takes CAP_SETPCAP. Without it the set stays: it only bounds what execve(2) can gain, and no new
            // privileges means that it gains nothing.
            Err(Errno::PERM) => break,
            removed => removed?,
        }
    }
    let now = capabilities(None)?;
    let sets = CapabilitySets {
        effective: now.effective & needed,
        permitted: now.permitted & needed,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets)
}
