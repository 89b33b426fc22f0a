//! containerd's API, made of its published protos by `scripts/containerd-api.sh`.

#![allow(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    clippy::all,
    clippy::large_futures,
    clippy::unwrap_used,
    reason = "written by a generator"
)]

/// Services.
pub mod services {
    /// Snapshots.
    pub mod snapshots {
        /// Version 1.
        pub mod v1 {
            include!("api/containerd.services.snapshots.v1.rs");
        }
    }
}

/// What several services have in common.
pub mod types {
    include!("api/containerd.types.rs");
}
