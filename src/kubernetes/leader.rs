//! Leader election. The leader builds, expires and sweeps; the other daemons answer requests and wait for the
//! lease.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::lease::{Lease, LeaseAttempt};
use crate::caches::service::{Service, StartError};
use larder_model::class::Class;

/// Duration of the lease. As in client-go (tools/leaderelection: 15, 10 and 2 s), the leader renews the lease
/// after two fifteenths of this time. It stops leading when two thirds have passed without a renewal, which
/// is before another daemon can acquire the lease.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
/// Name of the Lease object.
pub const NAME: &str = "larder";

/// The reason why a daemon stopped leading.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// The daemon was requested to stop.
    #[error("requested to stop")]
    Stopped,
    /// The lease could not be renewed in time, or another daemon holds it. This daemon must not write any
    /// more.
    #[error("the lease {NAME} is lost: another daemon may lead by now")]
    Lost,
    /// The service could not start to lead.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Waits for the lease, lets the service lead, and renews the lease. After it returns, the caller must stop
/// the service first and then release the lease.
pub async fn lead(lease: &Lease, service: &Service, stop: &CancellationToken) -> Ended {
    let every = lease.duration() * 2 / 15;
    loop {
        match lease.try_acquire().await {
            Ok(LeaseAttempt::Acquired) => break,
            Ok(_) => {}
            Err(fault) => tracing::warn!("cannot read the leader lease: {fault}"),
        }
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = stop.cancelled() => return Ended::Stopped,
        }
    }
    tracing::info!("this daemon is now the leader");
    let renewing = renew(lease, every);
    let leading = async {
        loop {
            match service.lead().await {
                Ok(()) => break std::future::pending().await,
                Err(StartError::Store(error)) if error.class() == Class::Transient => {
                    tracing::warn!("cannot start to lead, retrying: {error}");
                    tokio::time::sleep(every).await;
                }
                Err(error) => break Ended::Start(error),
            }
        }
    };
    tokio::select! {
        ended = renewing => ended,
        ended = leading => ended,
        () = stop.cancelled() => Ended::Stopped,
    }
}

/// Renews the lease until renewals have failed for too long.
async fn renew(lease: &Lease, every: Duration) -> Ended {
    let limit = lease.duration() * 2 / 3;
    let mut renewed = Instant::now();
    loop {
        tokio::time::sleep(every).await;
        let started = Instant::now();
        let left = limit.saturating_sub(renewed.elapsed());
        match tokio::time::timeout(left, lease.try_acquire()).await {
            Ok(Ok(LeaseAttempt::Acquired)) => renewed = started,
            Ok(Ok(LeaseAttempt::Raced)) => {}
            Ok(Ok(LeaseAttempt::Held)) | Err(_) => return Ended::Lost,
            Ok(Err(fault)) => tracing::warn!("renewing the leader lease: {fault}"),
        }
        if renewed.elapsed() >= limit {
            return Ended::Lost;
        }
    }
}
