//! What a user types.

mod bench;
mod cache;
mod key;
mod node;

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use clap::{Args, Parser, Subcommand, ValueEnum};

use super::keeper::Role;
use crate::archive;
use crate::builder::order::SourceOrder;
use crate::config::log::Format;
use crate::export;
use crate::telemetry::Level;
use larder_model::digest::Digest;
use larder_model::job::{LayerFormat, VolumeKind};
use larder_model::platform::Platform;
use larder_model::pull_secret::PullSecretName;
use larder_model::reference::ImageReference;
use larder_model::seal::Compression;
use larder_model::size::ByteSize;
use larder_model::sizing::Sizing;
use larder_model::trust::Claims;

pub(super) use bench::BenchKind;
pub(super) use cache::{CacheArgs, CacheCommand, CacheImport, CacheOrder};
pub(super) use key::KeyAction;
pub(super) use node::{
    AgentArgs, AttachArgs, DetachArgs, MatchArgs, NodeRole, PreloadArgs, SnapshotterArgs, SourceArgs,
};

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
  0 done   64 usage, no such image   65 corrupt or hostile content   69 registry fails for now
  70 fault of ours   73 does not fit, or another job's volume   75 try again later   77 denied
  130, 143 interrupted: the same command resumes";

const BUILD_EXAMPLES: &str = "\
Examples:
  larder build --volume ./cache --size 20GiB nginx:1.27 redis:7
  larder build --volume ./cache --size 4GiB --platform linux/arm64 --limit-rate 20MiB/s nginx:1.27
  larder build --volume ./cache --size 4GiB --secrets ./secrets --pull-secret team-a:registry r.example.com/app:1
  larder build --job - --volume /cache --output json < job.json
  larder build --volume-kind disk --shrink --volume ./cache --size 20GiB nginx:1.27
  larder build --share /caches --volume /caches/volumes/web --size 4GiB nginx:1.27

Flags override the job, the job overrides the configuration. Sizes take KiB MiB GiB TiB (also K, Ki, …) and
kB MB GB TB. Ctrl-C leaves a volume that the same command resumes; a second one ends at once.
With --output json a reader that closes standard output ends the build like Ctrl-C does (exit 130).";

const EXPORT_EXAMPLES: &str = "\
Examples:
  larder export ./cache images.tar --format oci-archive
  larder export ./cache - --format docker-archive --image nginx:1.27 | ssh node podman load
  larder export ./cache ./layout --format oci-layout --compression zstd

podman load, skopeo copy and ctr images import take all three archives, docker load the docker-archive. gzip is what every
tool reads; zstd is smaller and much faster, for containerd 1.5, podman and skopeo, and docker 23 or newer; none is fastest,
and for networks that compress.";

const IMPORT_EXAMPLES: &str = "\
Examples:
  larder import images.tar --volume ./cache
  docker save app:1 | larder import - --volume ./cache
  larder import ./layout --volume ./cache --image registry.example.com/app:1 --size 4GiB

Archives are OCI layouts, tars of them, what docker save writes, and directories that skopeo writes (dir:). A tar can be
compressed as a whole by gzip or zstd. Such a one, and standard input, is kept in a temporary file (TMPDIR) meanwhile; a plain file is read where it lies. The image of a
disk, as `export --format raw` writes it, becomes a volume of kind disk: it is compared with the .sha256 beside it, if there
is one, and proven whole, as `larder verify` does, before it counts as sealed; other flags than --volume and --output are
not for it. `larder cache import` makes an image cache of a daemon instead.";

