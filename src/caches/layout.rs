//! Names in the state directory of a host.
//!
//! ```text
//! lock                                        held for the life of the daemon
//! larder.db                                   records (SQLite, with its -wal, and -reserve)
//! tenants/<tenant>/volumes/<id>.<generation>  volumes; what a builder of the tenant may read
//! tenants/<tenant>/layers/                    which volume has which layer (build::share)
//! attached/                                   which volumes are attached where (caches::attachments)
//! mounted/                                    what `larder mount` mounted where (rootfs::record)
//! verified/                                   which volumes were verified (volume::proofs)
//! node.lock                                   held by the agent of a cluster's node (`larder node`)
//! snapshotter/                                what containerd keeps here (node::snapshotter)
//! erofs/                                      layers for containerd's own EROFS snapshotter (node::content_cache)
//! trash/                                      volumes on their way out
//! imports/<id>                                archives that were sent, until what is made of them is sealed
//! work/<id>/                                  secrets of a running builder; gone when it ends
//! ```

use std::path::{Path, PathBuf};

use larder_model::image_cache::{CacheId, TenantName};

/// Held for the life of the daemon.
pub const LOCK: &str = "lock";
/// Held by the agent of a cluster's node.
pub const AGENT_LOCK: &str = "node.lock";
/// The records.
pub const DATABASE: &str = "larder.db";

/// A state directory.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The state directory at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Layout { root: root.into() }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The records.
    pub fn database(&self) -> PathBuf {
        self.root.join(DATABASE)
    }

    /// Directories of all tenants.
    pub fn tenants(&self) -> PathBuf {
        self.root.join("tenants")
    }

    /// What builders of one tenant share.
    pub fn tenant(&self, tenant: &TenantName) -> PathBuf {
        self.tenants().join(tenant.as_str())
    }

    /// Volumes of one tenant.
    pub fn volumes(&self, tenant: &TenantName) -> PathBuf {
        self.tenant(tenant).join("volumes")
    }

    /// One volume.
    pub fn volume(&self, tenant: &TenantName, id: &CacheId, generation: u32) -> PathBuf {
        self.volumes(tenant).join(format!("{id}.{generation}"))
    }

    /// Records of what is attached.
    pub fn attached(&self) -> PathBuf {
        self.root.join("attached")
    }

    /// Layers for containerd's own EROFS snapshotter.
    pub fn content_cache(&self) -> PathBuf {
        self.root.join("erofs")
    }

    /// Records of what `larder mount` mounted.
    pub fn mounted(&self) -> PathBuf {
        self.root.join("mounted")
    }

    /// Records of what was proven of volumes.
    pub fn verified(&self) -> PathBuf {
        self.root.join("verified")
    }

    /// What containerd keeps in a snapshotter beside the daemon, or without one.
    pub fn snapshotter(&self) -> PathBuf {
        self.root.join("snapshotter")
    }

    /// Volumes on their way out.
    pub fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// Archives that caches are made of.
    pub fn imports(&self) -> PathBuf {
        self.root.join("imports")
    }

    /// What a running builder needs and nobody keeps.
    pub fn work(&self) -> PathBuf {
        self.root.join("work")
    }
}

/// The cache and the number that a volume's directory is named by.
pub fn parse_volume(name: &str) -> Option<(CacheId, u32)> {
    let (id, generation) = name.split_once('.')?;
    let number: u32 = generation.parse().ok()?;
    (number.to_string() == generation).then_some((id.parse().ok()?, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_named_both_ways() {
        let id = CacheId::random();
        let path = Layout::new("/s").volume(&"team".parse().unwrap(), &id, 7);
        let name = path.file_name().unwrap().to_str().unwrap();
        assert_eq!(parse_volume(name), Some((id, 7)));
        assert!(path.starts_with("/s/tenants/team/volumes"));
        for bad in ["", "x.1", &format!("{id}"), &format!("{id}.07"), &format!("{id}.-1")] {
            assert_eq!(parse_volume(bad), None, "{bad}");
        }
    }
}
