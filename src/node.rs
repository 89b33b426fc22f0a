//! What a node starts containers with, and how caches reach it.
//!
//! | module | what it is for |
//! |---|---|
//! | [`access`] | whether who attaches a cache may read its images |
//! | [`api`] | containerd's API, made of its published protos |
//! | [`attach`] | a volume mounted, and runtimes told of it |
//! | [`containerd`] | images in containerd without a registry, and its configuration |
//! | [`file`] | files of ours beside the configuration of others |
//! | [`grpc`] | calls over a Unix socket |
//! | [`matching`] | which cache serves a workload best |
//! | [`snapshotter`] | a snapshotter for containerd that knows the layers of attached volumes |

pub mod access;
pub mod api;
pub mod attach;
pub mod containerd;
pub mod file;
pub mod grpc;
pub mod matching;
pub mod snapshotter;
