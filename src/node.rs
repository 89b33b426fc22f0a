//! What a node starts containers with, and how caches reach it.
//!
//! | module | what it is for |
//! |---|---|

//! | [`access`] | whether who attaches a cache may read its images |

//! | [`attach`] | a volume mounted, and runtimes told of it |
//! | [`containerd`] | images in containerd without a registry, and its configuration |
//! | [`content_cache`] | the directory from which containerd's own EROFS snapshotter takes layers |
//! | [`mod@file`] | files of ours beside the configuration of others |
//! | [`grpc`] | calls over a Unix socket |
//! | [`limits`] | how long the mount point of an image store may be |
//! | [`matching`] | which cache serves a workload best |
//! | [`podman`] | additional image stores in the configuration of podman, buildah and CRI-O |
//! | [`snapshotter`] | a snapshotter for containerd that knows the layers of attached volumes |
//! | [`standing`] | what stands on the layers of a volume, asked of the snapshotter |
//! | [`view`] | a volume as an image store, whichever form its layers have |

pub mod access;
pub mod attach;
pub mod containerd;
pub mod content_cache;
pub mod file;
pub mod grpc;
pub mod limits;
pub mod matching;
pub mod podman;
pub mod snapshotter;
pub mod standing;
pub mod view;
