//! Arguments of the commands for nodes that use caches.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand, ValueEnum};

use super::{CredentialArgs, OutputArgs, RUNTIME, SECURITY, SOURCE};
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
  larder attach --match nginx:1.27 --match redis:7 --require

Changes made to the node: a record in state.dir, a mount, one configuration file
per runtime, and a systemd unit that attaches the volume again at each boot.
--dry-run lists all of them. Running the same command again changes nothing, and
resumes after a crash.";

pub(super) const MATCH_EXAMPLES: &str = "\
Examples:
  larder match nginx:1.27 registry.example.com/team/app@sha256:…
  larder match --volume /dev/vdb --require nginx:1.27 redis:7 || exit

An image by digest matches if the cache contains that digest, its own or its
index's. An image by tag matches if the cache was created with the same name and
tag. The variables are those of `larder cache`.";

/// Images of a workload, and the sources of caches to search.
#[derive(Debug, Args)]
pub(in crate::cli) struct MatchArgs {
    /// Images of the workload
    #[arg(required = true, value_name = "IMAGE")]
    pub(in crate::cli) images: Vec<ImageReference>,
    /// Fail with 64 if the best cache lacks any of the images, and list those
    #[arg(long)]
    pub(in crate::cli) require: bool,
    #[command(flatten)]
    pub(in crate::cli) sources: SourceArgs,
    #[command(flatten)]
    pub(in crate::cli) output: OutputArgs,
}

/// Sources of caches, in addition to the state directory of this host.
#[derive(Debug, Args)]
pub(in crate::cli) struct SourceArgs {
    /// Also search this volume: directory, image file or block device; repeatable
    #[arg(long = "volume", value_name = "PATH", help_heading = SOURCE)]
    pub(in crate::cli) volumes: Vec<PathBuf>,
    /// Also search this daemon: unix:///path, http://host:port or https://host:port [default: $LARDER_HOST,
    /// else none]
    #[arg(long, value_name = "ADDRESS", help_heading = SOURCE)]
    pub(in crate::cli) host: Option<Address>,
    /// PEM file with extra certificate authorities for --host [default: $LARDER_CA]
    #[arg(long, value_name = "FILE", help_heading = SOURCE)]
    pub(in crate::cli) ca: Option<PathBuf>,
    /// Required platform of the images on this node's volumes [default: this host's]
    #[arg(long, value_name = "PLATFORM", help_heading = SOURCE)]
    pub(in crate::cli) platform: Option<Platform>,
}

