//! Reads which of podman, buildah and CRI-O a node has, and their configuration, below its root directory.
//! Runs no programs.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use larder_sys::Dir;

/// Path of containers/storage's configuration. Larder writes it only if no other file exists there.
pub const STORAGE_CONF: &str = "etc/containers/storage.conf";
/// Path of the vendor's configuration, which programs read if the other is missing.
pub const VENDOR_CONF: &str = "usr/share/containers/storage.conf";

/// Maximum size of a configuration file, bytes.
const MAX: u64 = 1 << 20;

/// The state of a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum File {
    /// The file does not exist.
    Absent,
    /// The text of the file.
    Text(String),
    /// A file that Larder does not read: a symbolic link, too large, or not text.
    Other,
}

/// The programs and configuration of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The state of [`STORAGE_CONF`].
    pub storage: File,
    /// The state of [`VENDOR_CONF`].
    pub vendor: File,
    /// The storage driver of root's images, if there are any and it is not `overlay`.
    pub driver: Option<String>,
    /// The programs that use image stores.
    pub programs: Vec<Program>,
}

/// podman, buildah or CRI-O on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// The name of the program.
    pub name: &'static str,
    /// `true` if it reads `storage.conf.d`.
    pub is_new: bool,
}

impl Program {
    /// Reports whether the program is CRI-O.
    pub fn is_crio(&self) -> bool {
        self.name == CRIO
    }
}

/// The state of a node cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("examining {}: {source}", path.display())]
pub struct Error {
    /// Path of the file or directory.
    pub path: PathBuf,
    /// The error of the system call.
    pub r#source: io::Error,
}

const CRIO: &str = "crio";
const PROGRAMS: [&str; 3] = ["podman", "buildah", CRIO];
const DIRECTORIES: [&str; 4] = ["usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin"];

/// The name of a function that containers/storage has since it reads `storage.conf.d` (container-libs
/// 5eaf7d2ba1, March 2026: after 1.62). Every Go program that links it contains the name, even if it is
/// stripped.
const READS_DROP_INS: &[u8] = b"podman.io/storage/types.LoadStoreOptions";

impl Node {
    /// Reads the files below `root`. Does not follow symbolic links, because they could lead out of it.
    ///
    /// # Errors
    ///
    /// A file or directory cannot be read.
    pub fn read(root: &Path) -> Result<Self, Error> {
        let failed = |path: &str| {
            let path = root.join(path);
            move |source| Error { path, source }
        };
        let dir = Dir::open(root).map_err(failed(""))?;
        let mut node = Node {
            storage: file(&dir, STORAGE_CONF).map_err(failed(STORAGE_CONF))?,
            vendor: file(&dir, VENDOR_CONF).map_err(failed(VENDOR_CONF))?,
            driver: driver(&dir),
            programs: Vec::new(),
        };
        for directory in DIRECTORIES {
            let Ok(directory) = dir.open_beneath(directory.as_bytes()) else { continue };
            for name in PROGRAMS {
                if !matches!(directory.try_stat(name.as_bytes()), Ok(Some(_))) {
                    continue;
                }
                let is_new =
                    directory.open_file(name.as_bytes()).and_then(|file| holds(file, READS_DROP_INS));
                // A program that cannot be read counts as old.
                node.programs.push(Program { name, is_new: is_new.unwrap_or(false) });
            }
        }
        Ok(node)
    }
}

fn file(root: &Dir, path: &str) -> io::Result<File> {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    let directory = match root.open_beneath(directory.as_bytes()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(File::Absent),
        other => other?,
    };
    if directory.try_stat(name.as_bytes())?.is_none() {
        return Ok(File::Absent);
    }
    let text = directory.read_file(name.as_bytes(), MAX).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    Ok(text.map_or(File::Other, File::Text))
}

/// Returns the storage driver. Images are stored in `<driver>-images`.
fn driver(root: &Dir) -> Option<String> {
    let names = root.open_beneath(b"var/lib/containers/storage").ok()?.names().ok()?;
    let mut drivers = names.iter().filter_map(|name| std::str::from_utf8(name).ok()?.strip_suffix("-images"));
    let first = drivers.next()?;
    (first != "overlay" && drivers.all(|driver| driver != "overlay")).then(|| first.to_owned())
}

/// Reports whether the file contains `needle`.
fn holds(mut file: std::fs::File, needle: &[u8]) -> io::Result<bool> {
    let pattern = regex::escape(&String::from_utf8_lossy(needle));
    let pattern = regex::bytes::Regex::new(&pattern).map_err(io::Error::other)?;
    let mut buffer = vec![0; 1 << 20];
    let mut kept = 0;
    loop {
        let read = file.read(&mut buffer[kept..])?;
        if read == 0 {
            return Ok(false);
        }
        let filled = kept + read;
        if pattern.is_match(&buffer[..filled]) {
            return Ok(true);
        }
        // A match can start in this piece and end in the next.
        kept = filled.min(needle.len() - 1);
        buffer.copy_within(filled - kept..filled, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn root(name: &str) -> PathBuf {
        let root = std::env::temp_dir().join(format!("larder-node-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        root
    }

    #[test]
    fn an_empty_node() {
        let root = root("empty");
        let node = Node::read(&root).unwrap();
        assert_eq!((node.storage, node.vendor, node.driver), (File::Absent, File::Absent, None));
        assert_eq!(node.programs, []);
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn each_program_is_old_or_new() {
        let root = root("programs");
        let mut new = vec![0; (1 << 20) - 7];
        // The match is where two pieces meet.
        new.extend_from_slice(b"go.podman.io/storage/types.LoadStoreOptions\0");
        fs::write(root.join("usr/bin/podman"), &new).unwrap();
        let node = Node::read(&root).unwrap();
        assert_eq!(node.programs, [Program { name: "podman", is_new: true }]);
        fs::create_dir_all(root.join("usr/local/bin")).unwrap();
        fs::write(root.join("usr/local/bin/crio"), "go.podman.io/storage/types.loadStoreOptions").unwrap();
        let node = Node::read(&root).unwrap();
        let crio = Program { name: "crio", is_new: false };
        assert_eq!(node.programs, [Program { name: "podman", is_new: true }, crio]);
        assert!(crio.is_crio());
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn files_of_others_are_not_followed() {
        let root = root("links");
        fs::create_dir_all(root.join("etc/containers")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join(STORAGE_CONF)).unwrap();
        fs::create_dir_all(root.join("var/lib/containers/storage/vfs-images")).unwrap();
        let node = Node::read(&root).unwrap();
        assert_eq!(node.storage, File::Other);
        assert_eq!(node.driver.as_deref(), Some("vfs"));
        fs::create_dir_all(root.join("var/lib/containers/storage/overlay-images")).unwrap();
        assert_eq!(Node::read(&root).unwrap().driver, None);
        fs::remove_dir_all(&root).unwrap();
    }
}
