//! How many processors are busy with layers, so that one layer alone takes more than one of them and many layers one each.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;

/// The processors of this process, and what layers do with them.
#[derive(Debug)]
pub struct Cores {
    all: usize,
    layers: AtomicUsize,
    /// Those of layers, and others that work for them.
    busy: AtomicUsize,
}

impl Cores {
    /// So many processors, all idle.
    pub fn new(all: usize) -> Arc<Self> {
        Arc::new(Cores { all, layers: AtomicUsize::new(0), busy: AtomicUsize::new(0) })
    }

    /// Those that the kernel lets this process have (affinity, and the quota of its cgroup, when first asked).
    pub fn of_process() -> Arc<Self> {
        static CORES: LazyLock<Arc<Cores>> =
            LazyLock::new(|| Cores::new(thread::available_parallelism().map_or(1, NonZero::get)));
        Arc::clone(&CORES)
    }

    /// Keeps one busy with a layer, idle or not.
    pub fn occupy(self: &Arc<Self>) -> Busy {
        self.layers.fetch_add(1, Ordering::Relaxed);
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy { cores: Arc::clone(self), is_layer: true }
    }

    /// Keeps one busy that is idle, if there is one.
    pub fn spare(self: &Arc<Self>) -> Option<Busy> {
        let one_more = |busy| (busy < self.all).then_some(busy + 1);
        self.busy.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Busy { cores: Arc::clone(self), is_layer: false })
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

/// One busy processor, until dropped.
#[derive(Debug)]
pub struct Busy {
    cores: Arc<Cores>,
    is_layer: bool,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.cores.busy.fetch_sub(1, Ordering::Relaxed);
        if self.is_layer {
            self.cores.layers.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_leave_what_they_do_not_occupy() {
        let cores = Cores::new(2);
        let first = cores.occupy();
        let spare = cores.spare().unwrap();
        assert!(cores.outnumber_layers());
        let second = cores.occupy();
        assert!(!cores.outnumber_layers());
        drop((first, second, spare));
        assert!(cores.outnumber_layers() && cores.are_many() && !Cores::new(1).are_many());
    }

    #[test]
    fn spare_ones_are_those_that_nobody_keeps_busy() {
        let cores = Cores::new(2);
        let first = cores.occupy();
        let second = cores.spare().unwrap();
        assert!(cores.spare().is_none());
        let third = cores.occupy();
        drop(second);
        assert!(cores.spare().is_none());
        drop((first, third));
        assert!(cores.spare().is_some());
    }
}