/// Builds node-level image caches: a list of container images in, one sealed and proven volume out.
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
    /// Configuration file [default: /etc/larder/larder.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Log filter: error, warn, info, debug, trace, or target=level,… [default: $LARDER_LOG, then the configuration]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(super) log_level: Option<Level>,
    /// Form of the log lines on standard error [default: the configuration's]
    #[arg(long, global = true, value_enum, value_name = "FORMAT")]
    pub(super) log_format: Option<Format>,
    /// What this process does for the keeper of a disk that started it
    #[arg(long, global = true, hide = true, value_enum)]
    pub(super) kept: Option<Role>,
    /// Where the keeper has mounted a device
    #[arg(long, global = true, hide = true, requires = "kept")]
    pub(super) kept_volume: Option<PathBuf>,
    /// The process ID of the supervisor
    #[arg(long, global = true, hide = true, requires = "kept")]
    pub(super) kept_by: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Fill a volume with images and seal it
    #[command(after_help = BUILD_EXAMPLES)]
    Build(OrderArgs),
    /// Say what a build would fetch and whether it fits; moves no layer byte
    ///
    /// Takes the flags of `build`. Needs neither volume nor size. Exits with 73 if a size was given that the 3x rule
    /// refuses and sizing is `enforce`.
    Plan(OrderArgs),
    /// Measure what this node can do with an image: each stage alone, then together, and what binds
    ///
    /// Network, inflating, hashing, making files, writing and syncing each have their time, their processors' time and their rate.
    /// What the stages allow at best (the roofline) is compared with what all of them took at once; the limit that binds is named,
    /// and what setting would help. Exits with 73 where DIR has too little room.
    #[command(after_help = bench::EXAMPLES)]
    Bench {
        /// How much of a build
        #[command(subcommand)]
        kind: BenchKind,
    },
    /// Run the daemon: image caches over HTTP, on a Unix socket and, when configured, TCP
    ///
    /// Reads all of the configuration (`larder config show`). SIGHUP reads it again; SIGTERM
    /// stops, and unfinished builds go on with the next start. Exits with 73 if another daemon has the state directory.
    Serve,
    /// Use the daemon's image caches
    #[command(after_help = cache::EXAMPLES)]
    Cache(CacheArgs),
    /// Prove a sealed volume from its own bytes
    ///
    /// Reports the first difference by layer and path. Exits with 65 if there is one, with 64 for a volume built with
    /// --no-tar-split, with 73 for a volume that is not sealed, and with 77 for one that is not signed by a key of --trust.
    Verify(VerifyArgs),
    /// Say what is on a sealed volume
    ///
    /// Exits with 73 for a volume that is not sealed.
    Inspect(InspectArgs),
    /// Write a sealed volume as an archive of its images, or as the image of its disk
    ///
    /// Layers are rebuilt bit for bit and proven; image IDs hold. The same volume gives the same bytes. OUT is there when it
    /// is whole, and not before. Exits with 65 if a layer is not what it was, and with 73 if OUT exists.
    #[command(after_help = EXPORT_EXAMPLES)]
    Export(ExportArgs),
    /// Fill a volume from an archive instead of registries, and seal it
    ///
    /// The same rules hold as for `build`: three times the size of the images, the cap, every digest; an interrupted import
    /// is resumed by the same command. No registry is asked.
    #[command(after_help = IMPORT_EXAMPLES)]
    Import(ImportArgs),
    /// Read what containers of a sealed volume need first, many requests at once
    ///
    /// For a disk that answers each first read late: one restored from a snapshot, or behind a network. Reads what
    /// prefetch.list on the volume names: passwd and group, the program of the image's entrypoint and command, its
    /// interpreters, and the libraries that it loads. Nothing is kept but what the kernel caches. Exits with 73 for a volume
    /// that is not sealed, with 64 for one without a list, and with 65 if the list and the volume do not agree.
    Prefetch(PrefetchArgs),
    /// Mount an image of a sealed volume read-only, whichever form its layers have
    ///
    /// An overlay of the layers, without devices and setuid bits. EROFS images are mounted from their files, or by loop
    /// devices on kernels before Linux 6.12. The volume may be a disk. Takes root, and writes nothing to the volume. The
    /// kernel reads what lies there: `verify` first what comes from elsewhere.
    Mount(MountArgs),
    /// Unmount what `mount` mounted
    ///
    /// Exits with 73 where that is nothing of ours, and with 75 while somebody uses it.
    Umount(UmountArgs),
    /// Write the container image of this very program: an OCI image layout, made by no container engine
    ///
    /// The program has to be static. `make image` builds it so and calls this. The time of the image is SOURCE_DATE_EPOCH.
    #[command(hide = true)]
    Image(ImageArgs),
    /// Make a key by which volumes are signed, or show its public half
    #[command(after_help = key::EXAMPLES)]
    Key {
        /// What to do
        #[command(subcommand)]
        action: KeyAction,
    },
    /// Name the cache that serves a workload best: on this node, or a daemon's
    ///
    /// Most of the images, then most bytes, then the newest. Looked at are volumes that are attached, those in state.dir of a
    /// daemon of this host where this user may read them, and what --volume and --host name. Nothing is proven: `attach` and
    /// `verify` do. Exits with 64 where no cache holds any of the images.
    #[command(after_help = node::MATCH_EXAMPLES)]
    Match(MatchArgs),
    /// Mount a sealed volume on this node and tell its container runtimes
    ///
    /// podman, buildah and CRI-O start containers from it as from an additional image store, containerd by way of `larder
    /// snapshotter`. Takes root. Exits with 73 where something else has the place.
    #[command(after_help = node::ATTACH_EXAMPLES)]
    Attach(AttachArgs),
    /// Let a volume go that `attach` attached
    ///
    /// Exits with 64 where it is not attached, and with 75, nothing changed, while containers use it.
    Detach(DetachArgs),
    /// Run a snapshotter for containerd that has the layers of attached volumes
    ///
    /// A proxy plugin of type `snapshot`, of containerd 1.6 and newer. Images of attached volumes are pulled without their
    /// layers, everything else as usual, so it can be the only snapshotter of a node. Of the configuration it reads
    /// state.dir and the section log. Takes root. Exits with 73 if another one has its directory or its socket.
    #[command(after_help = node::SNAPSHOTTER_EXAMPLES)]
    Snapshotter(SnapshotterArgs),
    /// Run the agent of a cluster's node: image caches that pods there ask for are attached there
    ///
    /// For the DaemonSet in config/kubernetes/node. Reads the sections node, state and log of the configuration. Answers
    /// containerd as `larder snapshotter` does. Takes root, and mounts that the node sees. A stop lets nothing go.
    Node(AgentArgs),
    /// Make the images of an attached volume known to containerd, as `attach --preload` does
    ///
    /// Writes what a pull would: records of the images, pinned and known to Kubernetes, their manifests and configs. Layers are
    /// the snapshotter's, so the volume is attached already. Records that others made of other images are left alone, and
    /// named. The same again does nothing. --forget removes what was made known. Exits with 75 if containers use the
    /// volume, with 69 if containerd or the snapshotter does not answer, and with 65 if the volume is damaged.
    Preload(PreloadArgs),
    /// Check or show the configuration
    Config {
        /// What to do with it
        #[command(subcommand)]
        action: ConfigAction,
    },
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub(super) enum ConfigAction {
    /// Check the configuration file; exits with 64 and names every fault
    Check,
    /// Print the configuration in effect as TOML, defaults included
    Show,
    /// Print the CustomResourceDefinition of image caches as YAML, for `kubectl apply --server-side -f -`
    Crd,
}

