//! Command-line arguments and help texts.

mod bench;
mod cache;
mod import;
mod key;
mod node;
mod volume;

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use clap::{Args, Parser, Subcommand, ValueEnum};

use super::call::Role;
use crate::builder::order::ImageSource;
use crate::config::log::Format;
use crate::telemetry::Level;
use larder_model::job::{LayerFormat, VolumeKind};
use larder_model::key::Claims;
use larder_model::platform::Platform;
use larder_model::pull_secret::PullSecretName;
use larder_model::reference::ImageReference;
use larder_model::size::ByteSize;
use larder_model::sizing::Sizing;

pub(super) use bench::BenchKind;
pub(super) use cache::{CacheArgs, CacheCommand, CacheImport, CreateArgs};
use import::IMPORT_EXAMPLES;
pub(super) use import::ImportArgs;
pub(super) use key::KeyAction;
pub(super) use node::{
    AgentArgs, AttachArgs, DetachArgs, MatchArgs, NodeRole, PreloadArgs, SnapshotterArgs, SourceArgs,
};

use volume::EXPORT_EXAMPLES;
pub(super) use volume::{ExportArgs, InspectArgs, MountArgs, PrefetchArgs, UmountArgs, VerifyArgs};

const EXAMPLES: &str = "\
Examples:
  larder build --volume ./cache --size 20GiB nginx:1.27 registry.example.com/team/app:4
  larder build --job job.json --volume /cache --secrets /secrets --output json
  larder plan nginx:1.27
  larder bench build nginx:1.27 --dir /var/lib/larder
  larder verify ./cache
  larder key generate sign.pem
  larder inspect ./cache --json
  larder export ./cache images.tar --format oci-archive
  larder import images.tar --volume ./cache
  larder prefetch ./cache --image nginx:1.27
  larder serve
  larder match nginx:1.27 redis:7
  larder attach web
  larder snapshotter
  larder cache create web nginx:1.27 --wait
  larder cache import web images.tar --wait

Exit codes (sysexits.h):
  0 success   64 usage error, or no such image   65 corrupt or malicious content   69 registry unavailable
  70 internal error   73 does not fit, or the volume belongs to another job   75 try again later   77 denied
  130, 143 interrupted: repeat the command to resume";

const BUILD_EXAMPLES: &str = "\
Examples:
  larder build --volume ./cache --size 20GiB nginx:1.27 redis:7
  larder build --volume ./cache --size 4GiB --platform linux/arm64 --limit-rate 20MiB/s nginx:1.27
  larder build --volume ./cache --size 4GiB --secrets ./secrets --pull-secret team-a:registry r.example.com/app:1
  larder build --job - --volume /cache --output json < job.json
  larder build --volume-kind disk --shrink --volume ./cache --size 20GiB nginx:1.27
  larder build --share /caches --volume /caches/volumes/web --size 4GiB nginx:1.27

Flags override the job, and the job overrides the configuration. Sizes take KiB, MiB, GiB, TiB (also K, Ki, …) and
kB, MB, GB, TB. After Ctrl-C, the same command resumes the volume; a second Ctrl-C quits immediately.
With --output json, closing the reading end of standard output stops the build like Ctrl-C (exit 130).";

