//! Containers in user namespaces: ID-mapped mounts change the owners of their files, without copies
//! (containerd, capability `remap-ids`).
//!
//! containerd maps the common parent directory of a container's layers, including the mounts in it, and takes
//! the layers from there (core/mount, `doPrepareIDMappedOverlay`). A symbolic link would lead out of it. So
//! each such container has a directory `m/<number>` with mounts of its layers, topmost first:
//!
//! ```text
//! m/7/0, m/7/1, …    the lower directories of snapshot 7
//! ```

use std::path::{Path, PathBuf};
use std::{fs, io};

use super::error::Error;
use super::{Labels, Snapshotter};
use larder_model::io_error::Context as _;
use larder_sys::{Dir, mount};

/// The labels of a snapshot with an ID mapping: `<container ID>:<host ID>:<number>`, separated by commas.
const UIDS: &str = "containerd.io/snapshot/uidmapping";
const GIDS: &str = "containerd.io/snapshot/gidmapping";

/// The parent directory of the mounted layers.
pub(super) const DIRECTORY: &str = "m";

/// The ID mapping of a container's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    uids: String,
    gids: String,
    /// User and group on the host for the container's root.
    pub(super) root: (u32, u32),
}

impl Mapping {
    /// Returns the mapping in the labels. `None` if there is none.
    pub(super) fn of(labels: &Labels) -> Result<Option<Self>, Error> {
        let (uids, gids) = match (labels.get(UIDS), labels.get(GIDS)) {
            (None, None) => return Ok(None),
            (uids, gids) => (uids.cloned().unwrap_or_default(), gids.cloned().unwrap_or_default()),
        };
        match (host_of_root(&uids), host_of_root(&gids)) {
            (Some(uid), Some(gid)) => Ok(Some(Mapping { uids, gids, root: (uid, gid) })),
            _ => Err(Error::Invalid(format!(
                "the labels {UIDS} and {GIDS} must be mappings with an entry for ID 0, but are {uids:?} and {gids:?}"
            ))),
        }
    }

    /// Returns the mount options with which containerd maps a mount.
    pub(super) fn options(&self) -> [String; 2] {
        [format!("uidmap={}", self.uids), format!("gidmap={}", self.gids)]
    }
}

/// Returns the host ID for ID 0. `None` if the text is not a valid mapping.
fn host_of_root(text: &str) -> Option<u32> {
    let mut root = None;
    for entry in text.split(',') {
        let numbers: Vec<u32> = entry.split(':').map(str::parse).collect::<Result<_, _>>().ok()?;
        match numbers[..] {
            [0, host, 1..=u32::MAX] => root = root.or(Some(host)),
            [_, _, 1..=u32::MAX] => {}
            _ => return None,
        }
    }
    root
}

impl Snapshotter {
    /// Mounts the lower directories of snapshot `id` in its own directory. Replaces existing mounts, which
    /// might be of a detached volume. An overlay keeps the mounts that it uses.
    pub(super) fn mount_lower(&self, id: i64, lower: &[PathBuf]) -> Result<Vec<PathBuf>, Error> {
        self.unmount_lower(id)?;
        let directory = self.lower_mounts(id);
        let make = || {
            let all = Dir::open(&self.root)?.ensure_dir(DIRECTORY.as_bytes(), 0o700)?;
            let own = all.ensure_dir(id.to_string().as_bytes(), 0o700)?;
            let mut places = Vec::new();
            for (number, path) in lower.iter().enumerate() {
                let name = number.to_string();
                let place = own.ensure_dir(name.as_bytes(), 0o700)?;
                mount::Mount::clone_of(path)?.attach(&place)?;
                places.push(directory.join(name));
            }
            Ok(places)
        };
        Ok(make().context("mounting layers in", directory.display())?)
    }

    /// Unmounts the lower directories of snapshot `id`, and removes their mount points.
    pub(super) fn unmount_lower(&self, id: i64) -> Result<(), Error> {
        let directory = self.lower_mounts(id);
        let remove = || {
            let own = match Dir::open(&directory) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other?,
            };
            for name in own.names()? {
                let place = directory.join(String::from_utf8_lossy(&name).as_ref());
                if mount::is_mount_point(&own.open_dir(&name)?)? {
                    mount::unmount(&place)?;
                }
                own.remove_dir(&name)?;
            }
            fs::remove_dir(&directory)
        };
        Ok(remove().context("unmounting layers in", directory.display())?)
    }

    /// Returns the snapshots with mounted layers.
    pub(super) fn lower_mount_owners(&self) -> Result<Vec<i64>, Error> {
        let path = self.root.join(DIRECTORY);
        let names = match Dir::open(&path).and_then(|dir| dir.names()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other.context("listing", path.display())?,
        };
        Ok(names.iter().filter_map(|name| std::str::from_utf8(name).ok()?.parse().ok()).collect())
    }

    fn lower_mounts(&self, id: i64) -> PathBuf {
        Path::new(&self.root).join(DIRECTORY).join(id.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_as_containerd_writes_them() {
        let of = |uids: &str, gids: &str| {
            let labels = [(UIDS, uids), (GIDS, gids)].into_iter().filter(|(_, text)| !text.is_empty());
            Mapping::of(&labels.map(|(key, text)| (key.to_owned(), text.to_owned())).collect())
        };
        assert_eq!(of("", "").unwrap(), None);
        let mapping = of("0:100000:65536", "5:7:1,0:200000:5").unwrap().unwrap();
        assert_eq!(mapping.root, (100_000, 200_000));
        assert_eq!(mapping.options(), ["uidmap=0:100000:65536", "gidmap=5:7:1,0:200000:5"]);
        for bad in ["1:2:3", "0:1", "0:1:0", "0:-1:2", "0:1:2,", "0:1:2,ro", " 0:1:2", "0:1:2:3"] {
            assert!(of(bad, "0:1:2").is_err() && of("0:1:2", bad).is_err(), "{bad}");
        }
        assert!(of("0:1:2", "").is_err());
    }
}
