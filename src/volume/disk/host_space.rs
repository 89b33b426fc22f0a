//! The space of the host for a disk that is being filled.

use larder_model::io_error::Context as _;
use larder_sys::{Dir, space};

use super::take::{Backing, Disk};
use super::{Error, IMAGE};

/// The directory on the host that contains the disk. Its path leads to the disk while that is mounted.
#[derive(Debug)]
pub struct HostSpace {
    below: Dir,
    shown: String,
}

impl Disk {
    /// Returns the space of the host for this disk. `None` for a device, whose space belongs to it.
    ///
    /// # Errors
    /// The directory of the disk cannot be duplicated.
    pub fn host_space(&self) -> Result<Option<HostSpace>, Error> {
        if self.backing != Backing::Image {
            return Ok(None);
        }
        let shown = self.shown();
        let below = self.below.try_clone().context("opening the directory of", &shown)?;
        Ok(Some(HostSpace { below, shown }))
    }
}

impl HostSpace {
    /// Checks that `bytes` fit on the disk: they are already allocated, or the host has free space for the
    /// rest.
    ///
    /// # Errors
    /// [`Error::HostShort`], or the space cannot be read.
    pub fn check(&self, bytes: u64) -> Result<(), Error> {
        let allocated = self.below.stat(IMAGE).context("examining", &self.shown)?.allocated;
        let have = space::free(&self.below).context("reading the free space of", &self.shown)?;
        let need = bytes.saturating_sub(allocated);
        // A file system in memory without a limit, such as ramfs, reports a size of 0.
        let is_unlimited = space::total(&self.below).context("reading the size of", &self.shown)? == 0;
        if need <= have || is_unlimited {
            return Ok(());
        }
        Err(Error::HostShort { path: self.shown.clone(), need, have })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocated_space_counts() {
        let dir = tempfile::tempdir().unwrap();
        let below = Dir::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("disk.img"), vec![1; 1 << 20]).unwrap();
        let free = space::free(&below).unwrap();
        let host = HostSpace { below, shown: "disk.img".into() };
        host.check(1).unwrap();
        host.check(1 << 20).unwrap();
        let error = host.check(free.saturating_mul(2)).unwrap_err();
        assert!(error.to_string().contains("disk.img"), "{error}");
    }
}
