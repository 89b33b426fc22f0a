//! Records of the mounts of `larder mount`, so that `larder umount` releases no others.
//!
//! ```text
//! mounted/<16 hexadecimal digits of sha256 over the directory>.json     in state.dir, only accessible to the owner
//! {"version":1,"at":"/mnt/web","mount":2147484012,"boot":"0d5e…"}
//! ```
//!
//! A mount is identified by its ID, which the kernel does not reuse until the next boot (before Linux 6.8:
//! not while the mount exists).

use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use larder_model::digest::Digest;
use larder_sys::{Dir, atomic, dir, private, process};

const VERSION: u32 = 1;
/// Maximum size of a record, bytes: a path (PATH_MAX, escaped) and some numbers.
const MAX_BYTES: u64 = 64 << 10;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    at: PathBuf,
    mount: u64,
    boot: String,
}

impl Record {
    fn new(at: &Path, mount: u64) -> io::Result<Self> {
        Ok(Record { version: VERSION, at: at.to_owned(), mount, boot: process::boot_id()? })
    }
}

/// The mount records of a host.
#[derive(Clone, Debug)]
pub struct Records {
    dir: PathBuf,
}

impl Records {
    /// Returns the records in the directory `dir`, which need not exist.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Records { dir: dir.into() }
    }

    /// Records the mount with this ID, before it is attached at `at`.
    pub(super) fn add(&self, at: &Path, mount: u64) -> io::Result<()> {
        dir::create_all(&self.dir, 0o700)?;
        let json = serde_json::to_vec(&Record::new(at, mount)?)?;
        atomic::write(&Dir::open(&self.dir)?, name(at).as_bytes(), &json, 0o600)
    }

    /// Reports whether the mount with this ID at `at` is recorded.
    pub(super) fn contains(&self, at: &Path, mount: u64) -> io::Result<bool> {
        let bytes = match private::read(&self.dir.join(name(at)), MAX_BYTES) {
            Ok(bytes) => bytes,
            Err(private::ReadError::Io(e)) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            Err(_) => return Ok(false),
        };
        Ok(serde_json::from_slice(&bytes).ok() == Some(Record::new(at, mount)?))
    }

    /// Removes the record of `at`.
    pub(super) fn remove(&self, at: &Path) -> io::Result<()> {
        match std::fs::remove_file(self.dir.join(name(at))) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

fn name(at: &Path) -> String {
    format!("{}.json", &Digest::sha256(at.as_os_str().as_bytes()).hex()[..16])
}