/// Build node-level image caches: a list of container images in, one sealed and verified volume out.
#[derive(Debug, Parser)]
#[command(name = "larder", version, after_help = EXAMPLES, propagate_version = true)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Args)]
pub(super) struct Global {
    /// Configuration file [default: /etc/larder/larder.toml, if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Log filter: error, warn, info, debug, trace, or target=level,…
    /// [default: $LARDER_LOG, then the configuration]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(super) log_level: Option<Level>,
    /// Format of the log lines on standard error [default: the configuration's]
    #[arg(long, global = true, value_enum, value_name = "FORMAT")]
    pub(super) log_format: Option<Format>,
    /// Role of this child process, set by the supervisor that started it
    #[arg(long, global = true, hide = true, value_enum)]
    pub(super) kept: Option<Role>,
    /// Directory where the supervisor mounted the device
    #[arg(long, global = true, hide = true, requires = "kept")]
    pub(super) kept_volume: Option<PathBuf>,
    /// Process ID of the supervisor
    #[arg(long, global = true, hide = true, requires = "kept")]
    pub(super) kept_by: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Fill a volume with images and seal it
    #[command(after_help = BUILD_EXAMPLES)]
    Build(OrderArgs),
    /// Show what a build would download and whether it fits (dry run)
    ///
    /// Takes the flags of `build`, but needs neither a volume nor a size. Downloads no layers. Exits with 73
    /// if the given size fails the 3x rule and sizing is `enforce`.
    Plan(OrderArgs),
    /// Benchmark pulling and unpacking an image on this node and name the bottleneck
    ///
    /// Measures the wall time, CPU time and rate of each stage: network, decompression, hashing, file
    /// creation, writing and syncing. Computes the best possible time from the stages (the roofline) and
    /// compares it with a run of all stages together. Names the bottleneck and suggests settings that would
    /// help. Exits with 73 if DIR has too little space.
    #[command(after_help = bench::EXAMPLES)]
    Bench {
        /// The stages to measure
        #[command(subcommand)]
        kind: BenchKind,
    },
    /// Run the daemon: image caches over HTTP, on a Unix socket and optionally on TCP
    ///
    /// Reads the whole configuration (`larder config show`). SIGHUP reloads it. SIGTERM stops the daemon;
    /// unfinished builds resume on the next start. Exits with 73 if another daemon uses the state directory.
    Serve,
    /// Manage the daemon's image caches
    #[command(after_help = cache::EXAMPLES)]
    Cache(CacheArgs),
    /// Verify the contents of a sealed volume
    ///
    /// Checks every file against the checksums on the volume and reports the first difference by layer and
    /// path. Exits with 65 if there is a difference. Exits with 64 if the volume was built with
    /// --no-tar-split, with 73 if it is not sealed, and with 77 if no key of --trust has signed it.
    Verify(VerifyArgs),
    /// Show the images and layers of a sealed volume
    ///
    /// Exits with 73 if the volume is not sealed.
    Inspect(InspectArgs),
    /// Export the images of a sealed volume as an archive, or the volume as a disk image
    ///
    /// Rebuilds every layer bit for bit and checks it against its diff ID. Image IDs stay the same, and the
    /// same volume always gives the same bytes. OUT appears only once it is complete. Exits with 65 if a
    /// layer was changed after sealing, and with 73 if OUT exists.
    #[command(after_help = EXPORT_EXAMPLES)]
    Export(ExportArgs),
    /// Fill a volume from an archive instead of registries, and seal it
    ///
    /// Applies the same rules as `build`: the 3x rule for the size, the size limit, and a check of every
    /// digest. After an interruption, the same command resumes. Contacts no registry.
    #[command(after_help = IMPORT_EXAMPLES)]
    Import(ImportArgs),
    /// Warm the page cache with the files that containers read at start
    ///
    /// For disks with slow first reads, such as disks restored from a snapshot or network disks. Reads the
    /// files listed in prefetch.list on the volume, many at once. These are passwd and group, the programs of
    /// each entrypoint and command, their interpreters, and the libraries they load. Exits with 73 if the
    /// volume is not sealed, with 64 if it has no list, and with 65 if the list does not match.
    Prefetch(PrefetchArgs),
    /// Mount an image of a sealed volume read-only
    ///
    /// Mounts an overlay of the layers, without devices and setuid bits. EROFS images are mounted from their
    /// files, or through loop devices on kernels before Linux 6.12. The volume can be a disk. Requires root,
    /// and writes nothing to the volume. The kernel parses the content, so run `verify` first on volumes from
    /// elsewhere.
    Mount(MountArgs),
    /// Unmount a directory that `mount` mounted
    ///
    /// Exits with 73 if Larder did not mount it, and with 75 while it is in use.
    Umount(UmountArgs),
    /// Write the container image of this program as an OCI image layout, without a container engine
    ///
    /// The program must be statically linked. `make image` builds it so and runs this command.
    /// SOURCE_DATE_EPOCH sets the creation time of the image.
    #[command(hide = true)]
    Image(ImageArgs),
    /// Create a key for signing volumes, or print its public key
    #[command(after_help = key::EXAMPLES)]
    Key {
        /// Subcommand of `larder key`
        #[command(subcommand)]
        action: KeyAction,
    },
    /// Find the cache that contains most of the given images
    ///
    /// Compares the number of images, then the number of bytes, then the age (newest first). Searches
    /// attached volumes, the volumes in state.dir of the local daemon (if readable), and those of --volume
    /// and --host. Does not verify them; `attach` and `verify` do. Exits with 64 if no cache contains any of
    /// the images.
    #[command(after_help = node::MATCH_EXAMPLES)]
    Match(MatchArgs),
    /// Mount a sealed volume on this node and configure the container runtimes to use it
    ///
    /// podman, buildah and CRI-O use it as an additional image store, containerd through `larder
    /// snapshotter`. Requires root. Exits with 73 if the mount point is already in use by something else.
    #[command(after_help = node::ATTACH_EXAMPLES)]
    Attach(AttachArgs),
    /// Unmount a volume and remove it from the container runtimes
    ///
    /// Undoes `attach`. Exits with 64 if the volume is not attached. While containers use it, exits with 75
    /// and changes nothing.
    Detach(DetachArgs),
    /// Run a containerd snapshotter that serves layers from attached volumes
    ///
    /// A proxy plugin of type `snapshot` for containerd 1.6 and newer. Images of attached volumes are pulled
    /// without downloading their layers, all other images as usual, so it can be the only snapshotter of a
    /// node. Reads state.dir and the log section of the configuration. Requires root. Exits with 73 if
    /// another instance uses its directory or socket.
    #[command(after_help = node::SNAPSHOTTER_EXAMPLES)]
    Snapshotter(SnapshotterArgs),
    /// Run the node agent of a cluster: attach the image caches that pods on the node request
    ///
    /// For the DaemonSet in config/kubernetes/node. Reads the node, state and log sections of the
    /// configuration. Serves containerd like `larder snapshotter`. Requires root and mount propagation to the
    /// host. Stopping the agent leaves volumes attached.
    Node(AgentArgs),
    /// Register the images of an attached volume in containerd so that no pull is needed
    ///
    /// `attach --preload` does the same. Writes the records that a pull would write: the images, pinned and
    /// visible to Kubernetes, with their manifests and configs. The snapshotter provides the layers, so
    /// attach the volume first. Existing records of other images are kept and listed. Safe to run again;
    /// --forget removes the records. Exits with 75 if containers use the volume, with 69 if containerd or the
    /// snapshotter does not respond, and with 65 if the volume is damaged.
    Preload(PreloadArgs),
    /// Check or show the configuration
    Config {
        /// Subcommand of `larder config`
        #[command(subcommand)]
        action: ConfigAction,
    },
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub(super) enum ConfigAction {
    /// Check the configuration file; list every error and exit with 64 if there are any
    Check,
    /// Print the configuration in effect as TOML, defaults included
    Show,
    /// Print the CustomResourceDefinition of image caches as YAML, for `kubectl apply --server-side -f -`
    Crd,
}

/// Format of the standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// Human-readable text
    #[default]
    Text,
    /// JSON: `build` writes NDJSON events only, `plan` and `bench` one JSON document
    Json,
}