/// Form of what goes to standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people
    #[default]
    Text,
    /// For machines: `build` writes NDJSON events and nothing else, `plan` and `bench` one JSON document
    Json,
}

/// How a disk is made and sealed.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(super) struct DiskArgs {
    /// Kind disk: take space of the host as it is used, instead of reserving all of it first
    #[arg(long)]
    pub(super) sparse: bool,
    /// Kind disk: cut the sealed disk to the smallest size that holds its content
    #[arg(long)]
    pub(super) shrink: bool,
    /// Kind block: format the device whatever it holds; all of that is lost
    #[arg(long)]
    pub(super) format_device: bool,
}

#[derive(Debug, Default, Args)]
pub(super) struct OrderArgs {
    /// Images, as in nginx:1.27 or registry.example.com/team/app@sha256:…
    #[arg(value_name = "IMAGE")]
    pub(super) images: Vec<ImageReference>,
    /// Build job as JSON instead of images; - for standard input
    #[arg(long, value_name = "FILE")]
    pub(super) job: Option<PathBuf>,
    /// Directory of the volume: empty, or left by an earlier run of the same job; with kind block the device (required by
    /// build)
    #[arg(long, value_name = "DIR")]
    pub(super) volume: Option<PathBuf>,
    /// What holds the volume [default: directory]
    ///
    /// The kernel holds the cap of all kinds but directory. Kinds disk and block need root, loop devices (disk) and e2fsprogs;
    /// what fills them is confined as by --confine unless --docker-config is given.
    #[arg(long, value_enum, value_name = "KIND")]
    pub(super) volume_kind: Option<VolumeKind>,
    #[command(flatten)]
    pub(super) disk: DiskArgs,
    /// Most bytes the volume may occupy at any instant, as in 20GiB (required by build, here or in the job)
    #[arg(long, value_name = "SIZE")]
    pub(super) size: Option<ByteSize>,
    /// What to do if the volume is smaller than three times the compressed images [default: enforce]
    #[arg(long, value_enum, value_name = "POLICY")]
    pub(super) sizing: Option<Sizing>,
    /// Platform as os/architecture[/variant] [default: this host's]
    #[arg(long, value_name = "PLATFORM")]
    pub(super) platform: Option<Platform>,
    #[command(flatten)]
    pub(super) credentials: CredentialArgs,
    /// Most layers at once [default: the configuration's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) concurrency: Option<u16>,
    /// Most connections to one host [default: the configuration's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) connections_per_host: Option<u16>,
    /// Most bytes per second from all registries together, as in 20MiB/s [default: no limit]
    #[arg(long, value_name = "SIZE/s", value_parser = rate)]
    pub(super) limit_rate: Option<u64>,
    /// Form of standard output; json also silences the progress on standard error
    #[arg(long, value_enum, default_value_t = Output::Text, value_name = "FORM")]
    pub(super) output: Output,
    #[command(flatten)]
    pub(super) layers: LayerArgs,
    /// Build without the privileges a layer asks for; what cannot be kept is recorded, see inspect
    #[arg(long)]
    pub(super) rootless: bool,
    /// Reuse layers of the volumes in DIR/volumes, where --volume must lie too; builds with the same DIR that run at the
    /// same time fetch each layer once (plan ignores it)
    #[arg(long, value_name = "DIR")]
    pub(super) share: Option<PathBuf>,
    /// Sign the sealed volume with this private key, PEM of an Ed25519 key, as `larder key generate` makes it
    /// [default: the configuration's build.sign_key]
    ///
    /// The signature is cache.json.sig beside cache.json; `verify --trust` asks for it. The file must be no one else's to read.
    /// A volume that is sealed already must be signed by this key, or the build ends with 73 (plan ignores it).
    #[arg(long, value_name = "FILE")]
    pub(super) sign_key: Option<PathBuf>,
    /// Name of the cache that the signature states, for `attach --name` (plan ignores it)
    #[arg(long, value_name = "NAME", value_parser = sign_name)]
    pub(super) sign_name: Option<String>,
    /// Number that the signature states; give later volumes of a name higher ones [default: the time, seconds since 1970]
    #[arg(long, value_name = "NUMBER")]
    pub(super) sign_sequence: Option<u64>,
    /// Verify the sealed volume from its own bytes before exiting (plan ignores it)
    #[arg(long)]
    pub(super) verify_after: bool,
    /// Write the result to this file as one JSON line under 4 KiB, on success and failure (plan ignores it)
    #[arg(long, value_name = "FILE")]
    pub(super) result_file: Option<PathBuf>,
    /// Give up at this time (RFC 3339, as in 2026-11-23T18:00:00Z) with exit 75; the volume stays resumable
    #[arg(long, value_name = "TIME")]
    pub(super) deadline: Option<DateTime<Utc>>,
    /// Read registries and layers in processes that are not confined
    ///
    /// For systems on which a sandbox does not work. By default a build has three processes: one fetches and has no files, one
    /// extracts and has nothing but the volume, and this one holds keys and secrets. The first two have namespaces of their own, few
    /// capabilities, Landlock and a list of allowed system calls; see docs/SECURITY.md. What a system does not offer is reported in
    /// one line.
    #[arg(long)]
    pub(super) no_sandbox: bool,
    /// Lower the priority of the build, 0 to 19 as in nice(1)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=19))]
    pub(super) nice: Option<u8>,
    /// Be killed when the process that started this one ends
    ///
    /// For a supervisor: a build that nobody watches is not left behind. Linux ties it to the thread that started this
    /// process. With PID, the supervisor's, a supervisor that ended before the build began is noticed too.
    #[arg(long, value_name = "PID", num_args = 0..=1, require_equals = true)]
    pub(super) die_with_parent: Option<Option<u32>>,
    /// Where images come from; only `import` says so.
    #[arg(skip)]
    pub(super) source: Option<SourceOrder>,
}

