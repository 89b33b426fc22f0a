//! The view that a container gets: a sealed volume's layers of one image, mounted as a read-only overlay.

use std::fs;
use std::path::{Path, PathBuf};

use larder::model::chain::ChainId;
use larder::model::digest::Digest;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

/// A mounted view. Unmounted when it is dropped. Use it in an isolated test.
#[derive(Debug)]
pub(crate) struct View {
    dir: TempDir,
}

impl View {
    /// Mounts the layers with these diff IDs, base first.
    pub(crate) fn mount(volume: &Path, diff_ids: &[Digest]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (empty, merged) = (dir.path().join("empty"), dir.path().join("merged"));
        fs::create_dir(&empty).unwrap();
        fs::create_dir(&merged).unwrap();
        let mut lower: Vec<_> = ChainId::chain(diff_ids)
            .iter()
            .rev()
            .map(|chain| volume.join("overlay").join(chain.hex()).join("diff"))
            .map(|path| path.display().to_string())
            .collect();
        // An overlay without an upper directory needs two lower ones.
        lower.push(empty.display().to_string());
        let options = format!("lowerdir={}", lower.join(":"));
        mount(Some("overlay"), &merged, Some("overlay"), MsFlags::MS_RDONLY, Some(options.as_str())).unwrap();
        View { dir }
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("merged")
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let _ = umount2(&self.path(), MntFlags::MNT_DETACH);
    }
}
