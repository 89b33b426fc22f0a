//! Notifications to the service manager (sd_notify(3)). Without `NOTIFY_SOCKET`, these functions do nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// Reports that the service is ready for requests.
pub fn ready() {
    send(&[NotifyState::Ready, NotifyState::Status("answering requests")]);
}

/// Reports that the configuration is being reloaded, until [`ready`] is called.
pub fn reloading() {
    let mut states = vec![NotifyState::Reloading];
    // systemd 253 and newer require the time (systemd.service(5), `notify-reload`).
    states.extend(NotifyState::monotonic_usec_now().ok());
    send(&states);
}

/// Reports that the service is shutting down.
pub fn stopping() {
    send(&[NotifyState::Stopping, NotifyState::Status("shutting down")]);
}

/// Sends a keep-alive to the watchdog.
pub fn alive() {
    send(&[NotifyState::Watchdog]);
}

/// Returns the interval for calls of [`alive`]: half of the watchdog timeout. `None` if the watchdog is
/// disabled.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|timeout| timeout / 2).filter(|interval| !interval.is_zero())
}

/// Calls [`alive`] regularly if the watchdog is enabled, so that it detects a blocked runtime.
pub async fn stay_alive() {
    let Some(period) = watchdog() else { return };
    let mut interval = tokio::time::interval(period);
    loop {
        interval.tick().await;
        alive();
    }
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}
