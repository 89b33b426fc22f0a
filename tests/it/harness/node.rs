//! A node of its own for `larder attach`: a directory for its `/etc`, and one for its state. What is mounted is mounted in
//! the namespace of an isolated test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::larder;

/// A node without any runtime.
#[derive(Debug)]
pub(crate) struct Node {
    dir: TempDir,
}

impl Node {
    pub(crate) fn new() -> Self {
        Node { dir: tempfile::tempdir().unwrap() }
    }

    /// Where its file system is.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// A path of its file system.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root().join(path.trim_start_matches('/'))
    }

    /// A place for a mount.
    pub(crate) fn place(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The directory of state.
    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// A program that is found on it, and does nothing.
    pub(crate) fn install(&self, program: &str) {
        let path = self.path("/usr/bin").join(program);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }

    /// `larder attach` or `detach`.
    pub(crate) fn larder(&self, command: &str, source: &Path) -> Command {
        let mut larder = larder();
        larder.env("LARDER_STATE__DIR", self.state());
        larder.arg(command).arg(source).arg("--node-root").arg(self.root());
        larder
    }

    /// `larder attach --at`.
    pub(crate) fn attach(&self, source: &Path, at: &Path) -> Command {
        let mut larder = self.larder("attach", source);
        larder.arg("--at").arg(at);
        larder
    }

    pub(crate) fn detach(&self, source: &Path) -> Command {
        self.larder("detach", source)
    }

    /// Names of all files below its `/etc`.
    pub(crate) fn configured(&self) -> Vec<PathBuf> {
        let (etc, mut found) = (self.path("/etc"), Vec::new());
        let mut pending = vec![etc.clone()];
        while let Some(path) = pending.pop() {
            match fs::read_dir(&path) {
                Ok(names) if !path.is_symlink() => pending.extend(names.map(|name| name.unwrap().path())),
                _ if path.symlink_metadata().is_ok() => {
                    found.push(path.strip_prefix(&etc).unwrap().to_owned())
                }
                _ => {}
            }
        }
        found.sort();
        found
    }
}
