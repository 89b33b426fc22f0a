//! What starts containers on a node.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A container runtime, or a family that is told of images in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// podman and buildah: an additional image store of containers/storage.
    Podman,
    /// CRI-O: the same, by a configuration of its own.
    Crio,
    /// containerd: a snapshotter (`larder snapshotter`).
    Containerd,
}

impl Runtime {
    /// All of them.
    pub const ALL: [Runtime; 3] = [Runtime::Podman, Runtime::Crio, Runtime::Containerd];

    /// The name in flags and records.
    pub fn name(self) -> &'static str {
        match self {
            Runtime::Podman => "podman",
            Runtime::Crio => "crio",
            Runtime::Containerd => "containerd",
        }
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A containerd, and what of it is meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Containerd {
    /// Its socket.
    pub address: PathBuf,
    /// The namespace in which images are to be known.
    pub namespace: String,
    /// The name of the snapshotter in its configuration.
    pub snapshotter: String,
}

impl Containerd {
    /// Where containerd answers, unless it was configured otherwise.
    pub const ADDRESS: &str = "/run/containerd/containerd.sock";
    /// The namespace of Kubernetes, and of everything that comes by CRI.
    pub const NAMESPACE: &str = "k8s.io";
    /// The name that our snapshotter has in containerd's configuration.
    pub const SNAPSHOTTER: &str = "larder";
    /// The name of containerd's own snapshotter for EROFS images.
    pub const EROFS: &str = "erofs";
}

impl Default for Containerd {
    fn default() -> Self {
        Containerd {
            address: Self::ADDRESS.into(),
            namespace: Self::NAMESPACE.to_owned(),
            snapshotter: Self::SNAPSHOTTER.to_owned(),
        }
    }
}
