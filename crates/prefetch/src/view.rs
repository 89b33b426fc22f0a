//! Regular files in the merged view of an image's layers, found as the kernel finds them in a container.
//! Symbolic links are followed inside the view, and `..` of the root is the root.
//!
//! The result must not depend on the user, because `verify` computes the list again. So root also skips files
//! and directories that their owner could not read.

use std::io;
use std::rc::Rc;

use nix::errno::Errno;

use larder_layer::overlay::lower::{self, Lower, LowerEntry, Part};
use larder_layer::path;
use larder_layer::resolve::{self, Entry, ResolveError, Resolved};
use larder_layer::stored::{StoredDir, StoredFile};
use larder_sys::{FileType, Stat};

/// Maximum length of a path in the kernel (`PATH_MAX` without its NUL), bytes.
const PATH_MAX: usize = 4095;

/// Maximum number of directories searched for one image. The start of a Python program needs about a
/// thousand; the limit stops hostile images.
const MAX_STEPS: usize = 1 << 17;

/// The merged layers of one image.
#[derive(Debug)]
pub(super) struct View {
    lower: Lower,
    steps: usize,
}

/// A regular file in the view.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// Path without symbolic links.
    pub(super) path: Vec<u8>,
    /// Directory of the layer that contains it.
    dir: Rc<Part>,
    /// Attributes of the file.
    pub(super) stat: Stat,
}

impl View {
    /// Creates the view of layer trees, topmost first.
    pub(super) fn new(trees: impl IntoIterator<Item = StoredDir>) -> Self {
        View { lower: Lower::new(trees), steps: MAX_STEPS }
    }

    /// Returns the regular file that `path` refers to in a process whose working directory is `from`.
    pub(super) fn file(&mut self, path: &[u8], from: &[u8]) -> io::Result<Option<Found>> {
        match self.walk(path, from) {
            Err(e) if is_absent(&e) => Ok(None),
            other => other,
        }
    }

    /// Reports whether the limit of directories was reached, after which no file is found.
    pub(super) fn is_exhausted(&self) -> bool {
        self.steps == 0
    }

    fn walk(&mut self, path: &[u8], from: &[u8]) -> io::Result<Option<Found>> {
        if path.is_empty() || path.len().max(from.len()) > PATH_MAX {
            return Ok(None);
        }
        // `from` may contain links as well.
        let wanted = if path.starts_with(b"/") { path.to_vec() } else { [from, b"/", path].concat() };
        let (parent, at) = match resolve::resolve(self, b"", &wanted) {
            Ok(Resolved::Other { parent, path, is_last: true }) => (parent, path),
            Ok(_) | Err(ResolveError::Path(_)) => return Ok(None),
            Err(ResolveError::Tree(error)) => return Err(error),
        };
        Ok(match self.child(&parent, path::split(&at).1)? {
            LowerEntry::Other { dir, stat } if stat.file_type == FileType::Regular => {
                Some(Found { path: at, dir, stat })
            }
            _ => None,
        })
    }

    fn child(&mut self, parts: &[Rc<Part>], name: &[u8]) -> io::Result<LowerEntry> {
        self.steps = self.steps.saturating_sub(parts.len());
        if self.steps == 0 {
            return Ok(LowerEntry::Nothing);
        }
        for part in parts {
            // The owner must be able to read and search it.
            if part.stat_self()?.mode & 0o500 != 0o500 {
                return Ok(LowerEntry::Nothing);
            }
        }
        lower::child(parts, name)
    }
}

impl resolve::Tree for View {
    type Dir = Vec<Rc<Part>>;
    type Error = io::Error;

    /// Returns no parts if the limit of directories is reached.
    fn directory(&mut self, path: &[u8]) -> io::Result<Self::Dir> {
        let mut parts = self.lower.root().to_vec();
        for name in path::components(path) {
            match self.child(&parts, name)? {
                LowerEntry::Directory(next) => parts = next,
                _ => return Ok(Vec::new()),
            }
        }
        Ok(parts)
    }

    fn entry(&mut self, dir: &Self::Dir, name: &[u8], _at: &[u8]) -> io::Result<Entry<Self::Dir>> {
        lower::entry(self.child(dir, name)?, name)
    }
}

impl Found {
    /// Returns the index of the tree that contains it, counted from the topmost.
    pub(super) fn layer(&self) -> usize {
        self.dir.layer
    }

