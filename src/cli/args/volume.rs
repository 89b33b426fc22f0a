//! Arguments of the commands that read sealed volumes.

use std::path::PathBuf;

use clap::Args;

use super::OutputArgs;
use crate::export;
use larder_model::digest::Digest;
use larder_model::reference::ImageReference;
use larder_model::seal::Compression;

pub(super) const EXPORT_EXAMPLES: &str = "\
Examples:
  larder export ./cache images.tar --format oci-archive
  larder export ./cache - --format docker-archive | ssh node podman load

podman load, skopeo copy and ctr images import read all three archive formats;
docker load reads docker-archive. Every tool reads gzip. zstd is smaller and
much faster, and needs containerd 1.5, podman, skopeo, or docker 23 or newer.
none is the fastest, and suits networks that compress.";

#[derive(Debug, Args)]
pub(in crate::cli) struct VerifyArgs {
    /// Directory of the volume, image file or block device
    pub(in crate::cli) volume: PathBuf,
    /// Reject (77) a volume that is not signed with this public key: the line that `larder key public`
    /// prints, or a file with such lines or PEMs; repeatable
    ///
    /// Without this flag, an existing signature must still be valid, with any key.
    #[arg(long, value_name = "KEY|FILE")]
    pub(in crate::cli) trust: Vec<String>,
    /// Reject (65) a volume whose cache.json does not have this digest
    #[arg(long, value_name = "DIGEST")]
    pub(in crate::cli) digest: Option<Digest>,
    #[command(flatten)]
    pub(in crate::cli) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ExportArgs {
    /// Directory of the volume
    pub(in crate::cli) volume: PathBuf,
    /// Output: a file, a directory for oci-layout, or - for standard output
    pub(in crate::cli) out: PathBuf,
    /// Format of the output
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(in crate::cli) format: export::Format,
    /// Compression of the layers in oci-layout and oci-archive [default: gzip]
    #[arg(long, value_enum, value_name = "COMPRESSION")]
    pub(in crate::cli) compression: Option<Compression>,
    /// Export only this image; repeatable [default: all]
    #[arg(long = "image", value_name = "IMAGE")]
    pub(in crate::cli) images: Vec<ImageReference>,
    /// Replace OUT if it exists
    #[arg(long)]
    pub(in crate::cli) force: bool,
    // The summary goes to standard error if OUT is -.
    #[command(flatten)]
    pub(in crate::cli) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct InspectArgs {
    /// Directory of the volume, image file or block device
    pub(in crate::cli) volume: PathBuf,
    // The JSON is that of cache.json.
    #[command(flatten)]
    pub(in crate::cli) output: OutputArgs,
    /// Also report layer fragmentation (extents); opens every file. With --json, in the field `placement`
    #[arg(long)]
    pub(in crate::cli) extents: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct MountArgs {
    /// Directory of the volume, image file or block device
    pub(in crate::cli) volume: PathBuf,
    /// Image reference, as given to build
    pub(in crate::cli) image: ImageReference,
    /// Mount point for the image
    pub(in crate::cli) dir: PathBuf,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct UmountArgs {
    /// Directory that was passed to `mount`
    pub(in crate::cli) dir: PathBuf,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct PrefetchArgs {
    /// Directory of the volume, image file or block device
    ///
    /// A disk that is not mounted is mounted for the duration of the command. This loads its blocks from the
    /// snapshot, but leaves nothing in the page cache. To keep the content in memory, mount the disk first.
    pub(in crate::cli) volume: PathBuf,
    /// Image reference, as given to build; repeatable [default: all images of the volume]
    #[arg(long = "image", value_name = "IMAGE")]
    pub(in crate::cli) images: Vec<ImageReference>,
    /// Also read every file of the images' layers, after the files on the list
    #[arg(long)]
    pub(in crate::cli) all: bool,
    #[command(flatten)]
    pub(in crate::cli) output: OutputArgs,
}
