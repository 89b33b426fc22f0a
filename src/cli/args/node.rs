//! Commands of the nodes that use caches.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand, ValueEnum};

use super::CredentialArgs;
use crate::client::address::Address;
use crate::node::access::Policy;
use crate::node::snapshotter;
use larder_model::digest::Digest;
use larder_model::platform::Platform;
use larder_model::reference::ImageReference;
use larder_model::runtime::{Containerd, Runtime};

pub(super) const ATTACH_EXAMPLES: &str = "\
Examples:
  larder attach web
  larder attach ./cache --at /icv --runtime podman --dry-run
  larder attach /dev/disk/by-label/larder --runtime containerd --preload
  larder attach --match nginx:1.27 --match redis:7 --require
  larder attach ./cache --trust keys.pub --name web --not-older-than 2026-11-01T00:00:00Z
  larder attach web --access verify --secrets ./secrets --pull-secret team-a:registry
  larder detach web

What it changes: a record in state.dir, a mount, one file of its own for each runtime, and a systemd unit that does the
same at each boot. --dry-run shows all of it. The same command again changes nothing; after a crash it goes on.";

pub(super) const MATCH_EXAMPLES: &str = "\
Examples:
  larder match nginx:1.27 registry.example.com/team/app@sha256:…
  larder match --require nginx:1.27 redis:7 || exit        # for those who must not pull
  larder match --volume /dev/vdb --volume ./cache nginx:1.27
  LARDER_HOST=https://larder.example.com LARDER_TOKEN=… larder match --json nginx:1.27

An image by digest is held where the cache has that digest, its own or its index's; one by tag where it was ordered by the same
name and tag. Variables are those of `larder cache`.";

/// What a workload needs, and where to look for it.
#[derive(Debug, Args)]
pub(in crate::cli) struct MatchArgs {
    /// The images of the workload
    #[arg(required = true, value_name = "IMAGE")]
    pub(in crate::cli) images: Vec<ImageReference>,
    /// Fail with 64 if the best cache lacks any of the images, and name them
    #[arg(long)]
    pub(in crate::cli) require: bool,
    #[command(flatten)]
    pub(in crate::cli) sources: SourceArgs,
    /// Print JSON instead
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

/// Where caches are looked for, beside the state directory of this host.
#[derive(Debug, Args)]
pub(in crate::cli) struct SourceArgs {
    /// A volume beside those of this node: directory, image file or block device; repeatable
    #[arg(long = "volume", value_name = "PATH")]
    pub(in crate::cli) volumes: Vec<PathBuf>,
    /// A daemon that is asked, too: unix:///path, http://host:port or https://host:port [default: $LARDER_HOST, else none]
    #[arg(long, value_name = "ADDRESS")]
    pub(in crate::cli) host: Option<Address>,
    /// File with extra certificate authorities for --host, PEM [default: $LARDER_CA]
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) ca: Option<PathBuf>,
    /// Platform that images on this node's volumes have to be for [default: this host's]
    #[arg(long, value_name = "PLATFORM")]
    pub(in crate::cli) platform: Option<Platform>,
}

