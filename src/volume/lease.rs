//! Use of a volume by readers: flock(2) on `.larder/use`, which exists since the volume was first opened.
//!
//! Readers of a volume that can be deleted (`build --share`) hold a shared lock. A process that deletes a
//! volume first takes an exclusive one.

use super::error::Error;
use super::layout;
use larder_model::io_error::Context as _;
use larder_sys::Dir;
use larder_sys::lock::Lock;

/// A claim on a volume, held until dropped.
#[derive(Debug)]
pub struct Lease {
    _lock: Lock,
}

impl Lease {
    /// Prevents the deletion of the volume at `root`. Returns `None` if it is about to be deleted. Read
    /// permission is sufficient, because nothing is written.
    ///
    /// # Errors
    /// Those of open(2) and flock(2).
    pub fn shared(root: &Dir) -> Result<Option<Self>, Error> {
        let lock = Lock::try_shared(&larder(root)?, layout::USE).context("locking", ".larder/use")?;
        Ok(lock.map(|lock| Lease { _lock: lock }))
    }

    /// Acquires the right to delete the volume at `root`. Returns `None` while it is being read.
    ///
    /// # Errors
    /// Those of open(2) and flock(2).
    pub fn exclusive(root: &Dir) -> Result<Option<Self>, Error> {
        let lock = Lock::try_exclusive(&larder(root)?, layout::USE).context("locking", ".larder/use")?;
        Ok(lock.map(|lock| Lease { _lock: lock }))
    }
}

fn larder(root: &Dir) -> Result<Dir, Error> {
    Ok(root.open_dir(layout::LARDER).context("opening", ".larder")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_and_a_remover_is_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".larder")).unwrap();
        let root = Dir::open(dir.path()).unwrap();
        assert!(Lease::shared(&root).is_err(), "a reader does not create the file");
        drop(Lease::exclusive(&root).unwrap().unwrap());
        let first = Lease::shared(&root).unwrap().unwrap();
        let second = Lease::shared(&root).unwrap().unwrap();
        assert!(Lease::exclusive(&root).unwrap().is_none());
        drop((first, second));
        let remover = Lease::exclusive(&root).unwrap().unwrap();
        assert!(Lease::shared(&root).unwrap().is_none());
        drop(remover);
        assert!(Lease::shared(&root).unwrap().is_some());
    }
}
