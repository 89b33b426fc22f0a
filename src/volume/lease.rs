//! Who uses a volume that he does not fill: flock(2) on `.larder/use`, which is there from the first opening on.
//!
//! Readers of a volume that may go (`build --share`) hold it shared; who removes a volume takes it exclusively first.

use super::error::{Context, Error};
use super::layout;
use larder_sys::Dir;
use larder_sys::lock::Lock;

/// A claim on a volume, held until dropped.
#[derive(Debug)]
pub struct Lease {
    _lock: Lock,
}

impl Lease {
    /// Keeps the volume at `root` from being removed; nothing where somebody is about to. Writes nothing, so that reading
    /// rights are enough.
    pub fn shared(root: &Dir) -> Result<Option<Self>, Error> {
        let lock = Lock::try_shared(&larder(root)?, layout::USE).context("locking", ".larder/use")?;
        Ok(lock.map(|lock| Lease { _lock: lock }))
    }

    /// The right to remove the volume at `root`; nothing while somebody reads it.
    pub fn exclusive(root: &Dir) -> Result<Option<Self>, Error> {
        let lock = Lock::try_exclusive(&larder(root)?, layout::USE).context("locking", ".larder/use")?;
        Ok(lock.map(|lock| Lease { _lock: lock }))
    }
}

fn larder(root: &Dir) -> Result<Dir, Error> {
    root.open_dir(layout::LARDER).context("opening", ".larder")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_and_a_remover_is_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".larder")).unwrap();
        let root = Dir::open(dir.path()).unwrap();
        assert!(Lease::shared(&root).is_err(), "a reader makes no file");
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
