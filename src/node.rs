//! What a node starts containers with, and how caches reach it.
//!
//! | module | what it is for |
//! |---|---|
//! | [`api`] | containerd's API, made of its published protos |
//! | [`attach`] | a volume mounted, and runtimes told of it |
//! | [`snapshotter`] | a snapshotter for containerd that knows the layers of attached volumes |

pub mod api;
pub mod attach;
pub mod snapshotter;
