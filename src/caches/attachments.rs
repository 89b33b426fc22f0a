//! Records of volumes that are in use for longer than a process lives, one per mount point. A record lasts
//! until the volume is detached, also across a reboot. A volume with a record is not deleted.
//!
//! ```text
//! attached/<16 hexadecimal digits of sha256 over the mount point>.json
//! {"version":1,"volume":"/var/lib/larder/tenants/t/volumes/….1","at":"/icv","since":"2026-11-25T10:00:00Z",
//!  "cache":"sha256:…","runtimes":["podman","containerd"]}
//! ```
//!
//! The records are stored next to the volumes, not in them, because a sealed volume is never written to.

use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::io_error::{FileRole, class};
use larder_model::runtime::{Containerd, Runtime};
use larder_sys::{Dir, atomic, dir};

/// Version of the record format.
const VERSION: u32 = 1;
/// Maximum size of a record, bytes: two paths (PATH_MAX, escaped) and a time.
const MAX: u64 = 64 << 10;

/// The record of one attached volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    version: u32,
    /// Directory of the volume: absolute, without symbolic links.
    pub volume: PathBuf,
    /// Mount point of the volume.
    pub at: PathBuf,
    /// Time of the attachment.
    pub since: DateTime<Utc>,
    /// Digest of the attached `cache.json`, to detect a different one. `None` if it was not read.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cache: Option<Digest>,
    /// The view made from the volume: an image store or, if `direct`, the layers of one for builds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub store: Option<PathBuf>,
    /// `true` if the volume itself is an image store.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub direct: bool,
    /// Runtimes whose configuration refers to it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub runtimes: Vec<Runtime>,
    /// `true` while it is being detached: nothing new must use it.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub leaving: bool,
    /// The containerd that was informed of it, if any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub containerd: Option<Containerd>,
    /// `true` if that containerd has its images without a pull.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub preloaded: bool,
}

impl Attachment {
    /// Creates a record of `volume` at the mount point `at`, without optional parts.
    pub fn new(volume: &Path, at: &Path, since: DateTime<Utc>) -> Self {
        Attachment {
            version: VERSION,
            volume: volume.to_owned(),
            at: at.to_owned(),
            since,
            cache: None,
            store: None,
            direct: false,
            runtimes: Vec::new(),
            leaving: false,
            containerd: None,
            preloaded: false,
        }
    }

    /// Returns the directories that are additional image stores. The order matters: containers of an image
    /// use the layers of the first store that has it.
    pub fn image_stores(&self) -> impl Iterator<Item = &Path> {
        // Records of older versions have no view if the volume is itself an image store.
        let at = (self.direct || self.store.is_none()).then_some(&*self.at);
        at.into_iter().chain(self.store.as_deref())
    }
}

/// The reason why a record cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum AttachmentError {
    /// A file system operation failed.
    #[error("{doing} {path}: {source}")]
    Io {
        /// The operation that failed.
        doing: &'static str,
        /// The path of the operation.
        path: PathBuf,
        /// The error of the kernel.
        r#source: io::Error,
    },
    /// The record is unreadable and might refer to any volume, so no volume is deleted until it is resolved.
    #[error("the attachment record {path} is unreadable ({reason}): remove it if nothing is attached there")]
    Unknown {
        /// Path of the record.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// Another volume is attached at the mount point.
    #[error("the volume {} is already attached at {}: detach it first, or attach elsewhere", volume.display(), at.display())]
    Taken {
        /// The mount point.
        at: PathBuf,
        /// The volume attached there.
        volume: PathBuf,
    },
}

impl AttachmentError {
    /// Returns the class, which determines the exit code and whether to retry.
    pub fn class(&self) -> Class {
        match self {
            AttachmentError::Io { source, .. } => class(source, FileRole::Own),
            AttachmentError::Unknown { .. } => Class::Corrupt,
            AttachmentError::Taken { .. } => Class::Conflict,
        }
    }
}

/// The attachment records of a host.
#[derive(Clone, Debug)]
pub struct Attachments {
    dir: PathBuf,
}

impl Attachments {
    /// Opens the records in `dir` ([`Layout::attached`](super::layout::Layout::attached)).
    pub fn new(dir: PathBuf) -> Self {
        Attachments { dir }
    }

