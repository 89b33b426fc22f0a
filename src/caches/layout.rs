//! File names in the state directory of a host.
//!
//! ```text
//! lock                                        locked while the daemon runs
//! larder.db                                   records (SQLite, with its -wal, and -reserve)
//! tenants/<tenant>/volumes/<id>.<generation>  volumes that builders of the tenant can read
//! tenants/<tenant>/layers/                    which volume has which layer (build::share)
//! attached/                                   attached volumes and their mount points (caches::attachments)
//! mounted/                                    mounts made by `larder mount` (rootfs::record)
//! verified/                                   verified volumes (volume::proofs)
//! node.lock                                   locked by the agent of a cluster's node (`larder node`)
//! snapshotter/                                data of the snapshotter for containerd (node::snapshotter)
//! erofs/                                      layers for containerd's EROFS snapshotter (node::content_cache)
//! trash/                                      volumes being deleted
//! imports/<id>                                uploaded archives, until their volumes are sealed
//! work/<id>/                                  secrets of a running builder; deleted when it ends
//! ```

use std::path::{Path, PathBuf};

use larder_model::image_cache::{CacheId, TenantName};

/// Lock file, locked while the daemon runs.
pub const LOCK: &str = "lock";
/// Lock file of the agent of a cluster's node.
pub const AGENT_LOCK: &str = "node.lock";
/// Database file of the records.
pub const DATABASE: &str = "larder.db";

/// The paths in a state directory.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Creates the layout of the state directory at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Layout { root: root.into() }
    }

    /// Returns the state directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the database file of the records.
    pub fn database(&self) -> PathBuf {
        self.root.join(DATABASE)
    }

    /// Returns the directory that contains all tenants' directories.
    pub fn tenants(&self) -> PathBuf {
        self.root.join("tenants")
    }

    /// Returns the directory that builders of one tenant share.
    pub fn tenant(&self, tenant: &TenantName) -> PathBuf {
        self.tenants().join(tenant.as_str())
    }

    /// Returns the directory of one tenant's volumes.
    pub fn volumes(&self, tenant: &TenantName) -> PathBuf {
        self.tenant(tenant).join("volumes")
    }

    /// Returns the directory of one volume.
    pub fn volume(&self, tenant: &TenantName, id: &CacheId, generation: u32) -> PathBuf {
        self.volumes(tenant).join(format!("{id}.{generation}"))
    }

    /// Returns the directory of attachment records.
    pub fn attached(&self) -> PathBuf {
        self.root.join("attached")
    }

    /// Returns the directory of layers for containerd's own EROFS snapshotter.
    pub fn content_cache(&self) -> PathBuf {
        self.root.join("erofs")
    }

    /// Returns the directory of records for `larder mount`.
    pub fn mounted(&self) -> PathBuf {
        self.root.join("mounted")
    }

    /// Returns the directory of verification records.
    pub fn verified(&self) -> PathBuf {
        self.root.join("verified")
    }

    /// Returns the directory of the containerd snapshotter.
    pub fn snapshotter(&self) -> PathBuf {
        self.root.join("snapshotter")
    }

    /// Returns the directory of volumes that are being deleted.
    pub fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// Returns the directory of uploaded archives.
    pub fn imports(&self) -> PathBuf {
        self.root.join("imports")
    }

    /// Returns the directory of temporary files for running builders.
    pub fn work(&self) -> PathBuf {
        self.root.join("work")
    }
}

/// Parses the directory name of a volume into its cache and generation.
pub fn parse_volume(name: &str) -> Option<(CacheId, u32)> {
    let (id, generation) = name.split_once('.')?;
    let number: u32 = generation.parse().ok()?;
    (number.to_string() == generation).then_some((id.parse().ok()?, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volume_names_are_formatted_and_parsed() {
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
