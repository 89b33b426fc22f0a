//! The arguments of this process, and the role of a child process.

use std::ffi::OsString;
use std::path::PathBuf;

/// The arguments of this process, and its role if a supervisor started it.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) argv: Vec<OsString>,
    /// Role of this process. `None` if no supervisor started it.
    pub(super) kept: Option<Role>,
    /// Directory where the supervisor mounted a device.
    pub(super) kept_volume: Option<PathBuf>,
    /// Process ID of the supervisor.
    pub(super) kept_by: Option<u32>,
}

/// The task of a child process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Role {
    /// Fill the volume: the extractor.
    Fill,
    /// Remove everything that the journal does not list.
    Sweep,
    /// Sweep a disk that was not unmounted cleanly, and verify the remaining layers.
    Prove,
    /// Fetch layers for the extractor.
    Fetch,
    /// Resolve the images again, so that the supervisor can compare them.
    Resolve,
}

impl Role {
    pub(super) fn name(self) -> &'static str {
        match self {
            Role::Fill => "fill",
            Role::Sweep => "sweep",
            Role::Prove => "prove",
            Role::Fetch => "fetch",
            Role::Resolve => "resolve",
        }
    }
}