    /// Durably writes the record of an attachment before it is made. If the same volume is already recorded
    /// at the same mount point, its record is replaced and keeps its time.
    ///
    /// # Errors
    /// Returns [`AttachmentError::Taken`] if another volume is recorded there, or an error if the record
    /// cannot be written.
    pub fn note(&self, new: &Attachment) -> Result<(), AttachmentError> {
        let name = name(&new.at);
        let mut record = new.clone();
        if let Some(found) = self.read(&name)? {
            if found.volume != new.volume {
                return Err(AttachmentError::Taken { at: found.at, volume: found.volume });
            }
            record.since = found.since;
            if record == found {
                return Ok(());
            }
        }
        dir::create_all(&self.dir, 0o700).map_err(|e| self.failed("creating", e))?;
        let dir = Dir::open(&self.dir).map_err(|e| self.failed("opening", e))?;
        let written = serde_json::to_vec(&record).map_err(io::Error::from);
        let written = written.and_then(|bytes| atomic::write(&dir, name.as_bytes(), &bytes, 0o600));
        written.map_err(|e| self.failed("writing a record to", e))
    }

    /// Deletes the record of the mount point `at`.
    ///
    /// # Errors
    /// Fails if the record exists and cannot be deleted.
    pub fn forget(&self, at: &Path) -> Result<(), AttachmentError> {
        let dir = match Dir::open(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|e| self.failed("opening", e))?,
        };
        match dir.unlink(name(at).as_bytes()).and_then(|()| dir.sync()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.failed("removing a record from", e)),
            _ => Ok(()),
        }
    }

    /// Lists all records. An unreadable one is an error, because it might refer to any volume.
    ///
    /// # Errors
    /// Fails if a record cannot be read.
    pub fn list(&self) -> Result<Vec<Attachment>, AttachmentError> {
        let dir = match Dir::open(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|e| self.failed("opening", e))?,
        };
        let mut records = Vec::new();
        for name in dir.names().map_err(|e| self.failed("listing", e))? {
            // Skip temporary files of an interrupted writer.
            if let Ok(name) = String::from_utf8(name)
                && name.ends_with(".json")
            {
                records.extend(self.read(&name)?);
            }
        }
        Ok(records)
    }

    fn read(&self, name: &str) -> Result<Option<Attachment>, AttachmentError> {
        let bytes = match Dir::open(&self.dir).and_then(|dir| dir.read_file(name.as_bytes(), MAX)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| self.failed("reading a record of", e))?,
        };
        let unknown = |reason: String| AttachmentError::Unknown { path: self.dir.join(name), reason };
        let record: Attachment = serde_json::from_slice(&bytes).map_err(|e| unknown(e.to_string()))?;
        if record.version != VERSION {
            return Err(unknown(format!("its version is {}, supported is {VERSION}", record.version)));
        }
        Ok(Some(record))
    }

    fn failed(&self, doing: &'static str, source: io::Error) -> AttachmentError {
        AttachmentError::Io { doing, path: self.dir.clone(), source }
    }
}

fn name(at: &Path) -> String {
    format!("{}.json", &Digest::sha256(at.as_os_str().as_bytes()).hex()[..16])
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn records_last_until_they_are_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let records = Attachments::new(dir.path().join("attached"));
        let (volume, other, at) = (Path::new("/v/1.1"), Path::new("/v/2.1"), Path::new("/icv"));
        let now = DateTime::UNIX_EPOCH;
        assert!(records.list().unwrap().is_empty());
        records.forget(at).unwrap();
        records.note(&Attachment::new(volume, at, now)).unwrap();
        let later = now + chrono::TimeDelta::seconds(1);
        let more = Attachment { runtimes: vec![Runtime::Podman], ..Attachment::new(volume, at, later) };
        records.note(&more).unwrap();
        assert_eq!(records.list().unwrap(), [Attachment { since: now, ..more }]);
        let taken = records.note(&Attachment::new(other, at, now));
        assert!(matches!(taken, Err(AttachmentError::Taken { .. })));
        records.note(&Attachment::new(volume, Path::new("/icv2"), now)).unwrap();
        let mut found: Vec<PathBuf> = records.list().unwrap().into_iter().map(|record| record.at).collect();
        found.sort();
        assert_eq!(found, [at, Path::new("/icv2")]);
        records.forget(at).unwrap();
        assert_eq!(records.list().unwrap().len(), 1);
    }

    #[test]
    fn an_unreadable_record_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let records = Attachments::new(dir.path().to_owned());
        fs::write(dir.path().join("0.json.tmp"), "{").unwrap();
        assert!(records.list().unwrap().is_empty());
        for bad in ["", "{", r#"{"version":2,"volume":"/v","at":"/a","since":"1970-01-01T00:00:00Z"}"#] {
            fs::write(dir.path().join("0.json"), bad).unwrap();
            let error = records.list().unwrap_err();
            assert_eq!(error.class(), Class::Corrupt, "{error}");
        }
    }
}
