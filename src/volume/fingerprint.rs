//! Fingerprints of volumes by file metadata. A different fingerprint means that a file was changed.
//!
//! A fingerprint covers the file system, and for every file the path, inode number, type, mode, owner, number
//! of links, size, modification time and change time. Only the kernel sets the change time, so no program on
//! the host can change a file undetected. Writes to the disk below the file system, and changes of the host's
//! clock, are not detected.

use std::fs::File;
use std::io;
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::fstatvfs;

use super::layout;
use larder_layer::path;
use larder_model::digest::{Algorithm, Digest, Hasher};
use larder_sys::dir::stat_fd;
use larder_sys::walk::{Visitor, walk};
use larder_sys::{Dir, Stat, process};

/// Time that a file must be unchanged. The kernel's clock for change times has a resolution of up to 10 ms.
const QUIET_TIME: Duration = Duration::from_millis(100);

/// A fingerprint of the metadata of a volume's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    digest: Digest,
    newest: Duration,
}

impl Fingerprint {
    /// Computes the fingerprint of the files below `root`, except those in `.larder`, which no consumer
    /// reads.
    ///
    /// Returns `None` if a fingerprint would be unreliable: the files are on several file systems, or change
    /// times have no fractions of a second.
    ///
    /// # Errors
    /// Those of reading directories.
    pub fn of_directory(root: &Dir) -> io::Result<Option<Self>> {
        let mut files = Files { print: FingerprintBuilder::new(), device: None, is_sound: true };
        walk(root.try_clone()?, &mut files)?;
        Ok(if files.is_sound { files.print.finish() } else { None })
    }

    /// Computes the fingerprint of one file, such as the image of a disk.
    ///
    /// # Errors
    /// Those of fstat(2) and fstatvfs(3).
    pub fn of_file(file: &File) -> io::Result<Option<Self>> {
        let mut print = FingerprintBuilder::new();
        print.file_system(file)?;
        print.add(b"", &stat_fd(file)?);
        Ok(print.finish())
    }

    /// Waits until any later change of a file is guaranteed to get a different change time.
    pub fn settle(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // A time in the future also requires the wait.
        if self.newest + QUIET_TIME > now {
            sleep(QUIET_TIME);
        }
    }

    /// Returns the fingerprint as a digest.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }
}

/// A fingerprint that is being computed.
struct FingerprintBuilder {
    hasher: Hasher,
    newest: Duration,
    has_fractions: bool,
}

impl FingerprintBuilder {
    fn new() -> Self {
        FingerprintBuilder {
            hasher: Hasher::new(Algorithm::Sha256),
            newest: Duration::ZERO,
            has_fractions: false,
        }
    }

    fn file_system(&mut self, inode: impl rustix::fd::AsFd) -> io::Result<()> {
        let id = fstatvfs(inode)?.f_fsid;
        self.hasher.update(format!("{id}\0").as_bytes());
        if id == 0 {
            // Only the device number identifies the file system, and another device can get it at the next
            // boot.
            self.hasher.update(format!("{}\0", process::boot_id()?).as_bytes());
        }
        Ok(())
    }

    fn add(&mut self, at: &[u8], stat: &Stat) {
        let Stat { file_type, mode, uid, gid, size, links, device, mtime, ctime, .. } = stat;
        let inode = stat.identity.1;
        let facts = format!(
            "\0{inode} {file_type:?} {mode} {uid} {gid} {size} {links} {device:?} {mtime:?} {ctime:?}\n"
        );
        self.hasher.update(at);
        self.hasher.update(facts.as_bytes());
        let seconds = u64::try_from(ctime.sec).unwrap_or_default();
        self.newest = self.newest.max(Duration::new(seconds, ctime.nsec));
        self.has_fractions |= ctime.nsec != 0;
    }

    fn finish(self) -> Option<Fingerprint> {
        self.has_fractions.then(|| Fingerprint { digest: self.hasher.finish(), newest: self.newest })
    }
}

struct Files {
    print: FingerprintBuilder,
    device: Option<u64>,
    is_sound: bool,
}

impl Visitor for Files {
    type Error = io::Error;

    fn enter(&mut self, dir: &Dir, at: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let mut names = dir.names()?;
        names.sort();
        let mut directories = Vec::new();
        for name in names {
            // The top of an attached volume is a directory of Larder in which the content is mounted, so its
            // metadata is excluded.
            if at.is_empty() && [layout::LARDER, layout::LOST_AND_FOUND].contains(&&*name) {
                continue;
            }
            let stat = dir.stat(&name)?;
            match self.device {
                None => {
                    self.device = Some(stat.identity.0);
                    if stat.is_dir() {
                        self.print.file_system(&dir.open_dir(&name)?)?;
                    } else {
                        self.print.file_system(&dir.open_file(&name)?)?;
                    }
                }
                Some(device) => self.is_sound &= device == stat.identity.0,
            }
            self.print.add(&path::join(at, &name), &stat);
            if stat.is_dir() {
                directories.push(name);
            }
        }
        Ok(directories)
    }

    fn failed(&mut self, _: &[u8], error: io::Error) -> io::Error {
        error
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::*;

    fn print(dir: &Path) -> Digest {
        let print = Fingerprint::of_directory(&Dir::open(dir).unwrap()).unwrap().unwrap();
        print.settle();
        print.digest().clone()
    }

    #[test]
    fn every_change_of_a_file_gives_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("d")).unwrap();
        fs::create_dir(at(".larder")).unwrap();
        fs::write(at("d/f"), "one").unwrap();
        let time = fs::metadata(at("d/f")).unwrap().modified().unwrap();
        let mut known = vec![print(dir.path())];
        fs::write(at(".larder/lock"), "x").unwrap();
        assert_eq!(print(dir.path()), known[0], "files that no consumer reads do not count");
        let changes: [(&str, &dyn Fn()); 5] = [
            ("content, with its time set back", &|| {
                fs::write(at("d/f"), "two").unwrap();
                fs::File::options().write(true).open(at("d/f")).unwrap().set_modified(time).unwrap();
            }),
            ("mode", &|| fs::set_permissions(at("d/f"), Permissions::from_mode(0o4755)).unwrap()),
            ("a second name elsewhere", &|| fs::hard_link(at("d/f"), at(".larder/f")).unwrap()),
            ("a new file", &|| fs::write(at("d/g"), "").unwrap()),
            ("another name", &|| fs::rename(at("d/g"), at("d/h")).unwrap()),
        ];
        for (what, change) in changes {
            change();
            let found = print(dir.path());
            assert!(!known.contains(&found), "{what}");
            known.push(found);
        }
    }
}