/// Options for creating and sealing a disk.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(super) struct DiskArgs {
    /// Kind disk: allocate host space as it is used, instead of reserving all of it first
    #[arg(long)]
    pub(super) sparse: bool,
    /// Kind disk: shrink the sealed disk to the smallest size that fits its content
    #[arg(long)]
    pub(super) shrink: bool,
    /// Kind block: format the device even if it contains data; all of it is lost
    #[arg(long)]
    pub(super) format_device: bool,
}

#[derive(Debug, Default, Args)]
pub(super) struct OrderArgs {
    /// Images, for example nginx:1.27 or registry.example.com/team/app@sha256:…
    #[arg(value_name = "IMAGE")]
    pub(super) images: Vec<ImageReference>,
    /// Build job as JSON instead of images; - reads standard input
    #[arg(long, value_name = "FILE")]
    pub(super) job: Option<PathBuf>,
    /// Directory of the volume: empty, or from an earlier run of the same job. With kind block, the device.
    /// Required by build.
    #[arg(long, value_name = "DIR")]
    pub(super) volume: Option<PathBuf>,
    /// Type of storage for the volume [default: directory]
    ///
    /// For all kinds but directory, the kernel enforces the size limit. Kinds disk and block need root and
    /// e2fsprogs; disk also needs loop devices.
    #[arg(long, value_enum, value_name = "KIND")]
    pub(super) volume_kind: Option<VolumeKind>,
    #[command(flatten)]
    pub(super) disk: DiskArgs,
    /// Maximum size of the volume, for example 20GiB. Required by build, unless the job sets it.
    #[arg(long, value_name = "SIZE")]
    pub(super) size: Option<ByteSize>,
    /// Action if the volume is smaller than three times the compressed images [default: enforce]
    #[arg(long, value_enum, value_name = "POLICY")]
    pub(super) sizing: Option<Sizing>,
    /// Platform as os/architecture[/variant] [default: this host's]
    #[arg(long, value_name = "PLATFORM")]
    pub(super) platform: Option<Platform>,
    #[command(flatten)]
    pub(super) credentials: CredentialArgs,
    /// Maximum number of layers in parallel [default: the configuration's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) concurrency: Option<u16>,
    /// Maximum number of connections per host [default: the configuration's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) connections_per_host: Option<u16>,
    /// Maximum bytes per second over all registries, for example 20MiB/s [default: no limit]
    #[arg(long, value_name = "SIZE/s", value_parser = rate)]
    pub(super) limit_rate: Option<u64>,
    /// Format of the standard output; json also disables the progress on standard error
    #[arg(long, value_enum, default_value_t = Output::Text, value_name = "FORM")]
    pub(super) output: Output,
    #[command(flatten)]
    pub(super) layers: LayerArgs,
    /// Build without the privileges that a layer needs; `inspect` shows what could not be preserved
    #[arg(long)]
    pub(super) rootless: bool,
    /// Reuse layers of the volumes in DIR/volumes, which must also contain --volume. Concurrent builds with
    /// the same DIR fetch each layer once. Ignored by plan.
    #[arg(long, value_name = "DIR")]
    pub(super) share: Option<PathBuf>,
    /// Sign the sealed volume with this private key, an Ed25519 PEM file from `larder key generate` [default:
    /// the configuration's build.sign_key]
    ///
    /// The signature is written to cache.json.sig next to cache.json; `verify --trust` checks it. The key
    /// file must be readable by its owner only. If the volume is already sealed, it must be signed with this
    /// key, otherwise the build exits with 73. Ignored by plan.
    #[arg(long, value_name = "FILE")]
    pub(super) sign_key: Option<PathBuf>,
    /// Cache name to include in the signature, for `attach --name`. Ignored by plan.
    #[arg(long, value_name = "NAME", value_parser = sign_name)]
    pub(super) sign_name: Option<String>,
    /// Sequence number to include in the signature; increase it for later volumes of the same name [default:
    /// the time, seconds since 1970]
    #[arg(long, value_name = "NUMBER")]
    pub(super) sign_sequence: Option<u64>,
    /// Verify the contents of the sealed volume before exiting. Ignored by plan.
    #[arg(long)]
    pub(super) verify_after: bool,
    /// Write the result to this file as one JSON line under 4 KiB, on success and failure. Ignored by plan.
    #[arg(long, value_name = "FILE")]
    pub(super) result_file: Option<PathBuf>,
    /// Stop at this time (RFC 3339, for example 2026-11-23T18:00:00Z) with exit code 75; the volume stays
    /// resumable
    #[arg(long, value_name = "TIME")]
    pub(super) deadline: Option<DateTime<Utc>>,
    /// Read registries and layers in unconfined processes
    ///
    /// For systems on which the sandbox does not work. By default a build uses three processes. One fetches
    /// and has no access to files. One extracts and has access to the volume only. The main process holds
    /// keys and secrets. The first two run in their own namespaces, with few capabilities, Landlock and a
    /// list of allowed system calls; see SECURITY.md. Missing system features are reported in one line.
    #[arg(long)]
    pub(super) no_sandbox: bool,
    /// Niceness of the build, 0 to 19 as in nice(1)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=19))]
    pub(super) nice: Option<u8>,
    /// Kill this process when its parent ends
    ///
    /// For supervisors, so that no unwatched build is left behind. Linux ties it to the thread that started
    /// this process. With PID, the process ID of the supervisor, this also detects a supervisor that ended
    /// before the build started.
    #[arg(long, value_name = "PID", num_args = 0..=1, require_equals = true)]
    pub(super) die_with_parent: Option<Option<u32>>,
    /// The source of the images. Only `import` sets it.
    #[arg(skip)]
    pub(super) source: Option<ImageSource>,
}

