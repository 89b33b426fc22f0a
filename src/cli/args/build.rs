//! Arguments of `larder build` and `larder plan`, and the flags that they share with `larder import`.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use clap::Args;

use super::creds::Creds;
use super::{CREDENTIALS, OUTPUT, OutputArgs, ProgressFormat, SECURITY, SOURCE, TRANSFER, VOLUME, values};
use crate::builder::order::{ImageSource, MirrorOf};
use crate::config::registry::MAX_RETRIES;
use larder_model::job::{LayerFormat, VolumeKind};
use larder_model::key::Claims;
use larder_model::platform::Platform;
use larder_model::pull_secret::PullSecretName;
use larder_model::reference::ImageReference;
use larder_model::size::VolumeSize;
use larder_model::sizing::Sizing;

pub(super) const BUILD_USAGE: &str = "larder build [OPTIONS] --volume <DIR> --size <SIZE> <IMAGE>...
       larder build [OPTIONS] --volume <DIR> --job <FILE>";

pub(super) const BUILD_EXAMPLES: &str = "\
Examples:
  larder build --volume ./cache --size 20GiB nginx:1.27 redis:7
  larder build --job - --volume /cache --output json < job.json

Flags override the job, and the job overrides the configuration. Sizes take
KiB, MiB, GiB, TiB (also K, Ki, …) and kB, MB, GB, TB.

After Ctrl-C, the same command resumes the volume; a second Ctrl-C quits
immediately. With --output json, closing the reading end of standard output
stops the build like Ctrl-C (exit 130).

Credentials are searched in this order; with --creds only there:
  1. the secrets of --pull-secret
  2. --authfile, then --docker-config
  3. without these two: $DOCKER_CONFIG/config.json or ~/.docker/config.json,
     then $REGISTRY_AUTH_FILE or $XDG_RUNTIME_DIR/containers/auth.json
Credential helpers in these files are used.";

/// Arguments of `larder build` and `larder plan`.
#[derive(Debug, Default, Args)]
pub(in crate::cli) struct BuildArgs {
    /// Images, for example nginx:1.27 or registry.example.com/team/app@sha256:…
    #[arg(value_name = "IMAGE")]
    pub(in crate::cli) images: Vec<ImageReference>,
    /// Build job as JSON instead of images; - reads standard input
    #[arg(short = 'f', long, value_name = "FILE", help_heading = SOURCE)]
    pub(in crate::cli) job: Option<PathBuf>,
    /// Directory of the volume: empty, or from an earlier run of the same job. With kind block, the device.
    /// Required by build.
    #[arg(long, value_name = "DIR", help_heading = VOLUME)]
    pub(in crate::cli) volume: Option<PathBuf>,
    #[command(flatten)]
    pub(in crate::cli) options: BuildOptions,
    #[command(flatten)]
    pub(in crate::cli) credentials: CredentialArgs,
    #[command(flatten)]
    pub(in crate::cli) hosts: HostArgs,
    /// Maximum number of connections per host [default: {registry.connections_per_host}]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256), help_heading = TRANSFER)]
    pub(in crate::cli) connections_per_host: Option<u16>,
    /// Maximum number of retries of a request without progress [default: {registry.retries}]
    ///
    /// By default, a registry that refuses connections, cannot be found or does not answer gets fewer, and
    /// two minutes at most: registry.unreachable_retries of the configuration. With this flag, it gets N too.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=i64::from(MAX_RETRIES)), help_heading = TRANSFER)]
    pub(in crate::cli) retries: Option<u32>,
    /// Maximum bytes per second over all registries, for example 20MiB/s [default: no limit]
    #[arg(long, value_name = "SIZE/s", value_parser = values::rate, help_heading = TRANSFER)]
    pub(in crate::cli) limit_rate: Option<u64>,
    /// Cache name to include in the signature, for `attach --name`
    #[arg(long, value_name = "NAME", value_parser = sign_name, help_heading = SECURITY)]
    pub(in crate::cli) sign_name: Option<String>,
    /// Sequence number to include in the signature; increase it for later volumes of the same name [default:
    /// the time, seconds since 1970]
    #[arg(long, value_name = "NUMBER", help_heading = SECURITY)]
    pub(in crate::cli) sign_sequence: Option<u64>,
    /// Write the timeline of the build to this HTML file: a row for each layer, and what determined the
    /// duration. It loads nothing else, so it can be sent.
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    pub(in crate::cli) timeline: Option<PathBuf>,
    /// Niceness of the build, 0 to 19 as in nice(1)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=19), help_heading = TRANSFER)]
    pub(in crate::cli) nice: Option<u8>,
    /// Kill this process when its parent ends
    ///
    /// For supervisors, so that no unwatched build is left behind. Linux ties it to the thread that started
    /// this process. With PID, the process ID of the supervisor, this also detects a supervisor that ended
    /// before the build started.
    #[arg(long, value_name = "PID", num_args = 0..=1, require_equals = true, help_heading = TRANSFER)]
    pub(in crate::cli) die_with_parent: Option<Option<u32>>,
    /// The source of the images. Only `import` sets it.
    #[arg(skip)]
    pub(in crate::cli) source: Option<ImageSource>,
}

