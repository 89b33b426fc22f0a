//! Confinement of a process that reads untrusted data. A bug in a parser then affects only the data of that
//! process and not the machine.
//!
//! ```text
//! 1. namespaces    mounts, processes, IPC, host name; no network unless the role needs it
//! 2. root          an empty read-only file system with the paths of the role: nodev, nosuid, noexec
//! 3. capabilities  only those that the role needs, in every set
//! 4. Landlock      the same paths again, and no abstract sockets or signals to other processes
//! 5. seccomp       an allow-list of system calls
//! ```
//!
//! Each mechanism works without the others. If the system lacks one (namespaces in most containers, Landlock
//! in old kernels), it is skipped and reported by [`Isolation`]. Seccomp and the loss of capabilities are
//! always enforced.
//!
//! Confinement applies to a thread and to the threads that it creates later, so call [`Confinement::enter`]
//! while there is only one. It cannot be undone.

mod capabilities;
mod files;
mod init;
mod namespaces;
mod root;
mod seccomp;
mod system_files;

use std::path::PathBuf;
use std::{fmt, io};

use landlock::{PathFd, RulesetError};
use nix::sys::resource::{Resource, setrlimit};

pub use self::init::{Signals, unblock};
use self::namespaces::Method;
use self::root::{Access, Place};
use super::mount::attributes;
use super::process;
use larder_model::class::Class;

/// Role of a process, which determines the allowed system calls and whether there is a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Communicates with registries and holds credentials. Reads few files and writes none.
    Fetcher,
    /// Decodes and writes layers, without a network.
    Extractor,
    /// Reads a volume, a disk or an archive, without a network.
    Reader,
    /// Reads one of these and writes another, without a network.
    Writer,
}

/// Capabilities to keep, if the process has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privileges {
    /// Keeps no capability at all.
    None,
    /// For reading layers regardless of file owners, and their trusted.* attributes.
    ReadLayers,
    /// For writing layers with all owners, devices and attributes.
    WriteLayers,
}

/// The rights that a confined process keeps.
#[derive(Clone, Debug)]
pub struct Confinement {
    /// Role of the process.
    pub role: Role,
    /// Capabilities that the process keeps.
    pub privileges: Privileges,
    /// Writable directories and files. They must exist. Device nodes, execution and setuid bits have no
    /// effect in them.
    pub writable: Vec<PathBuf>,
    /// Readable directories and files. Missing ones are skipped. A path below `/proc/self/fd` means an open
    /// descriptor.
    pub readable: Vec<PathBuf>,
    /// `true` if the process needs temporary files. It then gets its own tmpfs in place of the system's
    /// temporary directory.
    pub temporary: bool,
    /// Effect of termination signals on the process.
    pub signals: Signals,
}

/// The isolation mechanisms in effect for a confined process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Isolation {
    /// The reason why there are no namespaces; `None` if there are.
    pub without_namespaces: Option<String>,
    /// `true` if Landlock is enforced. `false` before Linux 5.19 and if the kernel disables Landlock.
    pub landlock: bool,
}

impl Isolation {
    /// Describes the missing mechanisms in one line; `None` if all are in effect.
    pub fn missing(&self) -> Option<String> {
        let landlock =
            "the kernel has no Landlock (Linux 5.19 or newer, `landlock` in /sys/kernel/security/lsm)";
        match (&self.without_namespaces, self.landlock) {
            (None, true) => None,
            (None, false) => Some(landlock.to_owned()),
            (Some(why), true) => Some(format!(
                "no namespaces ({why}): the process can still access modes and owners of other files"
            )),
            (Some(why), false) => {
                Some(format!("no namespaces ({why}); {landlock}: the process can still access other files"))
            }
        }
    }
}

/// Proof of confinement. Keep it as long as the process should be confined.
#[must_use]
pub struct Confined {
    /// The isolation mechanisms in effect.
    pub isolation: Isolation,
    /// A Landlock rule applies to an inode. The kernel can drop an unreferenced inode of /proc, and the rule
    /// with it.
    _held: Vec<PathFd>,
}

impl fmt::Debug for Confined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Confined").field("isolation", &self.isolation).finish_non_exhaustive()
    }
}

