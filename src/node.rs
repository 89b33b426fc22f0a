//! What a node starts containers with, and how caches reach it.
//!
//! | module | what it is for |
//! |---|---|
//! | [`api`] | containerd's API, made of its published protos |
//! | [`containerd`] | images of caches in containerd without a registry, and its configuration |
//! | [`grpc`] | how its sockets are spoken to |
//! | [`snapshotter`] | a snapshotter for containerd that knows the layers of attached volumes |

pub mod api;
pub mod containerd;
pub mod grpc;
pub mod snapshotter;