    /// Reports whether any user can execute it.
    pub(super) fn is_executable(&self) -> bool {
        self.stat.mode & 0o111 != 0
    }

    /// Opens it for reading; `None` if its owner cannot read it.
    pub(super) fn open(&self) -> io::Result<Option<StoredFile>> {
        if self.stat.mode & 0o400 == 0 {
            return Ok(None);
        }
        match self.dir.open_file(path::split(&self.path).1) {
            Err(e) if is_absent(&e) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Reads the first `limit` bytes.
    pub(super) fn head(&self, limit: u64) -> io::Result<Vec<u8>> {
        use std::io::Read as _;
        let mut bytes = Vec::new();
        if let Some(file) = self.open()? {
            file.take(limit).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    }
}

/// Reports whether a path from an image can cause the error. Other errors are the file system's.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(
            Errno::ENOENT
                | Errno::ENOTDIR
                | Errno::EACCES
                | Errno::ELOOP
                | Errno::ENAMETOOLONG
                | Errno::EINVAL
        )
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::Path;

    use super::*;
    use larder_sys::Dir;

    fn view(layers: &[&Path]) -> View {
        View::new(layers.iter().map(|path| StoredDir::Directory(Dir::open(path).unwrap())))
    }

    fn found(view: &mut View, path: &str, from: &str) -> Option<(usize, String)> {
        let found = view.file(path.as_bytes(), from.as_bytes()).unwrap()?;
        Some((found.layer(), String::from_utf8(found.path).unwrap()))
    }

    #[test]
    fn paths_resolve_as_in_the_container() {
        let dir = tempfile::tempdir().unwrap();
        let (top, base) = (dir.path().join("top"), dir.path().join("base"));
        for path in [&top, &base] {
            fs::create_dir_all(path.join("usr/bin")).unwrap();
        }
        fs::write(base.join("usr/bin/sh"), "old").unwrap();
        fs::write(base.join("usr/bin/cat"), "").unwrap();
        fs::write(top.join("usr/bin/sh"), "new").unwrap();
        fs::write(dir.path().join("outside"), "").unwrap();
        symlink("usr/bin", base.join("bin")).unwrap();
        symlink("../../../../usr/./bin//cat", top.join("usr/bin/less")).unwrap();
        symlink(dir.path().join("outside"), top.join("absolute")).unwrap();
        symlink("../outside", top.join("up")).unwrap();
        symlink("loop", top.join("loop")).unwrap();
        let mut view = view(&[&top, &base]);
        for (path, from, want) in [
            ("/bin/sh", "/", Some((0, "usr/bin/sh"))),
            ("bin/cat", "", Some((1, "usr/bin/cat"))),
            ("../cat", "/bin/less/..", None),
            ("cat", "/bin", Some((1, "usr/bin/cat"))),
            ("../../bin/less", "/bin", Some((1, "usr/bin/cat"))),
            ("/bin", "/", None),
            ("/absolute", "/", None),
            ("/up", "/", None),
            ("/loop", "/", None),
            ("/bin/sh/x", "/", None),
            ("", "/bin/sh", None),
        ] {
            let want = want.map(|(layer, path)| (layer, path.to_owned()));
            assert_eq!(found(&mut view, path, from), want, "{path} from {from}");
        }
    }

    #[test]
    fn root_sees_no_more_than_the_owner() {
        let dir = tempfile::tempdir().unwrap();
        for (name, mode) in [("open", 0o700), ("closed", 0o311)] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("file"), "x").unwrap();
            fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        let secret = dir.path().join("open/secret");
        fs::write(&secret, "x").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o111)).unwrap();
        let mut view = view(&[dir.path()]);
        assert_eq!(found(&mut view, "open/file", "/"), Some((0, "open/file".to_owned())));
        assert_eq!(found(&mut view, "closed/file", "/"), None);
        let secret = view.file(b"open/secret", b"/").unwrap().unwrap();
        assert!(secret.open().unwrap().is_none() && secret.is_executable());
    }

    #[test]
    fn the_number_of_steps_is_limited() {
        let dir = tempfile::tempdir().unwrap();
        let mut deep = dir.path().to_owned();
        for _ in 0..200 {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        let mut view = view(&[dir.path()]);
        let path = "d/".repeat(200) + &"../d/".repeat(700);
        for _ in 0..100 {
            assert_eq!(found(&mut view, &path, "/"), None);
        }
        assert!(view.is_exhausted());
    }
}