/// The process could not be confined. It is partly confined and must exit.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refuses to drop a right.
    #[error("cannot restrict {what}: {source}")]
    Privileges {
        /// Name of the right.
        what: &'static str,
        /// Error of the kernel.
        r#source: io::Error,
    },
    /// A path that should stay accessible cannot be opened or mounted.
    #[error("cannot make {path} available in the sandbox: {source}")]
    Path {
        /// The path in question.
        path: String,
        /// Error of the kernel.
        r#source: io::Error,
    },
    /// The kernel supports Landlock but refuses the rules.
    #[error("cannot apply the Landlock rules: {0}")]
    Landlock(RulesetError),
    /// The seccomp filter cannot be built.
    #[error("cannot build the seccomp filter: {0}")]
    Filter(seccompiler::BackendError),
    /// The kernel refuses the seccomp filter.
    #[error("cannot install the seccomp filter: {0}")]
    Seccomp(seccompiler::Error),
}

impl From<RulesetError> for Error {
    fn from(error: RulesetError) -> Self {
        Error::Landlock(error)
    }
}

impl Error {
    /// Returns the class of the error.
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
    /// Confines the calling process, which must have one thread. With namespaces, the caller continues in a
    /// child process. The original process forwards signals to the child and exits with its status.
    ///
    /// # Errors
    /// [`Error`]. The process is then partly confined and must exit.
    pub fn enter(&self) -> Result<Confined, Error> {
        let failed =
            |what| move |source: rustix::io::Errno| Error::Privileges { what, source: source.into() };
        // Caches the boot ID, which cannot be read after confinement.
        let _ = process::boot_id();
        let kept = capabilities::kept(self.privileges).map_err(failed("capabilities"))?;
        let method = match capabilities::can_mount().map_err(failed("capabilities"))? {
            true => Ok(Method::Privilege),
            false if kept.is_empty() => Ok(Method::UserNamespace),
            false => Err("the process has capabilities that a layer needs, but not CAP_SYS_ADMIN".to_owned()),
        };
        let method = match method {
            Ok(_) if !attributes::is_supported() => {
                Err("mount_setattr(2) needs Linux 5.12 or newer".to_owned())
            }
            method => method,
        };
        let method =
            method.and_then(|method| namespaces::probe(method).map(|()| method).map_err(|e| e.to_string()));
        let without_namespaces = match method {
            Ok(method) => {
                let entered = namespaces::enter(method, self.role == Role::Fetcher, self.signals);
                entered.map_err(|source| Error::Privileges { what: "namespaces", source })?;
                let replaced = root::replace(&self.places(), self.temporary);
                replaced
                    .map_err(|(path, source)| Error::Path { path: path.display().to_string(), source })?;
                None
            }
            Err(why) => Some(why),
        };
        rustix::thread::set_no_new_privs(true).map_err(failed("new privileges"))?;
        // Credentials and the content of layers must not end up in a core file.
        let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
        capabilities::reduce(kept).map_err(failed("capabilities"))?;
        let (landlock, held) = files::restrict(self)?;
        for filter in seccomp::filters(self.role).map_err(Error::Filter)? {
            seccompiler::apply_filter(&filter).map_err(Error::Seccomp)?;
        }
        Ok(Confined { isolation: Isolation { without_namespaces, landlock }, _held: held })
    }

    /// Returns the paths of the new root, including the system files that the role needs.
    fn places(&self) -> Vec<Place> {
        let mut all: Vec<Place> = Vec::new();
        let system = self.system_files();
        for (paths, access) in
            [(&self.writable, Access::Write), (&self.readable, Access::Read), (&system, Access::Read)]
        {
            // Open descriptors stay accessible by number.
            let named = paths.iter().filter(|path| !path.starts_with("/proc/self/fd"));
            all.extend(named.map(|path| Place { from: path.clone(), at: path.clone(), access }));
        }
        all
    }

    /// Returns the system files that the role opens later.
    fn system_files(&self) -> Vec<PathBuf> {
        if self.role == Role::Fetcher { system_files::of_fetcher().collect() } else { Vec::new() }
    }
}
