//! A container's view of an image: the layers of a sealed volume, mounted as a read-only overlay. mount(8),
//! not Larder, mounts the images.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use larder_model::chain::ChainId;
use larder_model::digest::Digest;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use super::filesystem::unmount_below;
use super::succeed;

/// A mounted view. Unmounted when it is dropped. Use it in an isolated test.
#[derive(Debug)]
pub(crate) struct View {
    dir: TempDir,
}

impl View {
    /// Mounts the layers with these diff IDs, base first.
    pub(crate) fn mount(volume: &Path, diff_ids: &[Digest]) -> Self {
        View::of(tempfile::tempdir().unwrap(), directories(volume, diff_ids), "")
    }

    /// Mounts the layers as a user without root does: overlayfs evaluates user.overlay.* instead of
    /// trusted.overlay.*.
    pub(crate) fn mount_as_user(volume: &Path, diff_ids: &[Digest]) -> Self {
        View::of(tempfile::tempdir().unwrap(), directories(volume, diff_ids), ",userxattr")
    }

    /// Mounts the EROFS images of these layers, base first, and the images that are stacked over them.
    pub(crate) fn mount_images(volume: &Path, diff_ids: &[Digest]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut lower = Vec::new();
        for (chain, diff_id) in ChainId::chain(diff_ids).iter().zip(diff_ids).rev() {
            let hex = diff_id.hex();
            let fixup = volume.join("erofs/chain").join(format!("{}.erofs", chain.hex()));
            let image = volume.join("erofs/sha256").join(&hex[..2]).join(format!("{hex}.erofs"));
            for image in [fixup, image].into_iter().filter(|path| path.exists()) {
                let at = dir.path().join(lower.len().to_string());
                fs::create_dir(&at).unwrap();
                succeed(Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).arg(image).arg(&at));
                lower.push(at);
            }
        }
        View::of(dir, lower, "")
    }

    fn of(dir: TempDir, lower: Vec<PathBuf>, more: &str) -> Self {
        let (empty, merged) = (dir.path().join("empty"), dir.path().join("merged"));
        fs::create_dir(&empty).unwrap();
        fs::create_dir(&merged).unwrap();
        let mut lower: Vec<_> = lower.iter().map(|path| path.display().to_string()).collect();
        // An overlay without an upper directory needs two lower ones.
        lower.push(empty.display().to_string());
        let options = format!("lowerdir={}{more}", lower.join(":"));
        mount(Some("overlay"), &merged, Some("overlay"), MsFlags::MS_RDONLY, Some(options.as_str())).unwrap();
        View { dir }
    }

    /// Returns the mount point.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("merged")
    }
}

/// Returns the directories of the layers, topmost first.
fn directories(volume: &Path, diff_ids: &[Digest]) -> Vec<PathBuf> {
    let chain = ChainId::chain(diff_ids);
    chain.iter().rev().map(|chain| volume.join("overlay").join(chain.hex()).join("diff")).collect()
}

impl Drop for View {
    fn drop(&mut self) {
        let _ = umount2(&self.path(), MntFlags::MNT_DETACH);
        unmount_below(self.dir.path());
    }
}
