//! One daemon leads: it builds, expires and sweeps. The others answer requests and wait for their turn.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::lease::{Lease, Tried};
use crate::caches::service::{Service, StartError};
use larder_model::class::Class;

/// How long the lease is valid. As in client-go (tools/leaderelection: 15, 10 and 2 s), the leader renews it after two fifteenths of
/// that, and gives up when two thirds have passed without a renewal: before any other daemon can take it.
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
    let every = lease.duration() * 2 / 15;
    loop {
        match lease.try_take().await {
            Ok(Tried::Taken) => break,
            Ok(_) => {}
            Err(fault) => tracing::warn!("who leads is not known: {fault}"),
        }
        tokio::select! {
            () = tokio::time::sleep(every) => {}
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
    let limit = lease.duration() * 2 / 3;
    let mut renewed = Instant::now();
    loop {
        tokio::time::sleep(every).await;
        let asked = Instant::now();
        let left = limit.saturating_sub(renewed.elapsed());
        match tokio::time::timeout(left, lease.try_take()).await {
            Ok(Ok(Tried::Taken)) => renewed = asked,
            Ok(Ok(Tried::Raced)) => {}
            Ok(Ok(Tried::Held)) | Err(_) => return Ended::Lost,
            Ok(Err(fault)) => tracing::warn!("renewing: {fault}"),
        }
        if renewed.elapsed() >= limit {
            return Ended::Lost;
        }
    }
}