/// As whom registries are asked.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct CredentialArgs {
    /// Directory with a docker config.json; repeatable, tried in order after pull secrets
    #[arg(long = "docker-config", value_name = "DIR")]
    pub(super) docker_configs: Vec<PathBuf>,
    /// Directory of secrets as Kubernetes writes them: NAMESPACE/NAME/.dockerconfigjson or .dockercfg
    #[arg(long, value_name = "DIR")]
    pub(super) secrets: Option<PathBuf>,
    /// Pull secret in --secrets as namespace:name; repeatable, tried in order
    #[arg(long = "pull-secret", value_name = "NAMESPACE:NAME")]
    pub(super) pull_secrets: Vec<PullSecretName>,
}

/// How layers lie on the volume.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(super) struct LayerArgs {
    /// Form in which layers lie on the volume: directories, or EROFS images [default: the configuration's]
    ///
    /// An image per layer is written as fast as one file and takes no privilege: no root, no capability. containerd 2.4 and
    /// newer take the directory erofs/ of the volume as a layer content cache; `larder mount` mounts images for others.
    #[arg(long, value_enum, value_name = "FORM")]
    pub(super) layer_format: Option<LayerFormat>,
    /// Put a dm-verity hash tree behind each image, and what containerd reads of it beside it; only with --layer-format erofs
    #[arg(long)]
    pub(super) verity: bool,
    /// Write no tar-split files: quicker, but verify and export then refuse the volume
    #[arg(long)]
    pub(super) no_tar_split: bool,
}

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// The archive or the image of a disk (raw, erofs): a file, a directory, - for standard input
    pub(super) input: PathBuf,
    /// What it is [default: found out]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(super) format: Option<archive::Format>,
    /// Directory of the volume: empty, or left by an earlier import of the same images
    #[arg(long, value_name = "DIR")]
    pub(super) volume: PathBuf,
    /// What holds the volume [default: directory]
    ///
    /// For disk and block name size and images: what makes the disk does not look into the archive.
    #[arg(long, value_enum, value_name = "KIND")]
    pub(super) volume_kind: Option<VolumeKind>,
    #[command(flatten)]
    pub(super) disk: DiskArgs,
    /// Most bytes the volume may occupy at any instant, as in 20GiB [default: ten times the compressed images]
    #[arg(long, value_name = "SIZE")]
    pub(super) size: Option<ByteSize>,
    /// Only this image; repeatable. Also what to call an image that has no name [default: all images]
    #[arg(long = "image", value_name = "IMAGE")]
    pub(super) images: Vec<ImageReference>,
    /// What to do if the volume is smaller than three times the compressed images [default: enforce]
    #[arg(long, value_enum, value_name = "POLICY")]
    pub(super) sizing: Option<Sizing>,
    /// Platform as os/architecture[/variant] [default: this host's]
    #[arg(long, value_name = "PLATFORM")]
    pub(super) platform: Option<Platform>,
    /// Most layers at once [default: the configuration's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) concurrency: Option<u16>,
    /// Form of standard output, as of build
    #[arg(long, value_enum, default_value_t = Output::Text, value_name = "FORM")]
    pub(super) output: Output,
    #[command(flatten)]
    pub(super) layers: LayerArgs,
    /// Import without the privileges a layer asks for; what cannot be kept is recorded, see inspect
    #[arg(long)]
    pub(super) rootless: bool,
    /// Reuse layers of the volumes in DIR/volumes, where --volume must lie too
    #[arg(long, value_name = "DIR")]
    pub(super) share: Option<PathBuf>,
    /// Sign the sealed volume with this private key, PEM of an Ed25519 key, as `larder key generate` makes it
    /// [default: the configuration's build.sign_key]
    ///
    /// The signature is cache.json.sig beside cache.json; `verify --trust` asks for it. The file must be no one else's to read.
    /// A volume that is sealed already must be signed by this key, or the build ends with 73.
    #[arg(long, value_name = "FILE")]
    pub(super) sign_key: Option<PathBuf>,
    /// Verify the sealed volume from its own bytes before exiting
    #[arg(long)]
    pub(super) verify_after: bool,
    /// Write the result to this file as one JSON line under 4 KiB, on success and failure
    #[arg(long, value_name = "FILE")]
    pub(super) result_file: Option<PathBuf>,
    /// Give up at this time (RFC 3339) with exit 75; the volume stays resumable
    #[arg(long, value_name = "TIME")]
    pub(super) deadline: Option<DateTime<Utc>>,
    /// Read archive and layers in processes that are not confined; see build
    #[arg(long)]
    pub(super) no_sandbox: bool,
}

