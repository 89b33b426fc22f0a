//! Disks of other volumes, mounted for the process that fills this one.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::builder::order::Order;
use crate::builder::share::VolumeName;
use crate::volume::disk::{self, Attached};

/// Most at once: each takes a loop device.
const MOST: usize = 64;

/// What is mounted so far. It is unmounted with the namespace.
#[derive(Debug)]
pub(super) struct Mounts {
    /// Where the volumes are, and which of them is filled.
    volumes: Option<(PathBuf, VolumeName)>,
    mounted: HashMap<VolumeName, Attached>,
}

impl Mounts {
    /// Nothing yet.
    pub(super) fn new(order: &Order) -> Self {
        let volumes = order.share.as_ref().map(|share| (share.dir.join("volumes"), share.volume.clone()));
        Mounts { volumes, mounted: HashMap::new() }
    }

    /// Mounts the sealed disk of `volume` over its directory, once. The mount reaches the namespaces of the children. Blocks.
    ///
    /// # Errors
    /// Why that cannot be.
    pub(super) fn mount(&mut self, volume: VolumeName) -> Result<(), String> {
        let Some((volumes, own)) = &self.volumes else { return Err("no volumes are shared".into()) };
        let path = volumes.join(volume.as_str());
        if self.mounted.contains_key(&volume) {
            return Ok(());
        }
        if volume == *own || self.mounted.len() >= MOST {
            return Err("it is this build's own, or one too many".into());
        }
        // A link could lead anywhere.
        if !std::fs::symlink_metadata(&path).is_ok_and(|facts| facts.is_dir()) {
            return Err("it is not there any more".into());
        }
        // Layers of a directory can be read without a mount.
        if !path.join("disk.img").is_file() {
            return Err("it is not a disk".into());
        }
        let attached = disk::enter_own(&path).and_then(|entered| entered.attach(&path));
        self.mounted.insert(volume, attached.map_err(|e| e.to_string())?);
        Ok(())
    }
}
