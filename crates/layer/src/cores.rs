//! How many processors are busy with layers, so that one layer alone takes more than one of them and many layers one each.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;

/// The processors of this process, and the layers that are in hand.
#[derive(Debug)]
pub struct Cores {
    all: usize,
    layers: AtomicUsize,
}

impl Cores {
    /// So many processors, and no layer.
    pub fn new(all: usize) -> Arc<Self> {
        Arc::new(Cores { all, layers: AtomicUsize::new(0) })
    }

    /// Those that the kernel lets this process have (affinity, and the quota of its cgroup, when first asked).
    pub fn of_process() -> Arc<Self> {
        static CORES: LazyLock<Arc<Cores>> =
            LazyLock::new(|| Cores::new(thread::available_parallelism().map_or(1, NonZero::get)));
        Arc::clone(&CORES)
    }

    /// Takes a layer in hand.
    pub fn occupy(self: &Arc<Self>) -> Busy {
        self.layers.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    /// Whether a layer could ever have more than one.
    pub fn are_many(&self) -> bool {
        self.all > 1
    }

    /// Whether layers, at one each, leave any idle.
    pub fn outnumber_layers(&self) -> bool {
        self.layers.load(Ordering::Relaxed) < self.all
    }
}

/// One layer in hand, until dropped.
#[derive(Debug)]
pub struct Busy(Arc<Cores>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.layers.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_leave_what_they_do_not_occupy() {
        let cores = Cores::new(2);
        let first = cores.occupy();
        assert!(cores.outnumber_layers());
        let second = cores.occupy();
        assert!(!cores.outnumber_layers());
        drop((first, second));
        assert!(cores.outnumber_layers() && cores.are_many() && !Cores::new(1).are_many());
    }
}
