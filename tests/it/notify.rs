//! Messages to the service manager (sd_notify(3)), received on a socket of the test.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};

use crate::harness::daemon::{ROOMY, Tenant, configure, serve};
use crate::harness::http::send;
use crate::harness::isolated;
use crate::harness::served::Running;

const LIMIT: Duration = Duration::from_secs(30);
/// `WatchdogSec=` of this service manager.
const WATCHDOG: Duration = Duration::from_secs(1);

/// The service manager's end of the socket.
struct Manager(UnixDatagram);

impl Manager {
    /// Waits for the next message with a line that begins with `wanted`.
    fn wait_for(&self, wanted: &str) -> Vec<String> {
        let deadline = Instant::now() + LIMIT;
        let mut buffer = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no message {wanted} within {LIMIT:?}");
            self.0.set_read_timeout(Some(left)).unwrap();
            let Ok(len) = self.0.recv(&mut buffer) else { continue };
            let message = std::str::from_utf8(&buffer[..len]).unwrap();
            let lines: Vec<String> = message.lines().map(str::to_owned).collect();
            if lines.iter().any(|line| line.starts_with(wanted)) {
                return lines;
            }
        }
    }
}

fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap().into()
}

#[case]
fn the_service_manager_is_notified_from_start_to_stop() {
    isolated(&[], || {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = Manager(UnixDatagram::bind(&path).unwrap());
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        configure(
            dir.path(),
            Some(SocketAddr::from((Ipv4Addr::LOCALHOST, free.port()))),
            &[Tenant("a")],
            ROOMY,
        );
        let mut command = serve(dir.path());
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
        command.env_remove("WATCHDOG_PID").stdin(Stdio::null());
        let mut daemon = Running::start(&mut command);

        let ready = manager.wait_for("READY=1");
        assert!(ready.iter().any(|line| line.starts_with("STATUS=")), "{ready:?}");
        // The message is sent when the daemon is ready, not before.
        assert_eq!(send(free, "GET", "/readyz", &[], &[]).unwrap().status, 200);

        // More than one message within the watchdog timeout.
        manager.wait_for("WATCHDOG=1");
        let first = Instant::now();
        manager.wait_for("WATCHDOG=1");
        assert!(first.elapsed() < WATCHDOG, "{:?}", first.elapsed());

        let before = monotonic();
        daemon.signal(Signal::SIGHUP);
        let reloading = manager.wait_for("RELOADING=1");
        let at = reloading.iter().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap();
        let at = Duration::from_micros(at.parse().unwrap());
        // The time has a resolution of one microsecond.
        assert!(at + Duration::from_micros(1) > before && at <= monotonic(), "{at:?}");
        manager.wait_for("READY=1");

        daemon.signal(Signal::SIGTERM);
        manager.wait_for("STOPPING=1");
        assert_eq!(daemon.code_within(LIMIT), Some(0));
    });
}
