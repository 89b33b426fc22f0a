//! What the service manager is told (sd_notify(3)). Without `NOTIFY_SOCKET` nothing is, and nobody minds.

use std::time::Duration;

use sd_notify::NotifyState;

/// The service answers requests.
pub fn ready() {
    tell(&[NotifyState::Ready, NotifyState::Status("answering requests")]);
}

/// The configuration is being read again; [`ready`] ends it.
pub fn reloading() {
    let mut states = vec![NotifyState::Reloading];
    // systemd 253 and newer want the time with it (systemd.service(5), `notify-reload`).
    states.extend(NotifyState::monotonic_usec_now().ok());
    tell(&states);
}

/// The service is on its way out.
pub fn stopping() {
    tell(&[
        NotifyState::Stopping,
        NotifyState::Status("finishing what can be, leaving the rest to the next start"),
    ]);
}

/// The service is alive.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// How often [`alive`] is to be said: twice in the time after which the service manager takes the service for dead.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|within| within / 2).filter(|every| !every.is_zero())
}

/// Says [`alive`] for as long as threads turn, where somebody wants to hear it.
pub async fn stay_alive() {
    let Some(every) = watchdog() else { return };
    let mut interval = tokio::time::interval(every);
    loop {
        interval.tick().await;
        alive();
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
