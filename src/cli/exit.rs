//! Exit codes after sysexits.h (`man 3head sysexits`), and their descriptions.

use crate::telemetry::Console;
use larder_model::class::Class;
use larder_model::escape::escape;

/// The exit code of every usage error.
pub(super) const USAGE: u8 = 64;

/// The exit code after a second SIGTERM: 128 plus the signal number, as in a shell.
pub(super) const TERMINATED: u8 = 143;

/// Describes an exit code, and whether a retry can help.
pub(super) fn meaning(code: u8) -> &'static str {
    match code {
        0 => "done",
        64 => "invalid, or no such image, tag or platform; change the command",
        65 => "corrupt or malicious content; a retry does not help",
        69 => "a registry or the network is temporarily unavailable; try again",
        70 => "internal error; please report it",
        73 => "no space, or a volume of another job; change the size or the volume",
        75 => "a resource on this host is busy; try again later",
        77 => "permission denied by a registry or by this system",
        130 => "interrupted; repeat the command to resume",
        143 => "terminated; repeat the command to resume",
        _ => "unknown",
    }
}

/// Prints why a command failed and returns the exit code of `class`. The message comes from an error type,
/// such as [`UsageError`](super::usage::UsageError), and includes the remedy.
pub(super) fn fail(console: &Console, class: Class, message: &str) -> u8 {
    console.print(&format!("larder: {}\n", escape(message)));
    class.exit_code()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_a_meaning() {
        for class in Class::ALL {
            assert_ne!(meaning(class.exit_code()), "unknown", "{class:?}");
        }
        assert_eq!(Class::Invalid.exit_code(), USAGE);
    }
}