/// Flags of every command that fills a volume: `build`, `plan` and `import`.
#[derive(Debug, Default, Args)]
pub(in crate::cli) struct BuildOptions {
    /// Type of storage for the volume [default: directory]
    ///
    /// For all kinds but directory, the kernel enforces the size limit. Kinds disk and block need root and
    /// e2fsprogs; disk also needs loop devices. For these kinds `import` needs --size and --image, because
    /// the process that creates the disk does not read the archive.
    #[arg(long, value_enum, value_name = "KIND", help_heading = VOLUME)]
    pub(in crate::cli) volume_kind: Option<VolumeKind>,
    #[command(flatten)]
    pub(in crate::cli) disk: DiskArgs,
    /// Maximum size of the volume, for example 20GiB, or auto. Required by build, unless the job sets it
    /// [default of import: ten times the compressed images]
    ///
    /// `auto` is three times the compressed images, rounded up to MiB, at least 16 MiB, for `import` ten
    /// times. The command prints it. The images are resolved once more for that. A sealed volume keeps its
    /// size.
    #[arg(long, value_name = "SIZE", value_parser = values::volume_size, help_heading = VOLUME)]
    pub(in crate::cli) size: Option<VolumeSize>,
    /// Start over: delete everything on the volume first, whatever job it belongs to
    ///
    /// Files that Larder did not create are kept. A volume that is attached, mounted or used by another build
    /// is not changed, and the command exits with 75. With kind block, use --format-device.
    #[arg(long, help_heading = VOLUME)]
    pub(in crate::cli) force: bool,
    /// Action if the volume is smaller than three times the compressed images [default: {build.sizing}]
    #[arg(long, value_enum, value_name = "POLICY", help_heading = VOLUME)]
    pub(in crate::cli) sizing: Option<Sizing>,
    /// Platform as os/architecture[/variant] [default: this host's]
    #[arg(long, value_name = "PLATFORM", help_heading = SOURCE)]
    pub(in crate::cli) platform: Option<Platform>,
    /// Maximum number of layers in parallel [default: {build.concurrency}]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256), help_heading = TRANSFER)]
    pub(in crate::cli) concurrency: Option<u16>,
    #[command(flatten)]
    pub(in crate::cli) output: OutputArgs,
    /// Format of the progress on standard error
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT", help_heading = OUTPUT)]
    pub(in crate::cli) progress: ProgressFormat,
    /// Print only warnings and errors: --progress none, and no summary on standard output
    #[arg(short, long, conflicts_with = "progress", help_heading = OUTPUT)]
    pub(in crate::cli) quiet: bool,
    #[command(flatten)]
    pub(in crate::cli) layers: LayerArgs,
    /// Work without the privileges that a layer needs; `inspect` shows what could not be preserved
    #[arg(long, help_heading = SECURITY)]
    pub(in crate::cli) rootless: bool,
    /// Reuse layers of the volumes in DIR/volumes, which must also contain --volume. Concurrent builds with
    /// the same DIR fetch each layer once.
    #[arg(long, value_name = "DIR", help_heading = VOLUME)]
    pub(in crate::cli) share: Option<PathBuf>,
    /// Sign the sealed volume with this private key, an Ed25519 PEM file from `larder key generate` [default:
    /// build.sign_key of the configuration, else no signature]
    ///
    /// The signature is written to cache.json.sig next to cache.json; `verify --trust` checks it. The key
    /// file must be readable by its owner only. If the volume is already sealed, it must be signed with this
    /// key, otherwise the command exits with 73.
    #[arg(long, value_name = "FILE", help_heading = SECURITY)]
    pub(in crate::cli) sign_key: Option<PathBuf>,
    /// Verify the contents of the sealed volume before exiting
    #[arg(long, help_heading = SECURITY)]
    pub(in crate::cli) verify_after: bool,
    /// Write the result to this file as one JSON line under 4 KiB, on success and failure
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    pub(in crate::cli) result_file: Option<PathBuf>,
    /// Stop after this time, for example 30m, or at this time (RFC 3339), with exit code 75; the volume stays
    /// resumable
    #[arg(long, value_name = "TIME", value_parser = values::time, help_heading = TRANSFER)]
    pub(in crate::cli) deadline: Option<DateTime<Utc>>,
    /// Read registries and layers in unconfined processes
    ///
    /// For systems on which the sandbox does not work. By default a build uses three processes. One fetches
    /// and has no access to files. One extracts and has access to the volume only. The main process holds
    /// keys and secrets. The first two run in their own namespaces, with few capabilities, Landlock and a
    /// list of allowed system calls; see SECURITY.md. Missing system features are reported in one line.
    #[arg(long, help_heading = SECURITY)]
    pub(in crate::cli) no_sandbox: bool,
}