impl From<ImportArgs> for OrderArgs {
    fn from(args: ImportArgs) -> Self {
        OrderArgs {
            images: args.images,
            volume: Some(args.volume),
            volume_kind: args.volume_kind,
            disk: args.disk,
            size: args.size,
            sizing: args.sizing,
            platform: args.platform,
            concurrency: args.concurrency,
            output: args.output,
            layers: args.layers,
            rootless: args.rootless,
            sign_key: args.sign_key,
            sign_name: None,
            sign_sequence: None,
            share: args.share,
            verify_after: args.verify_after,
            result_file: args.result_file,
            deadline: args.deadline,
            no_sandbox: args.no_sandbox,
            source: Some(SourceOrder::Archive { path: args.input, format: args.format, received: false }),
            ..OrderArgs::default()
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Directory of the volume, image file or block device
    pub(super) volume: PathBuf,
    /// Verify for another larder, and print the verdict as JSON
    #[arg(long, hide = true)]
    pub(super) for_use: bool,
    /// Refuse (77) a volume that is not signed by this public key: the line that `larder key public` prints, or a file with
    /// such lines or PEMs; repeatable
    ///
    /// Without it a signature that is there has to hold, whoever made it.
    #[arg(long, value_name = "KEY|FILE")]
    pub(super) trust: Vec<String>,
    /// Refuse (65) a volume whose cache.json has another digest than this one
    #[arg(long, value_name = "DIGEST")]
    pub(super) digest: Option<Digest>,
}

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// Directory of the volume
    pub(super) volume: PathBuf,
    /// Where to: a file, a directory for oci-layout, - for standard output
    pub(super) out: PathBuf,
    /// What to write
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(super) format: export::Format,
    /// Compression of layers in oci-layout and oci-archive [default: gzip]
    #[arg(long, value_enum, value_name = "COMPRESSION")]
    pub(super) compression: Option<Compression>,
    /// Only this image; repeatable [default: all]
    #[arg(long = "image", value_name = "IMAGE")]
    pub(super) images: Vec<ImageReference>,
    /// Replace OUT if it exists
    #[arg(long)]
    pub(super) force: bool,
    /// Form of the summary; it goes to standard error if OUT is -
    #[arg(long, value_enum, default_value_t = Output::Text, value_name = "FORM")]
    pub(super) output: Output,
}

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// Directory of the volume, image file or block device
    pub(super) volume: PathBuf,
    /// Print cache.json instead
    #[arg(long)]
    pub(super) json: bool,
    /// Say, too, in how many pieces the layers lie on the disk; opens every file. With --json, as the member `placement`
    #[arg(long)]
    pub(super) extents: bool,
}

