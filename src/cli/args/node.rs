//! Commands of the nodes that use caches.

use std::path::PathBuf;

use clap::Args;

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
