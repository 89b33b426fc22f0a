//! adjtimex(2). No crate wraps it in a safe form that only reads.

use std::mem::MaybeUninit;

use nix::libc;

/// Reports whether the kernel considers its clock synchronized. `false` if the kernel refuses the call, most
/// likely because of a seccomp filter.
pub(super) fn is_synchronised() -> bool {
    #[expect(unsafe_code, reason = "neither nix nor rustix has adjtimex(2)")]
    // SAFETY: `timex` consists of plain integers, for which zero is valid. With `modes` zero the kernel fills
    // the structure and changes nothing. The pointer is to a complete structure that outlives the call.
    let (state, status) = unsafe {
        let mut timex: libc::timex = MaybeUninit::zeroed().assume_init();
        (libc::adjtimex(&raw mut timex), timex.status)
    };
    state >= 0 && status & libc::STA_UNSYNC == 0
}
