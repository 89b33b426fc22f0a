//! Confinement of a process that reads untrusted bytes, so that a fault in a parser costs what the process works on and not the
//! machine.
//!
//! ```text
//! 1. namespaces    mounts, processes, IPC, host name; no network unless the role needs it
//! 2. root          an empty read-only file system with the paths of the role: nodev, nosuid, noexec
//! 3. capabilities  those that the role needs, in no set another one
//! 4. Landlock      the same paths again, and no abstract sockets or signals to others
//! 5. seccomp       an allow-list of system calls
//! ```
//!
//! Each wall stands without the others. What the system does not offer (namespaces in most containers, Landlock in old kernels) is left out
//! and reported by [`Walls`]; seccomp and the loss of capabilities are always there.
//!
//! Everything belongs to a thread and passes to the threads that it makes later, so [`Confinement::enter`] is called while
//! there is only one. Nothing can be undone.

mod capabilities;
mod files;
mod init;
mod namespaces;
mod root;
mod seccomp;
mod system_files;

use std::fmt;
use std::io;
use std::path::PathBuf;

use landlock::{PathFd, RulesetError};
use nix::sys::resource::{Resource, setrlimit};

pub use self::init::{Signals, unblock};
use self::namespaces::By;
use self::root::{Access, Place};
use super::mount::attributes;
use super::process;
use larder_model::class::Class;

/// What a process is for. It decides which system calls are left, and whether there is a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Speaks with registries and holds credentials. Reads few files and writes none.
    Fetcher,
    /// Decodes and writes layers. No network.
    Extractor,
    /// Reads a volume, a disk or an archive. No network.
    Reader,
    /// Reads one and writes another. No network.
    Writer,
}

/// Capabilities that stay, if the process has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privileges {
    /// None at all.
    None,
    /// To read layers whoever owns their files, and their trusted.* attributes.
    ReadLayers,
    /// To write layers with all owners, devices and attributes.
    WriteLayers,
}

/// What stays within reach of a process.
#[derive(Clone, Debug)]
pub struct Confinement {
    /// What the process is for.
    pub role: Role,
    /// What it keeps of its capabilities.
    pub privileges: Privileges,
    /// Directories and files that it can change. They must exist. Devices, programs and setuid bits in them mean nothing.
    pub writable: Vec<PathBuf>,
    /// Directories and files that it can read. Those that do not exist are left out. A path below `/proc/self/fd` stands for an open
    /// descriptor.
    pub readable: Vec<PathBuf>,
    /// Whether it needs temporary files. It gets a file system in memory in the place of the directory for all.
    pub temporary: bool,
    /// What signals do to it.
    pub signals: Signals,
}

/// The walls that stand around a confined process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walls {
    /// Why there are no namespaces; `None` if there are.
    pub without_namespaces: Option<String>,
    /// Whether Landlock holds. False before Linux 5.19, and where the kernel leaves it out.
    pub landlock: bool,
}

impl Walls {
    /// The missing walls in one line; `None` if all stand.
    pub fn missing(&self) -> Option<String> {
        let landlock =
            "the kernel has no Landlock (Linux 5.19 or newer, `landlock` in /sys/kernel/security/lsm)";
        match (&self.without_namespaces, self.landlock) {
            (None, true) => None,
            (None, false) => Some(landlock.to_owned()),
            (Some(why), true) => {
                Some(format!("no namespaces ({why}): modes and owners of other files are within its reach"))
            }
            (Some(why), false) => {
                Some(format!("no namespaces ({why}); {landlock}: other files are within its reach"))
            }
        }
    }
}

/// What the kernel holds this process to. To be kept while the process is confined.
#[must_use]
pub struct Confined {
    /// The walls that stand.
    pub walls: Walls,
    /// A rule holds for an inode. The kernel can drop an inode of /proc that nothing holds, and the rule with it.
    _held: Vec<PathFd>,
}

impl fmt::Debug for Confined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Confined").field("walls", &self.walls).finish_non_exhaustive()
    }
}

