//! `[caches]`: how many image caches there may be, and what a builder may take of this host.

use serde::{Deserialize, Serialize};

use super::{Fault, within};
use larder_model::size::ByteSize;

/// What holds the caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holder {
    /// Disks where this host can make them, else directories.
    #[default]
    Auto,
    /// Directories; the cap is counted.
    Directory,
    /// Disks: an image file each, with an ext4 as large as the cache; the kernel holds the cap.
    Disk,
}

/// The section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Caches {
    /// What holds a new cache.
    pub volume_kind: Holder,
    /// Whether disks take space of the host as it is used, instead of reserving all of it first.
    pub sparse: bool,
    /// Whether a sealed disk is cut to the smallest size that holds its content.
    pub shrink: bool,
    /// Most image caches of one tenant; every record counts until it is gone.
    pub max_per_tenant: usize,
    /// Maximum GiB that the image caches of one tenant may reserve together; 0 is no limit but `capacity`.
    pub max_gib_per_tenant: u64,
    /// What all caches may occupy together; 0 is the size of the file system that holds the state directory.
    pub capacity: ByteSize,
    /// Builders at once. Where there are several tenants, one of them never has the last.
    pub max_concurrent_builds: usize,
    /// Most builds that wait for their turn, all tenants together.
    pub queue_length: usize,
    /// Hours for which the record of a failed cache stays.
    pub failed_retention_hours: u32,
    /// Minutes between expiry, when a cache becomes Unavailable, and its deletion.
    pub expired_grace_minutes: u32,
    /// Minutes until a builder is given up.
    pub build_timeout_minutes: u32,
    /// Bytes per minute that a registry must send of each layer. A build that gets less fails for now and is tried again
    /// after those that wait. 0 is no minimum.
    pub min_layer_rate: ByteSize,
    /// How often a builder is started again after a failure that a later try may heal.
    pub build_retries: u32,
    /// Seconds before it is started again; they double with each try, up to five minutes.
    pub build_retry_pause_seconds: u64,
    /// Most memory of one builder, where the daemon may make control groups; 0 is no limit.
    pub build_memory: ByteSize,
    /// Share of the processor of one builder (cgroup v2 `cpu.weight`, 1 to 10000), where the daemon may make control groups.
    pub build_cpu_weight: u32,
    /// How far builders stand back for other processes (nice(2), 0 to 19).
    pub build_nice: u8,
}

impl Default for Caches {
    fn default() -> Self {
        Caches {
            volume_kind: Holder::Auto,
            sparse: false,
            shrink: false,
            max_per_tenant: 50,
            max_gib_per_tenant: 0,
            capacity: ByteSize(0),
            max_concurrent_builds: 4,
            queue_length: 1000,
            failed_retention_hours: 24,
            expired_grace_minutes: 60,
            build_timeout_minutes: 120,
            min_layer_rate: ByteSize(256 << 10),
            build_retries: 5,
            build_retry_pause_seconds: 5,
            build_memory: ByteSize(1 << 30),
            build_cpu_weight: 100,
            build_nice: 5,
        }
    }
}

impl Caches {
    pub(super) fn check(&self, faults: &mut Vec<Fault>) {
        within(faults, "caches.max_per_tenant", self.max_per_tenant, 1..=100_000);
        within(faults, "caches.max_concurrent_builds", self.max_concurrent_builds, 1..=256);
        within(faults, "caches.queue_length", self.queue_length, 1..=100_000);
        within(faults, "caches.failed_retention_hours", self.failed_retention_hours, 0..=8760);
        within(faults, "caches.expired_grace_minutes", self.expired_grace_minutes, 0..=525_600);
        within(faults, "caches.build_timeout_minutes", self.build_timeout_minutes, 1..=10_080);
        within(faults, "caches.build_retries", self.build_retries, 0..=100);
        within(faults, "caches.build_retry_pause_seconds", self.build_retry_pause_seconds, 0..=3600);
        within(faults, "caches.build_cpu_weight", self.build_cpu_weight, 1..=10_000);
        within(faults, "caches.build_nice", self.build_nice, 0..=19);
        if self.build_memory.0 > 0 {
            let smallest = ByteSize(64 << 20);
            within(faults, "caches.build_memory", self.build_memory, smallest..=ByteSize(u64::MAX));
        }
    }
}
