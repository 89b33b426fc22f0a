//! The intervals and limits of builds in a cluster.

use crate::config::cluster::Cluster;
use std::time::Duration;

/// Intervals and timeouts of a runner.
#[derive(Clone, Debug)]
pub struct BuildTiming {
    /// Unit of the intervals at which a runner reads its objects.
    pub look: Duration,
    /// Maximum time until a builder starts.
    pub pending: Duration,
    /// Duration of a wait before its reason is reported, and the interval between later checks of the
    /// reason.
    pub report: Duration,
    /// Maximum time that the disk may stay attached to the node of a builder that has ended. After that the
    /// snapshot is taken anyway, because the builder has synced the disk.
    pub attached: Duration,
    /// Maximum time until a snapshot is ready.
    pub snapshot: Duration,
    /// Maximum delay between retries after the API server failed.
    pub outage: Duration,
}

impl BuildTiming {
    /// Returns the timing for a configuration.
    pub fn of(cluster: &Cluster) -> Self {
        let minutes = |minutes: u32| Duration::from_secs(u64::from(minutes) * 60);
        BuildTiming {
            look: Duration::from_secs(1),
            pending: minutes(cluster.pending_timeout_minutes),
            report: Duration::from_secs(30),
            attached: minutes(2),
            snapshot: minutes(cluster.snapshot_timeout_minutes),
            outage: Duration::from_secs(30),
        }
    }
}
