//! Commands of the nodes that use caches.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::client::address::Address;
use crate::model::runtime::Runtime;

pub(super) const ATTACH_EXAMPLES: &str = "\
Examples:
  larder attach web
  larder attach ./cache --at /icv --runtime podman --dry-run
  larder attach /dev/disk/by-label/larder --runtime containerd
  larder detach web

What it changes: a record in state.dir, a mount, one file of its own for each runtime, and a systemd unit that does the
same at each boot. --dry-run shows all of it. The same command again changes nothing; after a crash it goes on.";

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
pub(in crate::cli) struct AttachArgs {
    /// Image cache of this host's daemon, directory of a volume, image file or block device
    #[arg(value_name = "CACHE|VOLUME")]
    pub(in crate::cli) source: String,
    /// Where it is mounted; short, for overlayfs takes the paths of all layers of an image in one page
    /// [default: the first free of /icv, /icv2, …]
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) at: Option<PathBuf>,
    /// Which runtime is told of it; repeatable
    #[arg(long = "runtime", value_enum, value_name = "RUNTIME", default_value = "auto")]
    pub(in crate::cli) runtimes: Vec<RuntimeChoice>,
    /// Attach it now only, not at each boot
    #[arg(long)]
    pub(in crate::cli) no_unit: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
    #[command(flatten)]
    pub(in crate::cli) node: NodeArgs,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct DetachArgs {
    /// What was attached, or where
    #[arg(value_name = "CACHE|VOLUME|DIR")]
    pub(in crate::cli) source: String,
    #[command(flatten)]
    pub(in crate::cli) node: NodeArgs,
}

/// Where the node is, and its daemon.
#[derive(Debug, Args)]
pub(in crate::cli) struct NodeArgs {
    /// Where the node's file system is, for a larder in a container
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(in crate::cli) node_root: PathBuf,
    /// The daemon that knows CACHE: unix:///path
    /// [default: $LARDER_HOST, then unix:///run/larder/larder.sock]
    #[arg(long, value_name = "ADDRESS")]
    pub(in crate::cli) host: Option<Address>,
}

/// Which runtimes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum RuntimeChoice {
    /// Those that are installed
    Auto,
    /// podman and buildah
    Podman,
    /// CRI-O
    Crio,
    /// containerd, with `larder snapshotter`
    Containerd,
}

impl AttachArgs {
    /// The runtimes that were named; none: those that are found.
    pub(in crate::cli) fn runtimes(&self) -> Option<Vec<Runtime>> {
        let named = self.runtimes.iter().map(|choice| match choice {
            RuntimeChoice::Auto => None,
            RuntimeChoice::Podman => Some(Runtime::Podman),
            RuntimeChoice::Crio => Some(Runtime::Crio),
            RuntimeChoice::Containerd => Some(Runtime::Containerd),
        });
        named.collect()
    }
}
