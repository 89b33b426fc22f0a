//! Work that blocks a thread, and the runtimes whose pools of threads it uses.
//!
//! `clippy.toml` and `tests/architecture.rs` refuse both elsewhere, so every pool has a cap.

use std::io;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// Maximum number of threads of the runtime of a build or a client that run blocking work.
///
/// Work that waits for other work must never wait for a thread. A layer has at most three threads at a time:
/// one reads, one decodes and extracts, and one commits. A build has at most 256 layers in progress
/// (`build.concurrency`), and the rest is short work. Threads are started on demand.
pub const MAX_THREADS: usize = 3 * 256 + 64;

/// Runs `work` on a thread that can block. The work is not cancelled when the handle is dropped.
#[expect(clippy::disallowed_methods, reason = "the one place that starts blocking work")]
pub fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    tokio::task::spawn_blocking(work)
}

/// Creates a runtime with one worker for each core, or with `workers` workers, and at most `max_threads`
/// threads for blocking work.
///
/// # Errors
/// The threads cannot be started.
pub fn multi_thread(workers: Option<usize>, max_threads: usize) -> io::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    if let Some(workers) = workers {
        builder.worker_threads(workers);
    }
    builder.enable_all().max_blocking_threads(max_threads).build()
}

/// Creates a runtime that uses the current thread.
///
/// # Errors
/// The system refuses a descriptor that the runtime needs.
pub fn current_thread() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().max_blocking_threads(MAX_THREADS).build()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;

    /// Layers wait for each other, as many as a build can have at a time.
    #[test]
    fn work_that_waits_for_other_work_gets_threads() {
        let runtime = current_thread().unwrap();
        let (sender, receiver) = mpsc::channel::<()>();
        let receiver = Arc::new(std::sync::Mutex::new(receiver));
        runtime.block_on(async {
            let waiting: Vec<_> = (0..3 * 256)
                .map(|_| {
                    let receiver = Arc::clone(&receiver);
                    spawn(move || receiver.lock().unwrap().recv().unwrap())
                })
                .collect();
            spawn(move || (0..3 * 256).for_each(|_| sender.send(()).unwrap())).await.unwrap();
            for work in waiting {
                work.await.unwrap();
            }
        });
    }
}
