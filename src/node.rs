//! Container runtimes of a node, and how they use caches.
//!
//! | module | purpose |
//! |---|---|
//! | [`access`] | checks that the user of a cache can read its images |
//! | [`attach`] | mounts a volume and configures the runtimes for it |
//! | [`containerd`] | registers images in containerd without a registry, and configures it |
//! | [`content_cache`] | the directory from which containerd's own EROFS snapshotter takes layers |
//! | [`mod@file`] | files that Larder adds next to other programs' configuration |
//! | [`grpc`] | gRPC calls over a Unix socket |
//! | [`limits`] | the maximum length of an image store's mount point |
//! | [`matching`] | selects the best cache for a workload |
//! | [`podman`] | configures additional image stores for podman, buildah and CRI-O |
//! | [`snapshotter`] | a containerd snapshotter that serves the layers of attached volumes |
//! | [`snapshot_users`] | snapshots that depend on the layers of a volume, from the snapshotter |
//! | [`view`] | presents a volume as an image store, whatever the format of its layers |

pub mod access;
pub mod attach;
pub mod containerd;
pub mod content_cache;
pub mod file;
pub mod grpc;
pub mod limits;
pub mod matching;
pub mod podman;
pub mod snapshot_users;
pub mod snapshotter;
pub mod view;
