//! What a node starts containers with, and how caches reach it.
//!
//! | module | what it is for |
//! |---|---|
//! | [`api`] | containerd's API, made of its published protos |
//! | [`limits`] | how long the mount point of an image store may be |
//! | [`podman`] | additional image stores in the configuration of podman, buildah and CRI-O |
//! | [`snapshotter`] | a snapshotter for containerd that knows the layers of attached volumes |
//! | [`view`] | a volume of EROFS images as an image store |

pub mod api;
pub mod limits;
pub mod podman;
pub mod snapshotter;
pub mod view;
