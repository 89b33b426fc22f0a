//! What starts containers on a node.

use std::fmt;

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
