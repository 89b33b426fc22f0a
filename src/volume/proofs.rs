//! Records of successful verifications, so that an unchanged volume is not read again.
//!
//! ```text
//! verified/<32 hexadecimal digits>.json     in state.dir, accessible only to the owner
//! {"version":1,"larder":"0.9.0","what":"layers of sha256:…","fingerprint":"sha256:…",
//!  "at":"2026-11-25T10:00:00Z"}
//! ```
//!
//! A record is valid for exactly the same files ([`Fingerprint`]) and for the version of Larder that wrote
//! it, because a later version might check more. Unreadable records are ignored.

use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{fs, io};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::fingerprint::Fingerprint;
use larder_model::digest::Digest;
use larder_sys::{Dir, atomic, dir, private, process};

const VERSION: u32 = 1;
/// Maximum size of a record, in bytes.
const MAX: u64 = 4 << 10;
/// Maximum number of records; the oldest are deleted first.
const MAX_RECORDS: usize = 512;

/// Scope of a verification.
#[derive(Clone, Debug)]
pub enum Proof<'a> {
    /// The structures of the file system on a disk image (e2fsck(8)).
    FileSystem,
    /// Everything on the volume whose `cache.json` has this digest.
    Layers(&'a Digest),
}

impl Proof<'_> {
    fn subject(&self) -> String {
        match self {
            Proof::FileSystem => "file system".to_owned(),
            Proof::Layers(cache) => format!("layers of {cache}"),
        }
    }
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    larder: String,
    what: String,
    fingerprint: Digest,
    at: DateTime<Utc>,
}

/// The verification records of a host.
#[derive(Clone, Debug)]
pub struct Proofs {
    dir: PathBuf,
}

impl Proofs {
    /// Returns the records in the directory `dir`, which need not exist.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Proofs { dir: dir.into() }
    }

    /// Reports whether the files with this fingerprint were verified.
    pub fn has(&self, proof: &Proof<'_>, print: &Fingerprint) -> bool {
        let Ok(bytes) = self.read(&name(proof, print)) else { return false };
        serde_json::from_slice(&bytes).is_ok_and(|record: Record| {
            record.version == VERSION
                && record.larder == env!("CARGO_PKG_VERSION")
                && record.what == proof.subject()
                && record.fingerprint == *print.digest()
        })
    }

    /// Records that the files with this fingerprint were verified. The fingerprint must have been computed
    /// before the verification.
    ///
    /// # Errors
    /// Those of writing the record.
    pub fn note(&self, proof: &Proof<'_>, print: &Fingerprint) -> io::Result<()> {
        dir::create_all(&self.dir, 0o700)?;
        let record = Record {
            version: VERSION,
            larder: env!("CARGO_PKG_VERSION").to_owned(),
            what: proof.subject(),
            fingerprint: print.digest().clone(),
            at: Utc::now(),
        };
        self.prune()?;
        let name = name(proof, print);
        atomic::write(&Dir::open(&self.dir)?, name.as_bytes(), &serde_json::to_vec(&record)?, 0o600)
    }

    /// Reads a record, if only this user can have written it.
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let stat = Dir::open(&self.dir)?.stat_self()?;
        if stat.uid != process::ids().0 || stat.mode & 0o022 != 0 {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        private::read(&self.dir.join(name), MAX).map_err(io::Error::other)
    }

    fn prune(&self) -> io::Result<()> {
        let mut found: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            found.push((entry.metadata()?.modified()?, entry.path()));
        }
        found.sort_unstable();
        let surplus = (found.len() + 1).saturating_sub(MAX_RECORDS);
        found[..surplus].iter().try_for_each(|(_, path): &(_, PathBuf)| remove(path))
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn name(proof: &Proof<'_>, print: &Fingerprint) -> String {
    let digest = Digest::sha256(format!("{}\n{}\n", proof.subject(), print.digest()).as_bytes());
    format!("{}.json", &digest.hex()[..32])
}

#[cfg(test)]
mod tests {
    use std::fs::{File, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_proof_is_of_one_file_and_one_kind() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk.img");
        fs::write(&file, "x").unwrap();
        let print = || Fingerprint::of_file(&File::open(&file).unwrap()).unwrap().unwrap();
        let proofs = Proofs::new(dir.path().join("state/verified"));
        let (one, other) = (Digest::sha256(b"1"), Digest::sha256(b"2"));
        let before = print();
        before.settle();
        assert!(!proofs.has(&Proof::FileSystem, &before));
        proofs.note(&Proof::FileSystem, &before).unwrap();
        proofs.note(&Proof::Layers(&one), &before).unwrap();
        let known = |print: &Fingerprint| {
            [Proof::FileSystem, Proof::Layers(&one), Proof::Layers(&other)]
                .map(|proof| proofs.has(&proof, print))
        };
        assert_eq!(known(&before), [true, true, false]);
        let records = dir.path().join("state/verified");
        assert_eq!(fs::metadata(&records).unwrap().permissions().mode() & 0o7777, 0o700);
        fs::set_permissions(&records, Permissions::from_mode(0o777)).unwrap();
        assert_eq!(known(&before), [false; 3], "any user could have written them");
        fs::set_permissions(&records, Permissions::from_mode(0o700)).unwrap();
        fs::write(&file, "y").unwrap();
        assert_eq!(known(&print()), [false; 3]);
    }

    #[test]
    fn old_records_are_deleted() {
        let dir = tempfile::tempdir().unwrap();
        // Another test of this process may have cleared the umask.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
        for number in 0..MAX_RECORDS + 3 {
            fs::write(dir.path().join(format!("{number}.json")), "{}").unwrap();
        }
        let file = dir.path().join("0.json");
        let print = Fingerprint::of_file(&File::open(&file).unwrap()).unwrap().unwrap();
        let proofs = Proofs::new(dir.path());
        proofs.note(&Proof::FileSystem, &print).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), MAX_RECORDS);
        assert!(proofs.has(&Proof::FileSystem, &print));
    }
}
