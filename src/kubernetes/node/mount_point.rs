//! Finds the directory where the kubelet has mounted the volume of a pod.
//!
//! `<kubelet>/pods/<uid>/volumes/kubernetes.io~csi/<volume>/mount` for CSI drivers
//! (pkg/volume/csi/csi_mounter.go), and `<kubelet>/pods/<uid>/volumes/<plugin>/<volume>` for others
//! (pkg/kubelet/kubelet_getters.go).

use std::path::{Path, PathBuf};
use std::{fs, io};

use larder_sys::Dir;
use larder_sys::mount::is_mount_point;

/// Returns the mount of the PersistentVolume `volume` for the pod `uid`; `None` if there is none.
///
/// # Errors
/// The kubelet's directory cannot be read.
pub(super) fn find(kubelet: &Path, uid: &str, volume: &str) -> io::Result<Option<PathBuf>> {
    // The names come from the API server and must not contain path separators.
    if [uid, volume].iter().any(|name| name.is_empty() || name.starts_with('.') || name.contains('/')) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let plugins = match fs::read_dir(kubelet.join("pods").join(uid).join("volumes")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    for plugin in plugins {
        let own = plugin?.path().join(volume);
        for path in [own.join("mount"), own] {
            let mounted = match Dir::open(&path) {
                Ok(dir) => is_mount_point(&dir)?,
                Err(_) => false,
            };
            if mounted {
                return Ok(Some(path));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unmounted_volumes_are_not_found() {
        let kubelet = tempfile::tempdir().unwrap();
        assert_eq!(find(kubelet.path(), "uid", "pv").unwrap(), None);
        fs::create_dir_all(kubelet.path().join("pods/uid/volumes/kubernetes.io~csi/pv/mount")).unwrap();
        assert_eq!(find(kubelet.path(), "uid", "pv").unwrap(), None);
        for (uid, volume) in [("..", "pv"), ("uid", "../pv"), ("", "pv"), ("uid", "")] {
            assert!(find(kubelet.path(), uid, volume).is_err());
        }
    }
}