/// Options for creating and sealing a disk.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(in crate::cli) struct DiskArgs {
    /// Kind disk: allocate host space as it is used, instead of reserving all of it first
    #[arg(long, help_heading = VOLUME)]
    pub(in crate::cli) sparse: bool,
    /// Kind disk: shrink the sealed disk to the smallest size that fits its content
    #[arg(long, help_heading = VOLUME)]
    pub(in crate::cli) shrink: bool,
    /// Kind block: format the device even if it contains data; all of it is lost
    #[arg(long, help_heading = VOLUME)]
    pub(in crate::cli) format_device: bool,
}

/// Options for registry credentials.
#[derive(Clone, Debug, Default, Args)]
pub(in crate::cli) struct CredentialArgs {
    /// File with registry credentials, as podman login and docker login write it, for example auth.json
    #[arg(long = "authfile", value_name = "FILE", help_heading = CREDENTIALS)]
    pub(in crate::cli) auth_file: Option<PathBuf>,
    /// User name and password for the registries of the images, instead of all other credentials. The command
    /// line is visible to other users of this host: prefer --authfile
    ///
    /// Mirrors with another name do not get the password, and no child process gets it on its command line.
    #[arg(long, value_name = "USER:PASSWORD", help_heading = CREDENTIALS)]
    pub(in crate::cli) creds: Option<Creds>,
    /// Directory with a docker config.json; repeatable, tried in order after the pull secrets
    #[arg(long = "docker-config", value_name = "DIR", help_heading = CREDENTIALS)]
    pub(in crate::cli) docker_configs: Vec<PathBuf>,
    /// Directory of secrets in Kubernetes' format: NAMESPACE/NAME/.dockerconfigjson or .dockercfg
    #[arg(long, value_name = "DIR", help_heading = CREDENTIALS)]
    pub(in crate::cli) secrets: Option<PathBuf>,
    /// Pull secret in --secrets, as namespace:name; repeatable, tried in order
    #[arg(long = "pull-secret", value_name = "NAMESPACE:NAME", help_heading = CREDENTIALS)]
    pub(in crate::cli) pull_secrets: Vec<PullSecretName>,
}

/// Options for connections to the registries of the images. They take precedence over `[[registry.host]]`.
#[derive(Clone, Debug, Default, Args)]
pub(in crate::cli) struct HostArgs {
    /// Verify the certificates of registries and mirrors, and use HTTPS only [default: true, but loopback can
    /// use plain HTTP]
    ///
    /// With --tls-verify=false, any certificate is accepted, and plain HTTP if a server does not support TLS.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        help_heading = TRANSFER)]
    pub(in crate::cli) tls_verify: Option<bool>,
    /// Additional certificate authority of registries and mirrors, a PEM file; repeatable
    #[arg(long = "ca", value_name = "FILE", help_heading = TRANSFER)]
    pub(in crate::cli) authorities: Vec<PathBuf>,
    /// Mirror to try before REGISTRY, by default before every registry; repeatable, tried in order
    #[arg(long = "mirror", value_name = "[REGISTRY=]URL", help_heading = TRANSFER)]
    pub(in crate::cli) mirrors: Vec<MirrorOf>,
}

/// Options for the layers on the volume.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(in crate::cli) struct LayerArgs {
    /// Format of the layers on the volume: directories, or EROFS images [default:
    /// {build.layer_format}]
    ///
    /// Each EROFS image is written as one file and needs no root and no capabilities. containerd 2.4 and
    /// newer use the erofs/ directory of the volume as a layer content cache. For other runtimes, `larder
    /// mount` mounts the images.
    #[arg(long, value_enum, value_name = "FORM", help_heading = VOLUME)]
    pub(in crate::cli) layer_format: Option<LayerFormat>,
    /// Append a dm-verity hash tree to each image, and write the file that containerd reads for it; needs
    /// --layer-format erofs
    #[arg(long, help_heading = VOLUME)]
    pub(in crate::cli) verity: bool,
    /// Write no tar-split files: faster, but verify and export then reject the volume
    #[arg(long, help_heading = VOLUME)]
    pub(in crate::cli) no_tar_split: bool,
}

fn sign_name(text: &str) -> Result<String, String> {
    match Claims::is_name(text) {
        true => Ok(text.to_owned()),
        false => Err("use 1 to 255 bytes without control characters".to_owned()),
    }
}
