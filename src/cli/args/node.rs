//! Commands of the nodes that use caches.

use std::path::PathBuf;

use clap::Args;

use crate::node::containerd;

pub(super) const SNAPSHOTTER_EXAMPLES: &str = "\
containerd finds it by its configuration (1.6: version = 2):
  [proxy_plugins.larder]
    type = \"snapshot\"
    address = \"/run/larder-snapshotter/snapshotter.sock\"
  [plugins.\"io.containerd.grpc.v1.cri\".containerd]     # containerd 2: [plugins.\"io.containerd.cri.v1.images\"]
    snapshotter = \"larder\"";

#[derive(Debug, Args)]
pub(in crate::cli) struct SnapshotterArgs {
    /// Socket for containerd: root's alone
    #[arg(long, value_name = "PATH", default_value = "/run/larder-snapshotter/snapshotter.sock")]
    pub(in crate::cli) socket: PathBuf,
    /// Directory for what containerd unpacks and writes, on a file system that overlayfs takes upper directories from
    /// [default: snapshotter in state.dir]
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) root: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct PreloadArgs {
    /// The volume: where it is mounted
    #[arg(value_name = "VOLUME")]
    pub(in crate::cli) volume: PathBuf,
    /// Socket of containerd
    #[arg(long, value_name = "PATH", default_value = containerd::ADDRESS)]
    pub(in crate::cli) address: PathBuf,
    /// Namespace of containerd in which the images are to be known
    #[arg(long, value_name = "NAME", default_value = containerd::NAMESPACE)]
    pub(in crate::cli) namespace: String,
    /// Name that `larder snapshotter` has in containerd's configuration
    #[arg(long, value_name = "NAME", default_value = containerd::SNAPSHOTTER)]
    pub(in crate::cli) snapshotter: String,
    /// Remove what was made known of the volume, unless containers use it
    #[arg(long)]
    pub(in crate::cli) forget: bool,
}
