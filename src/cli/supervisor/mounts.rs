//! Disks of other volumes that are mounted so that the extractor can reuse their layers.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::builder::order::BuildRequest;
use crate::builder::volume_name::VolumeName;
use crate::volume::disk::{self, Attached};

/// Maximum number of mounted disks. Each uses a loop device.
const MAX_MOUNTS: usize = 64;

/// The mounted disks. They are unmounted with the namespace.
#[derive(Debug)]
pub(super) struct Mounts {
    /// Directory of the volumes, and the name of the volume that this build fills.
    volumes: Option<(PathBuf, VolumeName)>,
    mounted: HashMap<VolumeName, Attached>,
}

impl Mounts {
    /// Creates an empty list.
    pub(super) fn new(order: &BuildRequest) -> Self {
        let volumes = order.share.as_ref().map(|share| (share.dir.join("volumes"), share.volume.clone()));
        Mounts { volumes, mounted: HashMap::new() }
    }

    /// Mounts the sealed disk of `volume` over its directory, once. The mount is visible in the namespaces of
    /// the children. Blocks.
    ///
    /// # Errors
    /// The reason why the disk cannot be mounted.
    pub(super) fn mount(&mut self, volume: VolumeName) -> Result<(), String> {
        let Some((volumes, own)) = &self.volumes else { return Err("no volumes are shared".into()) };
        let path = volumes.join(volume.as_str());
        if self.mounted.contains_key(&volume) {
            return Ok(());
        }
        if volume == *own || self.mounted.len() >= MAX_MOUNTS {
            return Err("it is the volume of this build, or too many are mounted".into());
        }
        // A symbolic link could lead anywhere.
        if !std::fs::symlink_metadata(&path).is_ok_and(|facts| facts.is_dir()) {
            return Err("it no longer exists".into());
        }
        // Layers in a directory can be read without a mount.
        if !path.join("disk.img").is_file() {
            return Err("it is not a disk".into());
        }
        let attached = disk::enter_own(&path).and_then(|entered| entered.attach(&path));
        self.mounted.insert(volume, attached.map_err(|e| e.to_string())?);
        Ok(())
    }
}
