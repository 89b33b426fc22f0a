//! adjtimex(2), the one call for which no crate has a safe form that reads and changes nothing.

use std::mem::MaybeUninit;

use nix::libc;

/// Whether the kernel holds its clock for synchronised. A kernel that refuses to say (a seccomp filter, most likely)
/// counts as one that does not know.
pub(super) fn is_synchronised() -> bool {
    #[expect(unsafe_code, reason = "neither nix nor rustix has adjtimex(2)")]
    // SAFETY: `timex` is plain integers, for which zero is a value; `modes` zero asks the kernel to fill in the structure
    // and to change nothing, and the pointer is to a whole structure that outlives the call.
    let (state, status) = unsafe {
        let mut timex: libc::timex = MaybeUninit::zeroed().assume_init();
        (libc::adjtimex(&raw mut timex), timex.status)
    };
    state >= 0 && status & libc::STA_UNSYNC == 0
}