/// Options for registry credentials.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct CredentialArgs {
    /// Directory with a docker config.json; repeatable, tried in order after the pull secrets
    #[arg(long = "docker-config", value_name = "DIR")]
    pub(super) docker_configs: Vec<PathBuf>,
    /// Directory of secrets in Kubernetes' format: NAMESPACE/NAME/.dockerconfigjson or .dockercfg
    #[arg(long, value_name = "DIR")]
    pub(super) secrets: Option<PathBuf>,
    /// Pull secret in --secrets, as namespace:name; repeatable, tried in order
    #[arg(long = "pull-secret", value_name = "NAMESPACE:NAME")]
    pub(super) pull_secrets: Vec<PullSecretName>,
}

/// Options for the layers on the volume.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(super) struct LayerArgs {
    /// Format of the layers on the volume: directories, or EROFS images [default: the configuration's]
    ///
    /// Each EROFS image is written as one file and needs no root and no capabilities. containerd 2.4 and
    /// newer use the erofs/ directory of the volume as a layer content cache. For other runtimes, `larder
    /// mount` mounts the images.
    #[arg(long, value_enum, value_name = "FORM")]
    pub(super) layer_format: Option<LayerFormat>,
    /// Append a dm-verity hash tree to each image, and write the file that containerd reads for it; needs
    /// --layer-format erofs
    #[arg(long)]
    pub(super) verity: bool,
    /// Write no tar-split files: faster, but verify and export then reject the volume
    #[arg(long)]
    pub(super) no_tar_split: bool,
}

