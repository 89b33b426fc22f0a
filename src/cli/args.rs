//! Command-line arguments and help texts.

mod bench;
mod build;
mod cache;
mod creds;
mod import;
pub(super) mod internal;
mod key;
mod node;
mod output;
pub(in crate::cli) mod values;
mod volume;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::config::log::{Format, Level as ConfigLevel};
use crate::telemetry::{Destination, Level};

pub(super) use bench::{BenchKind, BenchOrder};
use build::{BUILD_EXAMPLES, BUILD_USAGE};
pub(super) use build::{BuildArgs, BuildOptions, CredentialArgs, DiskArgs, HostArgs, LayerArgs};
pub(super) use cache::{CacheArgs, CacheCommand, CacheImport, CreateArgs, PlanArgs, StatusArgs};
pub(super) use creds::without_creds;
use import::IMPORT_EXAMPLES;
pub(super) use import::ImportArgs;
pub(super) use key::KeyAction;
pub(super) use node::{
    AgentArgs, AttachArgs, DetachArgs, MatchArgs, NodeRole, PreloadArgs, SnapshotterArgs, SourceArgs,
};
pub(super) use output::{ListFormat, ListOutputArgs, OutputArgs};
use volume::EXPORT_EXAMPLES;
pub(super) use volume::{ExportArgs, InspectArgs, MountArgs, PrefetchArgs, UmountArgs, VerifyArgs};

/// Headings of groups of flags.
const SOURCE: &str = "Source";
const VOLUME: &str = "Volume";
const CREDENTIALS: &str = "Credentials";
const TRANSFER: &str = "Transfer";
const OUTPUT: &str = "Output";
const SECURITY: &str = "Security";
const RUNTIME: &str = "Runtime";
const GLOBAL: &str = "Global options";

const EXAMPLES: &str = "\
Examples:
  larder build --volume ./cache --size 20GiB nginx:1.27 redis:7
  larder attach ./cache

Exit codes: `larder explain` lists them.";

/// Build node-level image caches: a list of container images in, one sealed and verified volume out.
#[derive(Debug, Parser)]
#[command(name = "larder", version, after_help = EXAMPLES, propagate_version = true)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Default, Args)]
pub(super) struct Global {
    /// Configuration file [default: /etc/larder/larder.toml, if it exists]
    #[arg(long, global = true, value_name = "FILE", help_heading = GLOBAL)]
    pub(super) config: Option<PathBuf>,
    /// Log filter: error, warn, info, debug, trace, or target=level,…
    /// [default: $LARDER_LOG, then {log.level}]
    #[arg(long, global = true, value_name = "LEVEL", help_heading = GLOBAL)]
    pub(super) log_level: Option<Level>,
    /// Log more: -v means --log-level debug, -vv trace
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "log_level", help_heading = GLOBAL)]
    pub(super) verbose: u8,
    /// Format of the log lines on standard error [default: {log.format}]
    #[arg(long, global = true, value_enum, value_name = "FORMAT", help_heading = GLOBAL)]
    pub(super) log_format: Option<Format>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Fill a volume with images and seal it
    #[command(after_help = BUILD_EXAMPLES, override_usage = BUILD_USAGE)]
    Build(BuildArgs),
    /// Show what a build would download and whether it fits (dry run)
    ///
    /// Takes the flags of `build`, but needs neither a volume nor a size, and ignores the flags that only
    /// apply to a sealed volume: --share, --sign-…, --verify-after and --result-file. Downloads no layers.
    /// Exits with 73 if the given size fails the 3x rule and sizing is `enforce`.
    Plan(BuildArgs),
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
    /// List the image caches of this host, the attached volumes and the space
    ///
    /// Root sees the image caches of all tenants, others those of their own. Without a daemon, only the
    /// attached volumes are listed.
    #[command(visible_alias = "status", after_help = cache::STATUS_EXAMPLES)]
    Ls(StatusArgs),
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
    /// Explain an exit code, or an error code of the API
    Explain(ExplainArgs),
    /// Print a completion script for a shell
    ///
    /// For bash: `larder completions bash > /etc/bash_completion.d/larder`.
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write the man pages into a directory
    #[command(hide = true)]
    Man {
        /// Existing directory for the pages
        dir: PathBuf,
    },
    /// Print the version, commit, compiler and features of this program
    Version {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Check or show the configuration
    Config {
        /// Subcommand of `larder config`
        #[command(subcommand)]
        action: ConfigAction,
    },
}

impl Global {
    /// Returns the level that the flags set.
    pub(super) fn level(&self) -> Option<Level> {
        match self.verbose {
            0 => self.log_level.clone(),
            1 => Some(ConfigLevel::Debug.into()),
            _ => Some(ConfigLevel::Trace.into()),
        }
    }
}

impl Command {
    /// Returns the destination of the log: the journal for services.
    pub(super) fn log_destination(&self) -> Destination {
        match self {
            Command::Serve | Command::Snapshotter(_) | Command::Node(_) => Destination::Journal,
            _ => Destination::Console,
        }
    }

    /// Returns `true` if the command reads the default configuration file.
    pub(super) fn reads_configuration(&self) -> bool {
        !matches!(
            self,
            Command::Cache(_)
                | Command::Key { .. }
                | Command::Explain(_)
                | Command::Completions { .. }
                | Command::Man { .. }
                | Command::Version { .. }
        )
    }
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub(super) enum ConfigAction {
    /// Check the configuration file; list every error and exit with 64 if there are any
    Check,
    /// Print the configuration in effect, with the comment and the source of each key
    ///
    /// The source is a line of a file, a variable, a flag or `default`. The output is itself a configuration
    /// file with the same meaning. It contains no secrets, only their hashes and the paths of their files.
    Show {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Print the CustomResourceDefinition of image caches as YAML, for `kubectl apply --server-side -f -`
    Crd,
}

/// Format of the progress on standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum ProgressFormat {
    /// Bars on a terminal, otherwise plain; none with --output json
    #[default]
    Auto,
    /// Lines of text: one every 10 seconds or 10 percent
    Plain,
    /// The events of the build as NDJSON
    Json,
    /// Warnings and errors only
    None,
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

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// For example 73 or CCE.01404001 [default: list all codes]
    pub(super) code: Option<String>,
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

#[cfg(test)]
mod tests;
