//! Counts the layers in progress, so that a single layer can use several cores, and many layers use one core
//! each.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;

/// The cores available to this process, and the number of layers in progress.
#[derive(Debug)]
pub struct Cores {
    all: usize,
    layers: AtomicUsize,
}

impl Cores {
    /// Creates a counter for `all` cores with no layer in progress.
    pub fn new(all: usize) -> Arc<Self> {
        Arc::new(Cores { all, layers: AtomicUsize::new(0) })
    }

    /// Returns the cores that the kernel grants this process (affinity and cgroup quota, read at the first
    /// call).
    pub fn of_process() -> Arc<Self> {
        static CORES: LazyLock<Arc<Cores>> =
            LazyLock::new(|| Cores::new(thread::available_parallelism().map_or(1, NonZero::get)));
        Arc::clone(&CORES)
    }

    /// Registers a layer as in progress until the returned guard is dropped.
    pub fn occupy(self: &Arc<Self>) -> LayerGuard {
        self.layers.fetch_add(1, Ordering::Relaxed);
        LayerGuard(Arc::clone(self))
    }

    /// Reports whether there is more than one core.
    pub fn is_multicore(&self) -> bool {
        self.all > 1
    }

    /// Reports whether there are more cores than layers in progress.
    pub fn has_idle(&self) -> bool {
        self.layers.load(Ordering::Relaxed) < self.all
    }
}

/// A guard for one layer in progress.
#[derive(Debug)]
pub struct LayerGuard(Arc<Cores>);

impl Drop for LayerGuard {
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
        assert!(cores.has_idle());
        let second = cores.occupy();
        assert!(!cores.has_idle());
        drop((first, second));
        assert!(cores.has_idle() && cores.is_multicore() && !Cores::new(1).is_multicore());
    }
}
