//! Reduction of capability sets to those that a process needs (capabilities(7)).

use rustix::io::{Errno, Result};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

use super::Privileges;
use crate::privilege::Capability;

impl Privileges {
    fn set(self) -> CapabilitySet {
        match self {
            Privileges::None => CapabilitySet::empty(),
            // Containers often have DAC_OVERRIDE but not DAC_READ_SEARCH.
            Privileges::ReadLayers => {
                CapabilitySet::DAC_READ_SEARCH | CapabilitySet::DAC_OVERRIDE | CapabilitySet::SYS_ADMIN
            }
            Privileges::WriteLayers => {
                let all = Capability::REQUIRED.into_iter().chain([Capability::SysAdmin]);
                CapabilitySet::from_bits_retain(all.fold(0, |set, capability| set | 1 << capability.bit()))
            }
        }
    }
}

/// Returns the capabilities of this thread that `privileges` allows it to keep.
///
/// # Errors
/// Those of capget(2).
pub(super) fn kept(privileges: Privileges) -> Result<CapabilitySet> {
    Ok(capabilities(None)?.permitted & privileges.set())
}

/// Reports whether this thread can create namespaces without a user namespace.
///
/// # Errors
/// Those of capget(2).
pub(super) fn can_mount() -> Result<bool> {
    Ok(capabilities(None)?.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// Drops all capabilities except `needed` from every set of this thread.
///
/// # Errors
/// Those of capset(2) and prctl(2).
pub(super) fn reduce(needed: CapabilitySet) -> Result<()> {
    clear_ambient_capability_set()?;
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match capability_is_in_bounding_set(capability) {
            Ok(true) if !needed.contains(capability) => {}
            Ok(_) => continue,
            // Above the last capability that this kernel defines.
            Err(Errno::INVAL) => break,
            Err(e) => return Err(e),
        }
        match remove_capability_from_bounding_set(capability) {
            // This requires CAP_SETPCAP. Without it the set stays, which is safe: it only limits what
            // execve(2) can gain, and no_new_privs means that it gains nothing.
            Err(Errno::PERM) => break,
            removed => removed?,
        }
    }
    let sets = CapabilitySets { effective: needed, permitted: needed, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)
}