/// The process cannot be confined. It is confined in part and must end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refuses to take a right away.
    #[error("giving up {what}: {source}")]
    Privileges {
        /// The right.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A path that stays within reach cannot be opened or mounted.
    #[error("confining to {path}: {source}")]
    Path {
        /// The path.
        path: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel has Landlock and refuses the rules.
    #[error("confining by Landlock: {0}")]
    Landlock(#[from] RulesetError),
    /// The filter of system calls cannot be made.
    #[error("making the filter of system calls: {0}")]
    Filter(#[from] seccompiler::BackendError),
    /// The kernel refuses the filter of system calls.
    #[error("installing the filter of system calls: {0}")]
    Seccomp(#[from] seccompiler::Error),
}

impl Error {
    /// Its class.
    pub fn class(&self) -> Class {
        match self {
            Error::Path { .. } => Class::Invalid,
            Error::Privileges { .. } | Error::Landlock(_) | Error::Filter(_) | Error::Seccomp(_) => {
                Class::Internal
            }
        }
    }
}

impl Confinement {
    /// Confines the calling process, which must have one thread. With namespaces the caller continues in a child, and the process
    /// outside passes signals on and ends as the child does.
    ///
    /// # Errors
    /// [`Error`]; the process is confined in part then and must end.
    pub fn enter(&self) -> Result<Confined, Error> {
        let failed =
            |what| move |source: rustix::io::Errno| Error::Privileges { what, source: source.into() };
        // It cannot be read afterwards.
        let _ = process::boot_id();
        let kept = capabilities::kept(self.privileges).map_err(failed("capabilities"))?;
        let by = match capabilities::can_mount().map_err(failed("capabilities"))? {
            true => Ok(By::Privilege),
            false if kept.is_empty() => Ok(By::UserNamespace),
            false => {
                Err("this process has capabilities that a layer needs, but not CAP_SYS_ADMIN".to_owned())
            }
        };
        let by = match by {
            Ok(_) if !attributes::is_supported() => {
                Err("there is no mount_setattr(2), Linux 5.12".to_owned())
            }
            by => by,
        };
        let by = by.and_then(|by| namespaces::probe(by).map(|()| by).map_err(|e| e.to_string()));
        let without_namespaces = match by {
            Ok(by) => {
                let entered = namespaces::enter(by, self.role == Role::Fetcher, self.signals);
                entered.map_err(|source| Error::Privileges { what: "namespaces", source })?;
                let replaced = root::replace(&self.places(), self.temporary);
                replaced
                    .map_err(|(path, source)| Error::Path { path: path.display().to_string(), source })?;
                None
            }
            Err(why) => Some(why),
        };
        rustix::thread::set_no_new_privs(true).map_err(failed("new privileges"))?;
        // Neither credentials nor the content of layers belong in a core file.
        let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
        capabilities::reduce(kept).map_err(failed("capabilities"))?;
        let (landlock, held) = files::restrict(self)?;
        for filter in seccomp::filters(self.role)? {
            seccompiler::apply_filter(&filter)?;
        }
        Ok(Confined { walls: Walls { without_namespaces, landlock }, _held: held })
    }

    /// What is in the new root, with what the role needs of the system.
    fn places(&self) -> Vec<Place> {
        let mut all: Vec<Place> = Vec::new();
        let system = self.system_files();
        for (paths, access) in
            [(&self.writable, Access::Write), (&self.readable, Access::Read), (&system, Access::Read)]
        {
            // A descriptor is there already, by its number.
            let named = paths.iter().filter(|path| !path.starts_with("/proc/self/fd"));
            all.extend(named.map(|path| Place { from: path.clone(), at: path.clone(), access }));
        }
        all
    }

    /// Files of the system that the role opens later.
    fn system_files(&self) -> Vec<PathBuf> {
        if self.role == Role::Fetcher { system_files::of_fetcher().collect() } else { Vec::new() }
    }
}
