//! One daemon leads: it builds, expires and sweeps. The others answer requests and wait for their turn.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::lease::{Lease, Tried};
use crate::caches::service::{Service, StartError};
use crate::model::class::Class;

/// For how long the lease is good. It is renewed three times as often, and given up when two thirds of it have passed
/// without: before anybody else may take it.
pub const GOOD_FOR: Duration = Duration::from_secs(15);
/// Name of the lease.
pub const NAME: &str = "larder";

/// Why somebody leads no more.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// It was asked to stop.
    #[error("asked to stop")]
    Stopped,
    /// The lease could not be renewed in time, or somebody else has it. This daemon must not write any more.
    #[error("the lease {NAME} is lost: another larder may lead by now")]
    Lost,
    /// The work could not be taken up.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Waits for the lease, lets the service lead, and holds on. Returns when that has come to an end; the service must then be
/// stopped, and the lease released after that.
pub async fn lead(lease: &Lease, service: &Service, stop: &CancellationToken) -> Ended {
    let every = lease.duration() / 3;
    loop {
        match lease.try_take().await {
            Ok(Tried::Taken) => break,
            Ok(_) => {}
            Err(fault) => tracing::warn!("who leads is not known: {fault}"),
        }
        tokio::select! {
            () = tokio::time::sleep(every / 2) => {}
            () = stop.cancelled() => return Ended::Stopped,
        }
    }
    tracing::info!("this larder leads");
    let holding = hold(lease, every);
    let leading = async {
        loop {
            match service.lead().await {
                Ok(()) => break std::future::pending().await,
                Err(StartError::Store(error)) if error.class() == Class::Transient => {
                    tracing::warn!("leading begins later: {error}");
                    tokio::time::sleep(every).await;
                }
                Err(error) => break Ended::Start(error),
            }
        }
    };
    tokio::select! {
        ended = holding => ended,
        ended = leading => ended,
        () = stop.cancelled() => Ended::Stopped,
    }
}

/// Renews the lease until that fails for too long.
async fn hold(lease: &Lease, every: Duration) -> Ended {
    let mut renewed = Instant::now();
    let mut pause = every;
    loop {
        tokio::time::sleep(pause).await;
        let asked = Instant::now();
        let left = (every * 2).saturating_sub(renewed.elapsed());
        pause = every / 4;
        match tokio::time::timeout(left, lease.try_take()).await {
            Ok(Ok(Tried::Taken)) => (renewed, pause) = (asked, every),
            Ok(Ok(Tried::Raced)) => {}
            Ok(Ok(Tried::Held)) | Err(_) => return Ended::Lost,
            Ok(Err(fault)) => tracing::warn!("renewing: {fault}"),
        }
        if renewed.elapsed() >= every * 2 {
            return Ended::Lost;
        }
    }
}
