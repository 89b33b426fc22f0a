//! containerd's API, made of its published protos by `scripts/containerd-api.sh`.

#![forbid(unsafe_code)]
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
    /// Containers: what is known of them, running or not.
    pub mod containers {
        /// Version 1.
        pub mod v1 {
            include!("api/containerd.services.containers.v1.rs");
        }
    }

    /// Content: blobs by digest.
    pub mod content {
        /// Version 1.
        pub mod v1 {
            include!("api/containerd.services.content.v1.rs");
        }
    }

    /// Images: names of blobs.
    pub mod images {
        /// Version 1.
        pub mod v1 {
            include!("api/containerd.services.images.v1.rs");
        }
    }

    /// Leases: what garbage collection leaves alone for a while.
    pub mod leases {
        /// Version 1.
        pub mod v1 {
            include!("api/containerd.services.leases.v1.rs");
        }
    }

    /// Namespaces.
    pub mod namespaces {
        /// Version 1.
        pub mod v1 {
            include!("api/containerd.services.namespaces.v1.rs");
        }
    }

    /// Snapshots.
    pub mod snapshots {
        /// Version 1.
        pub mod v1 {
            include!("api/containerd.services.snapshots.v1.rs");
        }
    }

    /// The version of containerd.
    pub mod version {
        /// Version 1.
        pub mod v1 {
            include!("api/containerd.services.version.v1.rs");
        }
    }
}

/// Types that several services use.
pub mod types {
    include!("api/containerd.types.rs");
}
