//! Arguments of the commands that read sealed volumes.

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Directory of the volume, image file or block device
    pub(super) volume: PathBuf,
    /// Verify on behalf of another larder process, and print the verdict as JSON
    #[arg(long, hide = true)]
    pub(super) for_use: bool,
    /// Reject (77) a volume that is not signed with this public key: the line that `larder key public`
    /// prints, or a file with such lines or PEMs; repeatable
    ///
    /// Without this flag, an existing signature must still be valid, with any key.
    #[arg(long, value_name = "KEY|FILE")]
    pub(super) trust: Vec<String>,
    /// Reject (65) a volume whose cache.json does not have this digest
    #[arg(long, value_name = "DIGEST")]
    pub(super) digest: Option<Digest>,
}

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// Directory of the volume
    pub(super) volume: PathBuf,
    /// Output: a file, a directory for oci-layout, or - for standard output
    pub(super) out: PathBuf,
    /// Format of the output
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(super) format: export::Format,
    /// Compression of the layers in oci-layout and oci-archive [default: gzip]
    #[arg(long, value_enum, value_name = "COMPRESSION")]
    pub(super) compression: Option<Compression>,
    /// Export only this image; repeatable [default: all]
    #[arg(long = "image", value_name = "IMAGE")]
    pub(super) images: Vec<ImageReference>,
    /// Replace OUT if it exists
    #[arg(long)]
    pub(super) force: bool,
    /// Format of the summary, which goes to standard error if OUT is -
    #[arg(long, value_enum, default_value_t = Output::Text, value_name = "FORM")]
    pub(super) output: Output,
}

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// Directory of the volume, image file or block device
    pub(super) volume: PathBuf,
    /// Print cache.json as JSON instead of a summary
    #[arg(long)]
    pub(super) json: bool,
    /// Also report layer fragmentation (extents); opens every file. With --json, in the field `placement`
    #[arg(long)]
    pub(super) extents: bool,
}

#[derive(Debug, Args)]
pub(super) struct MountArgs {
    /// Directory of the volume, image file or block device
    pub(super) volume: PathBuf,
    /// Image reference, as given to build
    pub(super) image: ImageReference,
    /// Mount point for the image
    pub(super) dir: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct UmountArgs {
    /// Directory that was passed to `mount`
    pub(super) dir: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct PrefetchArgs {
    /// Directory of the volume, image file or block device
    ///
    /// A disk that is not mounted is mounted for the duration of the command. This loads its blocks from the
    /// snapshot, but leaves nothing in the page cache. To keep the content in memory, mount the disk first.
    pub(super) volume: PathBuf,
    /// Image reference, as given to build; repeatable [default: all images of the volume]
    #[arg(long = "image", value_name = "IMAGE")]
    pub(super) images: Vec<ImageReference>,
    /// Also read every file of the images' layers, after the files on the list
    #[arg(long)]
    pub(super) all: bool,
}

const EXPORT_EXAMPLES: &str = "\
Examples:
  larder export ./cache images.tar --format oci-archive
  larder export ./cache - --format docker-archive --image nginx:1.27 | ssh node podman load
  larder export ./cache ./layout --format oci-layout --compression zstd

podman load, skopeo copy and ctr images import read all three archive formats; docker load reads docker-archive.
Every tool reads gzip. zstd is smaller and much faster, and needs containerd 1.5, podman, skopeo, or docker 23 or newer.
none is the fastest, and suits networks that compress.";

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