#[derive(Debug, Args)]
pub(super) struct ImageArgs {
    /// Output directory for the layout
    pub(super) out: PathBuf,
    /// PEM file with the certificate authorities that the image trusts
    #[arg(long, value_name = "FILE", default_value = "/etc/ssl/certs/ca-certificates.crt")]
    pub(super) authorities: PathBuf,
    /// Tag of the image in the layout
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    pub(super) tag: String,
    /// Commit that the program was built from
    #[arg(long, value_name = "COMMIT")]
    pub(super) revision: Option<String>,
    /// Replace OUT if it exists
    #[arg(long)]
    pub(super) force: bool,
}

/// Parses bytes per second: a size, with or without `/s`.
fn rate(text: &str) -> Result<u64, String> {
    let size = text.strip_suffix("/s").unwrap_or(text);
    match size.parse::<ByteSize>() {
        Ok(ByteSize(0)) => Err("the rate must not be 0: use a size per second, for example 20MiB/s".into()),
        Ok(ByteSize(bytes)) => Ok(bytes),
        Err(_) => Err("not a rate: use a size per second, for example 20MiB/s".into()),
    }
}

fn sign_name(text: &str) -> Result<String, String> {
    match Claims::is_name(text) {
        true => Ok(text.to_owned()),
        false => Err("use 1 to 255 bytes without control characters".to_owned()),
    }
}

#[cfg(test)]
mod tests;