pub(super) const SNAPSHOTTER_EXAMPLES: &str = "\
containerd finds it by its configuration (1.6: version = 2):
  [proxy_plugins.larder]
    type = \"snapshot\"
    address = \"/run/larder-snapshotter/snapshotter.sock\"
    capabilities = [\"remap-ids\"]      # containerd 2, Linux 5.19: containers in user namespaces copy nothing
  [plugins.\"io.containerd.grpc.v1.cri\".containerd]     # containerd 2: [plugins.\"io.containerd.cri.v1.images\"]
    snapshotter = \"larder\"";

#[derive(Debug, Args)]
pub(in crate::cli) struct SnapshotterArgs {
    /// Socket for containerd: root's alone
    #[arg(long, value_name = "PATH", default_value = snapshotter::SOCKET)]
    pub(in crate::cli) socket: PathBuf,
    /// Directory for what containerd unpacks and writes, on a file system that overlayfs takes upper directories from
    /// [default: snapshotter in state.dir]
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) root: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct AttachArgs {
    /// Image cache of this host's daemon, directory of a volume, image file or block device
    #[arg(value_name = "CACHE|VOLUME", required_unless_present = "matches", conflicts_with = "matches")]
    pub(in crate::cli) source: Option<String>,
    /// Attach the cache that serves this image best, instead of naming one; repeatable, as with `larder match`
    #[arg(long = "match", value_name = "IMAGE")]
    pub(in crate::cli) matches: Vec<ImageReference>,
    /// With --match: fail with 64 if that cache lacks any of the images
    #[arg(long, requires = "matches")]
    pub(in crate::cli) require: bool,
    #[command(flatten)]
    pub(in crate::cli) sources: SourceArgs,
    /// Where it is mounted; short, for overlayfs takes the paths of all layers of an image in one page
    /// [default: the first free of /icv, /icv2, …]
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) at: Option<PathBuf>,
    /// Which runtime is told of it; repeatable
    #[arg(long = "runtime", value_enum, value_name = "RUNTIME", default_value = "auto")]
    pub(in crate::cli) runtimes: Vec<RuntimeChoice>,
    /// Make its images known to containerd without a pull, and keep its garbage collection from them
    #[arg(long)]
    pub(in crate::cli) preload: bool,
    #[command(flatten)]
    pub(in crate::cli) containerd: ContainerdArgs,
    /// Refuse (77) a volume that is not signed by this public key, and one that is not what was signed (65): every layer is read
    /// and proven first. The same volume is not read again as long as no file of it changes. KEY is the line that `larder key
    /// public` prints; a file has such lines or PEMs; repeatable
    #[arg(long, value_name = "KEY|FILE")]
    pub(in crate::cli) trust: Vec<String>,
    /// With --trust: believe the layers, and check the signature of cache.json only
    #[arg(long, requires = "trust", conflicts_with = "verify_layers")]
    pub(in crate::cli) trust_metadata_only: bool,
    /// Refuse (77) a volume that was not signed for this name, as `build --sign-name` gives it
    #[arg(long, value_name = "NAME", requires = "trust")]
    pub(in crate::cli) name: Option<String>,
    /// Refuse (77) a volume that was signed before this time, RFC 3339
    #[arg(long, value_name = "TIME", requires = "trust")]
    pub(in crate::cli) not_older_than: Option<DateTime<Utc>>,
    /// Refuse (65) a volume whose cache.json has another digest than this, as `inspect` and `verify` print it
    #[arg(long, value_name = "DIGEST")]
    pub(in crate::cli) digest: Option<Digest>,
    /// Read every layer first and prove it, also without --trust: EROFS images with a dm-verity hash tree by that, others as
    /// `larder verify` does
    #[arg(long)]
    pub(in crate::cli) verify_layers: bool,
    /// Who may attach it: whoever may run this, or who may read all images of it, as their registries say now
    #[arg(long, value_enum, default_value_t)]
    pub(in crate::cli) access: Policy,
    #[command(flatten)]
    pub(in crate::cli) credentials: CredentialArgs,
    /// Attach it now only, not at each boot
    #[arg(long)]
    pub(in crate::cli) no_unit: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
    /// Where the node's file system is, for a larder in a container
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(in crate::cli) node_root: PathBuf,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct DetachArgs {
    /// What was attached, or where
    #[arg(value_name = "CACHE|VOLUME|DIR")]
    pub(in crate::cli) source: String,
    /// Do not mind that containerd cannot be asked whether it uses the volume
    #[arg(long)]
    pub(in crate::cli) force: bool,
    /// Remove the images that cannot start without the volume, and their stopped containers, from their runtime, which pulls the
    /// images again when it needs them; without this they are listed, and nothing is changed (75)
    #[arg(long)]
    pub(in crate::cli) remove_images: bool,
    /// The daemon that knows CACHE: unix:///path
    /// [default: $LARDER_HOST, then unix:///run/larder/larder.sock]
    #[arg(long, value_name = "ADDRESS")]
    pub(in crate::cli) host: Option<Address>,
    /// Where the node's file system is, for a larder in a container
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(in crate::cli) node_root: PathBuf,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct PreloadArgs {
    /// The volume: where it is mounted
    #[arg(value_name = "VOLUME")]
    pub(in crate::cli) volume: PathBuf,
    #[command(flatten)]
    pub(in crate::cli) containerd: ContainerdArgs,
    /// Remove what was made known of the volume, unless containers use it
    #[arg(long)]
    pub(in crate::cli) forget: bool,
}

/// Which containerd.
#[derive(Debug, Args)]
pub(in crate::cli) struct ContainerdArgs {
    /// Socket of containerd
    #[arg(long = "containerd", value_name = "PATH", default_value = Containerd::ADDRESS)]
    pub(in crate::cli) address: PathBuf,
    /// Namespace of containerd in which images are to be known
    #[arg(long, value_name = "NAME", default_value = Containerd::NAMESPACE)]
    pub(in crate::cli) namespace: String,
    /// Name of `larder snapshotter` in containerd's configuration, or erofs for containerd's own (2.4 and newer), which takes
    /// layers of EROFS images
    #[arg(long, value_name = "NAME", default_value = Containerd::SNAPSHOTTER)]
    pub(in crate::cli) snapshotter: String,
}

impl From<&ContainerdArgs> for Containerd {
    fn from(args: &ContainerdArgs) -> Self {
        let ContainerdArgs { address, namespace, snapshotter } = args;
        Containerd {
            address: address.clone(),
            namespace: namespace.clone(),
            snapshotter: snapshotter.clone(),
        }
    }
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

/// `larder node`, and what it starts in pods of its own.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(in crate::cli) struct AgentArgs {
    /// Socket for containerd: root's alone
    #[arg(long, value_name = "PATH", default_value = "/run/larder-snapshotter/snapshotter.sock")]
    pub(in crate::cli) socket: PathBuf,
    #[command(subcommand)]
    pub(in crate::cli) role: Option<NodeRole>,
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub(in crate::cli) enum NodeRole {
    /// Hold the volume that this pod has, until it is deleted: does nothing at all
    Hold,
}