pub(super) const SNAPSHOTTER_EXAMPLES: &str = "\
Add it to containerd's configuration:
  [proxy_plugins.larder]
    type = \"snapshot\"
    address = \"/run/larder-snapshotter/snapshotter.sock\"
    capabilities = [\"remap-ids\"]
  [plugins.\"io.containerd.cri.v1.images\"]
    snapshotter = \"larder\"

containerd 1.6 and 1.7: `version = 2` first, and the last table is
[plugins.\"io.containerd.grpc.v1.cri\".containerd]. With remap-ids (containerd 2
and Linux 5.19), containers in user namespaces copy no files.";

#[derive(Debug, Args)]
pub(in crate::cli) struct SnapshotterArgs {
    /// Socket for containerd, accessible to root only
    #[arg(long, value_name = "PATH", default_value = snapshotter::SOCKET)]
    pub(in crate::cli) socket: PathBuf,
    /// Directory for the files of containerd's own snapshots, on a file system that supports overlayfs upper
    /// directories [default: snapshotter in state.dir]
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) root: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct AttachArgs {
    /// Image cache of the local daemon, directory of a volume, image file or block device
    #[arg(
        value_name = "CACHE|VOLUME",
        required_unless_present_any = ["matches", "list"],
        conflicts_with_all = ["matches", "list"]
    )]
    pub(in crate::cli) source: Option<String>,
    /// List the attached volumes, and change nothing
    #[arg(long, conflicts_with = "matches", help_heading = SOURCE)]
    pub(in crate::cli) list: bool,
    /// Attach the best cache for this image instead of naming one; repeatable, as with `larder match`
    #[arg(long = "match", value_name = "IMAGE", help_heading = SOURCE)]
    pub(in crate::cli) matches: Vec<ImageReference>,
    /// With --match: fail with 64 if the chosen cache lacks any of the images
    #[arg(long, requires = "matches", help_heading = SOURCE)]
    pub(in crate::cli) require: bool,
    #[command(flatten)]
    pub(in crate::cli) sources: SourceArgs,
    /// Mount point. Keep it short: overlayfs limits the total length of layer paths. [default: the first free
    /// of /icv, /icv2, …]
    #[arg(long, value_name = "DIR", help_heading = RUNTIME)]
    pub(in crate::cli) at: Option<PathBuf>,
    /// Runtime to configure; repeatable
    #[arg(long = "runtime", value_enum, value_name = "RUNTIME", default_value = "auto", help_heading = RUNTIME)]
    pub(in crate::cli) runtimes: Vec<RuntimeChoice>,
    /// Register its images in containerd without a pull, and protect them from garbage collection
    #[arg(long, help_heading = RUNTIME)]
    pub(in crate::cli) preload: bool,
    #[command(flatten)]
    pub(in crate::cli) containerd: ContainerdArgs,
    /// Reject (77) a volume that is not signed with this public key, and (65) one whose layers do not match
    /// the signature. KEY is the line that `larder key public` prints, or a file with such lines or PEMs;
    /// repeatable
    ///
    /// Every layer is read and verified first. A verified volume is not read again until one of its files
    /// changes.
    #[arg(long, value_name = "KEY|FILE", help_heading = SECURITY)]
    pub(in crate::cli) trust: Vec<String>,
    /// With --trust: check only the signature of cache.json, not the layers
    #[arg(long, requires = "trust", conflicts_with = "verify_layers", help_heading = SECURITY)]
    pub(in crate::cli) trust_metadata_only: bool,
    /// Reject (77) a volume that was not signed for this name (`build --sign-name`)
    #[arg(long, value_name = "NAME", requires = "trust", help_heading = SECURITY)]
    pub(in crate::cli) name: Option<String>,
    /// Reject (77) a volume that was signed before this time (RFC 3339)
    #[arg(long, value_name = "TIME", requires = "trust", help_heading = SECURITY)]
    pub(in crate::cli) not_older_than: Option<DateTime<Utc>>,
    /// Reject (65) a volume whose cache.json does not have this digest, as `inspect` and `verify` print it
    #[arg(long, value_name = "DIGEST", help_heading = SECURITY)]
    pub(in crate::cli) digest: Option<Digest>,
    /// Read and verify every layer first, also without --trust: EROFS images with a dm-verity hash tree by
    /// that tree, others as `larder verify` does
    #[arg(long, help_heading = SECURITY)]
    pub(in crate::cli) verify_layers: bool,
    /// `any`: no check. `verify`: attach only if the given credentials can read every image from its registry
    #[arg(long, value_enum, default_value_t, help_heading = SECURITY)]
    pub(in crate::cli) access: Policy,
    #[command(flatten)]
    pub(in crate::cli) credentials: CredentialArgs,
    /// Attach it now only, not again at each boot
    #[arg(long, help_heading = RUNTIME)]
    pub(in crate::cli) no_unit: bool,
    /// Show what would be done, and change nothing
    #[arg(long, help_heading = RUNTIME)]
    pub(in crate::cli) dry_run: bool,
    #[command(flatten)]
    pub(in crate::cli) output: OutputArgs,
    /// Root of the node's file system, if larder runs in a container
    #[arg(long, value_name = "DIR", default_value = "/", help_heading = RUNTIME)]
    pub(in crate::cli) node_root: PathBuf,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct DetachArgs {
    /// Attached cache or volume, or its mount point
    #[arg(value_name = "CACHE|VOLUME|DIR")]
    pub(in crate::cli) source: String,
    /// Detach even if containerd does not answer
    #[arg(long)]
    pub(in crate::cli) force: bool,
    /// Remove the images that cannot start without the volume, and their stopped containers, from their
    /// runtime. The runtime pulls them again when needed. Without this flag they are listed, and nothing is
    /// changed (75).
    #[arg(long)]
    pub(in crate::cli) remove_images: bool,
    /// Address of the daemon that serves CACHE: unix:///path [default: $LARDER_HOST, then
    /// unix:///run/larder/larder.sock]
    #[arg(long, value_name = "ADDRESS")]
    pub(in crate::cli) host: Option<Address>,
    /// Root of the node's file system, if larder runs in a container
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(in crate::cli) node_root: PathBuf,
    #[command(flatten)]
    pub(in crate::cli) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct PreloadArgs {
    /// Mount point of the volume
    #[arg(value_name = "VOLUME")]
    pub(in crate::cli) volume: PathBuf,
    #[command(flatten)]
    pub(in crate::cli) containerd: ContainerdArgs,
    /// Remove the records of the volume's images, unless containers use it
    #[arg(long)]
    pub(in crate::cli) forget: bool,
    #[command(flatten)]
    pub(in crate::cli) output: OutputArgs,
}

/// Options for the connection to containerd.
#[derive(Debug, Args)]
pub(in crate::cli) struct ContainerdArgs {
    /// Path of containerd's socket
    #[arg(long = "containerd", value_name = "PATH", default_value = Containerd::ADDRESS, help_heading = RUNTIME)]
    pub(in crate::cli) address: PathBuf,
    /// containerd namespace in which to register the images
    #[arg(long, value_name = "NAME", default_value = Containerd::NAMESPACE, help_heading = RUNTIME)]
    pub(in crate::cli) namespace: String,
    /// Name of `larder snapshotter` in containerd's configuration, or erofs for containerd's own EROFS
    /// snapshotter (2.4 and newer), which uses EROFS layers
    #[arg(long, value_name = "NAME", default_value = Containerd::SNAPSHOTTER, help_heading = RUNTIME)]
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

/// Container runtimes to configure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum RuntimeChoice {
    /// All installed runtimes
    Auto,
    /// podman and buildah
    Podman,
    /// CRI-O
    Crio,
    /// containerd, with `larder snapshotter`
    Containerd,
}

impl AttachArgs {
    /// Returns the runtimes given on the command line. `None` if they must be detected.
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

/// Arguments of `larder node`, and of the helper pods that it starts.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(in crate::cli) struct AgentArgs {
    /// Socket for containerd, accessible to root only
    #[arg(long, value_name = "PATH", default_value = "/run/larder-snapshotter/snapshotter.sock")]
    pub(in crate::cli) socket: PathBuf,
    #[command(subcommand)]
    pub(in crate::cli) role: Option<NodeRole>,
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub(in crate::cli) enum NodeRole {
    /// Keep the volume of this pod in use until the pod is deleted; does nothing else
    Hold,
}
