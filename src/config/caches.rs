//! `[caches]`: the limits of image caches and of the builders of this host.

use serde::{Deserialize, Serialize};

use super::{Fault, check_range};
use larder_model::size::ByteSize;

/// The kind of volume for a new image cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheVolumeKind {
    /// Disks if this host supports them, otherwise directories.
    #[default]
    Auto,
    /// Directories; Larder counts bytes to enforce the size limit.
    Directory,
    /// Disks: one image file each, with an ext4 of the size of the cache; the kernel enforces the size limit.
    Disk,
}

/// The `[caches]` section of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Caches {
    /// Kind of volume for a new cache.
    pub volume_kind: CacheVolumeKind,
    /// `true` if disks allocate space of the host on demand instead of reserving all of it first.
    pub sparse: bool,
    /// `true` if a sealed disk is shrunk to the minimum size of its content.
    pub shrink: bool,
    /// Maximum number of image caches of one tenant; a cache counts until its record is deleted.
    pub max_per_tenant: usize,
    /// Maximum total size that the image caches of one tenant can reserve, GiB; 0 means that only `capacity`
    /// limits it.
    pub max_gib_per_tenant: u64,
    /// Maximum total size of all caches, bytes; 0 means the size of the file system of the state directory.
    pub capacity: ByteSize,
    /// Maximum number of concurrent builders. With several tenants, no single tenant can use all of them.
    pub max_concurrent_builds: usize,
    /// Maximum number of queued builds, over all tenants.
    pub queue_length: usize,
    /// Hours for which the record of a failed cache is kept.
    pub failed_retention_hours: u32,
    /// Minutes between expiry, when a cache becomes Unavailable, and its deletion.
    pub expired_grace_minutes: u32,
    /// Maximum duration of a build, minutes.
    pub build_timeout_minutes: u32,
    /// Minimum bytes per minute that a registry must send of each layer. A slower build fails temporarily,
    /// and is retried after the builds in the queue. 0 disables the limit.
    pub min_layer_rate: ByteSize,
    /// Maximum number of retries of a build after a transient failure.
    pub build_retries: u32,
    /// Wait before the first retry, seconds; doubles with each retry, up to five minutes.
    pub build_retry_pause_seconds: u64,
    /// Memory limit of one builder, bytes, if the daemon can create control groups; 0 disables the limit.
    pub build_memory: ByteSize,
    /// CPU weight of one builder (cgroup v2 `cpu.weight`, 1 to 10000), if the daemon can create control
    /// groups.
    pub build_cpu_weight: u32,
    /// Niceness of builder processes (nice(2), 0 to 19).
    pub build_nice: u8,
}

impl Default for Caches {
    fn default() -> Self {
        Caches {
            volume_kind: CacheVolumeKind::Auto,
            sparse: true,
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
        check_range(faults, "caches.max_per_tenant", self.max_per_tenant, 1..=100_000);
        check_range(faults, "caches.max_concurrent_builds", self.max_concurrent_builds, 1..=256);
        check_range(faults, "caches.queue_length", self.queue_length, 1..=100_000);
        check_range(faults, "caches.failed_retention_hours", self.failed_retention_hours, 0..=8760);
        check_range(faults, "caches.expired_grace_minutes", self.expired_grace_minutes, 0..=525_600);
        check_range(faults, "caches.build_timeout_minutes", self.build_timeout_minutes, 1..=10_080);
        check_range(faults, "caches.build_retries", self.build_retries, 0..=100);
        check_range(faults, "caches.build_retry_pause_seconds", self.build_retry_pause_seconds, 0..=3600);
        check_range(faults, "caches.build_cpu_weight", self.build_cpu_weight, 1..=10_000);
        check_range(faults, "caches.build_nice", self.build_nice, 0..=19);
        if self.build_memory.0 > 0 {
            let min = ByteSize(64 << 20);
            check_range(faults, "caches.build_memory", self.build_memory, min..=ByteSize(u64::MAX));
        }
    }
}
