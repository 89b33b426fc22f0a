//! Container runtimes of a node.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A container runtime, or a family of runtimes that finds images in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// podman and buildah, which use an additional image store of containers/storage.
    Podman,
    /// CRI-O, which uses the same store with its own configuration.
    Crio,
    /// containerd, which uses a snapshotter (`larder snapshotter`).
    Containerd,
}

impl Runtime {
    /// All supported container runtimes.
    pub const ALL: [Runtime; 3] = [Runtime::Podman, Runtime::Crio, Runtime::Containerd];

    /// Returns the name in flags and records.
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

/// A containerd instance, with the namespace and snapshotter to use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Containerd {
    /// Path of containerd's socket.
    pub address: PathBuf,
    /// The namespace to which images are added.
    pub namespace: String,
    /// The name of the snapshotter in containerd's configuration.
    pub snapshotter: String,
}

impl Containerd {
    /// Default path of containerd's socket.
    pub const ADDRESS: &str = "/run/containerd/containerd.sock";
    /// The namespace of Kubernetes, and of all other CRI clients.
    pub const NAMESPACE: &str = "k8s.io";
    /// The name of Larder's snapshotter in containerd's configuration.
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
