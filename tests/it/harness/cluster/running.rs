//! A daemon in this process.

use super::*;

/// A daemon in this process, on its own threads.
pub(crate) struct Running {
    pub(super) runtime: Option<Runtime>,
    pub(crate) service: Service,
    pub(super) stop: CancellationToken,
    pub(super) running: Option<tokio::task::JoinHandle<Result<(), String>>>,
}

impl Running {
    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.as_ref().unwrap().block_on(future)
    }

    /// Simulates a kill of the process: all work stops where it is.
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Requests a stop and returns the result of the daemon.
    pub(crate) fn stop(mut self) -> Result<(), String> {
        self.stop.cancel();
        let running = self.running.take().unwrap();
        self.wait(async { tokio::time::timeout(TIMEOUT, running).await.unwrap().unwrap() })
    }

    /// Reports whether it has ended by itself.
    pub(crate) fn has_ended(&self) -> bool {
        self.running.as_ref().is_none_or(tokio::task::JoinHandle::is_finished)
    }

    /// Waits until it ends by itself, and returns the result.
    pub(crate) fn ends(mut self) -> Result<(), String> {
        let running = self.running.take().unwrap();
        self.wait(async { tokio::time::timeout(TIMEOUT, running).await.unwrap().unwrap() })
    }

    pub(crate) fn create(&self, world: &World, name: &str) -> Record {
        self.wait(self.service.create(&world.tenant(), world.spec(name), None)).unwrap()
    }

    pub(crate) fn record(&self, world: &World, record: &Record) -> Record {
        self.wait(self.service.get(&world.tenant(), record.id)).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Kills a daemon. Also removes its leases, so that the next daemon need not wait until they expire; other
/// tests cover that expiry. If other daemons run (`alone` is false), it removes only the leases that
/// certainly belong to this one.
pub(crate) fn kill_daemon(world: &World, daemon: &mut Running, alone: bool) {
    let led = daemon.service.leads() && !daemon.has_ended();
    daemon.kill();
    let leases = world.api::<Lease>(world.own());
    for (name, its) in [("larder", alone || led), ("larder-admission", alone)] {
        if its && world.wait(leases.get_opt(name)).unwrap().is_some() {
            world.wait(leases.delete(name, &DeleteParams::default())).unwrap();
        }
    }
}
