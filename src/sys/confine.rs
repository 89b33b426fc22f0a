//! Confinement of this process to the files it is for: no new privileges, few capabilities, Landlock (landlock(7)).
//!
//! The builder parses what strangers wrote, as root. What it does not need is given up before the first such byte is
//! read, so that a fault in a parser is worth one volume and not the machine.
//!
//! All of it belongs to a thread and passes to the threads that it makes, so [`Confinement::enter`] is called while there
//! is only one.

mod capabilities;
mod files;
mod system_files;

use std::fmt;
use std::io;
use std::path::PathBuf;

use landlock::{PathFd, RulesetError};

use crate::model::class::Class;

/// What stays within reach. Every path must be there when it is entered.
#[derive(Clone, Debug, Default)]
pub struct Confinement {
    /// Directories in which everything may be done but execution and ioctls of devices.
    pub writable: Vec<PathBuf>,
    /// Directories and files that may be read.
    pub readable: Vec<PathBuf>,
    /// Files that may be written in place.
    pub results: Vec<PathBuf>,
}

/// What the kernel holds this process to. To be kept while the process is confined.
#[must_use]
pub struct Confined {
    /// False where the kernel has no Landlock, or one that forbids links between directories (before Linux 5.19): then
    /// only privileges are given up.
    pub landlock: bool,
    /// A rule holds for an inode. One of /proc that nobody holds may be made anew when memory is short, without its rule.
    _held: Vec<PathFd>,
}

impl fmt::Debug for Confined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Confined").field("landlock", &self.landlock).finish_non_exhaustive()
    }
}

/// The process cannot be confined; it is confined in part and must end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel keeps a privilege for us.
    #[error("giving up {what}: {source}")]
    Privileges {
        /// Which.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Something that is to stay within reach cannot be opened.
    #[error("confining to {path}: {source}")]
    Path {
        /// What.
        path: String,
        /// Why.
        source: landlock::PathFdError,
    },
    /// The kernel has Landlock and refuses the rules.
    #[error("confining by Landlock: {0}")]
    Landlock(#[from] RulesetError),
}

impl Error {
    /// Its class.
    pub fn class(&self) -> Class {
        match self {
            Error::Path { .. } => Class::Invalid,
            Error::Privileges { .. } | Error::Landlock(_) => Class::Internal,
        }
    }
}

impl Confinement {
    /// Confines the calling thread and all that it makes from now on. There is no way back.
    pub fn enter(&self) -> Result<Confined, Error> {
        let failed =
            |what| move |source: rustix::io::Errno| Error::Privileges { what, source: source.into() };
        rustix::thread::set_no_new_privs(true).map_err(failed("new privileges"))?;
        capabilities::reduce().map_err(failed("capabilities"))?;
        files::restrict(self)
    }
}

#[cfg(test)]
#[cfg(feature = "testing")]
mod tests;