#[derive(Debug, Args)]
pub(super) struct MountArgs {
    /// Directory of the volume, image file or block device
    pub(super) volume: PathBuf,
    /// Image as in its build
    pub(super) image: ImageReference,
    /// Directory over which it is mounted
    pub(super) dir: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct UmountArgs {
    /// Directory that `mount` was given
    pub(super) dir: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct ImageArgs {
    /// Directory of the layout
    pub(super) out: PathBuf,
    /// Certificate authorities that the image trusts, PEM
    #[arg(long, value_name = "FILE", default_value = "/etc/ssl/certs/ca-certificates.crt")]
    pub(super) authorities: PathBuf,
    /// Tag in the layout
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    pub(super) tag: String,
    /// The commit that the program was built from
    #[arg(long, value_name = "COMMIT")]
    pub(super) revision: Option<String>,
    /// Replace OUT if it exists
    #[arg(long)]
    pub(super) force: bool,
}

#[derive(Debug, Args)]
pub(super) struct PrefetchArgs {
    /// Directory of the volume, image file or block device
    ///
    /// A disk that is not mounted is mounted for as long as it takes: that draws its blocks from a snapshot that is restored
    /// as it is read, and leaves nothing in memory. What is to be in memory has to be mounted before.
    pub(super) volume: PathBuf,
    /// Image as in its build; repeatable [default: all images of the volume]
    #[arg(long = "image", value_name = "IMAGE")]
    pub(super) images: Vec<ImageReference>,
    /// Every file of the images' layers, after those on the list
    #[arg(long)]
    pub(super) all: bool,
}

/// Bytes per second: a size, with `/s` or without.
fn rate(text: &str) -> Result<u64, String> {
    let size = text.strip_suffix("/s").unwrap_or(text);
    match size.parse::<ByteSize>() {
        Ok(ByteSize(0)) => Err("a rate of 0 never ends: want a size per second, as in 20MiB/s".into()),
        Ok(ByteSize(bytes)) => Ok(bytes),
        Err(_) => Err("not a rate: want a size per second, as in 20MiB/s".into()),
    }
}

fn sign_name(text: &str) -> Result<String, String> {
    match Claims::is_name(text) {
        true => Ok(text.to_owned()),
        false => Err("want 1 to 255 bytes without control characters".to_owned()),
    }
}

#[cfg(test)]
mod tests;
