//! Real layers from files of this machine: names, modes, links and content as in real distributions.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, EntryType, Header};

use super::Layer;
use larder_model::digest::{Algorithm, Hasher};

/// Paths of the static busybox (Debian: package `busybox-static`).
const BUSYBOX: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];

/// Programs in the layer of [`busybox`] that are links to it.
const APPLETS: [&str; 16] = [
    "cat",
    "echo",
    "find",
    "grep",
    "head",
    "id",
    "ls",
    "md5sum",
    "readlink",
    "sha256sum",
    "sh",
    "sleep",
    "sort",
    "stat",
    "test",
    "wc",
];

/// Returns a base layer: the machine's static busybox, with hard links as `/bin/sh` and other programs, and
/// the directories that a container expects.
///
/// # Errors
///
/// `NotFound` if the machine has no static busybox.
pub fn busybox() -> io::Result<Layer> {
    let program = BUSYBOX.iter().map(Path::new).find(|path| path.exists());
    let program = program.ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, "no static busybox: install busybox-static")
    })?;
    let mut tar = Writer::new()?;
    for (name, mode) in [
        ("./", 0o755),
        ("bin/", 0o755),
        ("dev/", 0o755),
        ("etc/", 0o755),
        ("proc/", 0o555),
        ("root/", 0o700),
        ("sys/", 0o555),
        ("tmp/", 0o1777),
    ] {
        tar.append(name.as_ref(), EntryType::Directory, mode, None, &[])?;
    }
    let content = fs::read(program)?;
    tar.append("bin/busybox".as_ref(), EntryType::Regular, 0o755, None, &content)?;
    for name in APPLETS {
        let path = PathBuf::from(format!("bin/{name}"));
        tar.append(&path, EntryType::Link, 0o755, Some("bin/busybox".as_ref()), &[])?;
    }
    tar.append(
        "etc/passwd".as_ref(),
        EntryType::Regular,
        0o644,
        None,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    )?;
    tar.append("etc/group".as_ref(), EntryType::Regular, 0o644, None, b"root:x:0:\n")?;
    tar.finish()
}

/// Returns one gzip layer for each of `paths`, with everything below it, sorted by name. Hard links are kept.
///
/// A layer ends early when the content of its files reaches `limit` bytes, so the caller chooses the size of
/// an image. Sockets and unreadable files are omitted.
///
/// # Errors
///
/// Fails if one of `paths` itself is missing.
pub fn from_files(paths: &[&Path], limit: u64) -> io::Result<Vec<Layer>> {
    paths.iter().map(|path| layer_of(path, limit)).collect()
}

fn layer_of(root: &Path, limit: u64) -> io::Result<Layer> {
    let mut tar = Writer::new()?;
    let mut links: HashMap<(u64, u64), PathBuf> = HashMap::new();
    let mut written = 0;
    let mut pending = vec![root.canonicalize()?];
    while let Some(path) = pending.pop() {
        if written >= limit {
            break;
        }
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let name = path.strip_prefix("/").unwrap_or(&path).to_owned();
        if metadata.is_dir() {
            let Ok(entries) = fs::read_dir(&path) else {
                continue;
            };
            tar.append_as(&name, EntryType::Directory, &metadata, None, &[])?;
            let entries: BTreeMap<_, _> = entries.flatten().map(|e| (e.file_name(), e.path())).collect();
            pending.extend(entries.into_values().rev());
        } else if metadata.is_symlink() {
            let target = fs::read_link(&path)?;
            tar.append_as(&name, EntryType::Symlink, &metadata, Some(&target), &[])?;
        } else if metadata.is_file() {
            let first = links.get(&(metadata.dev(), metadata.ino()));
            if let Some(first) = first.filter(|_| metadata.nlink() > 1) {
                tar.append_as(&name, EntryType::Link, &metadata, Some(first), &[])?;
                continue;
            }
            let Ok(content) = fs::read(&path) else { continue };
            tar.append_as(&name, EntryType::Regular, &metadata, None, &content)?;
            written += content.len() as u64;
            links.insert((metadata.dev(), metadata.ino()), name);
        }
    }
    tar.finish()
}

/// A gzip layer being written. Hashes the tar before it is compressed.
struct Writer {
    tar: Builder<Hashing>,
}

struct Hashing {
    hasher: Hasher,
    gzip: GzEncoder<Vec<u8>>,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.gzip.write_all(bytes)?;
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.gzip.flush()
    }
}

impl Writer {
    fn new() -> io::Result<Self> {
        let gzip = GzEncoder::new(Vec::new(), Compression::new(4));
        let tar = Builder::new(Hashing { hasher: Hasher::new(Algorithm::Sha256), gzip });
        Ok(Writer { tar })
    }

    /// Appends a root-owned member with a fixed time.
    fn append(
        &mut self,
        name: &Path,
        kind: EntryType,
        mode: u32,
        target: Option<&Path>,
        content: &[u8],
    ) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_mode(mode);
        header.set_mtime(1_767_323_045);
        header.set_uid(0);
        header.set_gid(0);
        self.append_with(header, name, kind, target, content)
    }

    /// Appends a member with the metadata of a file of this machine.
    fn append_as(
        &mut self,
        name: &Path,
        kind: EntryType,
        metadata: &Metadata,
        target: Option<&Path>,
        content: &[u8],
    ) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_mode(metadata.mode() & 0o7777);
        header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
        header.set_uid(metadata.uid().into());
        header.set_gid(metadata.gid().into());
        self.append_with(header, name, kind, target, content)
    }

    fn append_with(
        &mut self,
        mut header: Header,
        name: &Path,
        kind: EntryType,
        target: Option<&Path>,
        content: &[u8],
    ) -> io::Result<()> {
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        match target {
            Some(target) => self.tar.append_link(&mut header, name, target),
            None => self.tar.append_data(&mut header, name, content),
        }
    }

    fn finish(self) -> io::Result<Layer> {
        let Hashing { hasher, gzip } = self.tar.into_inner()?;
        Ok(Layer::new(gzip.finish()?, "tar+gzip", Some(hasher.finish())))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;
    use larder_model::digest::Digest;

    #[test]
    fn links_and_limit() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), [7; 1000]).unwrap();
        fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
        fs::write(dir.path().join("c"), [8; 1000]).unwrap();
        fs::write(dir.path().join("d"), [9; 1000]).unwrap();
        let layers = from_files(&[dir.path()], 2000).unwrap();
        let mut bytes = Vec::new();
        GzDecoder::new(&layers[0].blob[..]).read_to_end(&mut bytes).unwrap();
        assert_eq!(Digest::sha256(&bytes), layers[0].diff_id);
        let mut archive = tar::Archive::new(&bytes[..]);
        let kinds: Vec<_> = archive.entries().unwrap().map(|e| e.unwrap().header().entry_type()).collect();
        assert_eq!(kinds, [EntryType::Directory, EntryType::Regular, EntryType::Link, EntryType::Regular]);
    }
}
