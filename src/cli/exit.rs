//! Exit codes after sysexits.h (`man 3head sysexits`), for people.

use crate::telemetry::Console;
use larder_model::class::Class;
use larder_model::escape::escape;

/// The exit code of every usage error.
pub(super) const USAGE: u8 = 64;

/// The exit code of a second SIGTERM, as a shell has it: 128 and the signal.
pub(super) const TERMINATED: u8 = 143;

/// What an exit code means and whether trying again helps.
pub(super) fn meaning(code: u8) -> &'static str {
    match code {
        0 => "done",
        64 => "invalid, or no such image, tag or platform; change the command",
        65 => "corrupt or hostile content; trying again does not help",
        69 => "a registry or the way to it failed for now; try again",
        70 => "a fault of larder's own; please report it",
        73 => "it does not fit, or the volume is another job's or not sealed; change the size or the volume",
        75 => "something here is in the way for now; try again later",
        77 => "permission denied by a registry or by this system",
        130 => "interrupted; the same command resumes",
        143 => "terminated; the same command resumes",
        _ => "unknown",
    }
}

/// Tells why a command failed and answers its exit code.
pub(super) fn fail(console: &Console, class: Class, message: &str) -> u8 {
    console.print(&format!("larder: {}\n", escape(message)));
    class.exit_code()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_a_meaning() {
        for class in [
            Class::Invalid,
            Class::NotFound,
            Class::Conflict,
            Class::Denied,
            Class::NoSpace,
            Class::Transient,
            Class::Busy,
            Class::Corrupt,
            Class::Cancelled,
            Class::Internal,
        ] {
            assert_ne!(meaning(class.exit_code()), "unknown", "{class:?}");
        }
        assert_eq!(Class::Invalid.exit_code(), USAGE);
    }
}
