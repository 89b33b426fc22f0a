//! Arguments of `larder import`.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use clap::Args;

use super::{DiskArgs, LayerArgs, OrderArgs, Output};
use crate::archive;
use crate::builder::order::ImageSource;
use larder_model::job::VolumeKind;
use larder_model::platform::Platform;
use larder_model::reference::ImageReference;
use larder_model::size::ByteSize;
use larder_model::sizing::Sizing;

pub(super) const IMPORT_EXAMPLES: &str = "\
Examples:
  larder import images.tar --volume ./cache
  docker save app:1 | larder import - --volume ./cache
  larder import ./layout --volume ./cache --image registry.example.com/app:1 --size 4GiB

Supported inputs: OCI layouts, tar archives of them, docker save archives, and directories that skopeo writes (dir:).
A tar can be compressed as a whole with gzip or zstd. Compressed tars and standard input are copied to a temporary file
(TMPDIR) during the import; a plain file is read in place.

A disk image, as `export --format raw` writes it, becomes a volume of kind disk. It is compared with the .sha256 file
next to it, if there is one, and verified in full before it is accepted. Only --volume and --output apply to it.

To import into a daemon's image cache instead, use `larder cache import`.";

#[derive(Debug, Args)]
pub(in crate::cli) struct ImportArgs {
    /// Archive or disk image (raw, erofs): a file, a directory, or - for standard input
    pub(in crate::cli) input: PathBuf,
    /// Archive format [default: detected]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(in crate::cli) format: Option<archive::Format>,
    /// Directory of the volume: empty, or from an earlier import of the same images
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) volume: PathBuf,
    /// Type of storage for the volume [default: directory]
    ///
    /// Kinds disk and block need --size and --image, because the process that creates the disk does not read
    /// the archive.
    #[arg(long, value_enum, value_name = "KIND")]
    pub(in crate::cli) volume_kind: Option<VolumeKind>,
    #[command(flatten)]
    pub(in crate::cli) disk: DiskArgs,
    /// Maximum size of the volume, for example 20GiB [default: ten times the compressed images]
    #[arg(long, value_name = "SIZE")]
    pub(in crate::cli) size: Option<ByteSize>,
    /// Import only this image; repeatable. Also names an image that has no name [default: all images]
    #[arg(long = "image", value_name = "IMAGE")]
    pub(in crate::cli) images: Vec<ImageReference>,
    /// Action if the volume is smaller than three times the compressed images [default: enforce]
    #[arg(long, value_enum, value_name = "POLICY")]
    pub(in crate::cli) sizing: Option<Sizing>,
    /// Platform as os/architecture[/variant] [default: this host's]
    #[arg(long, value_name = "PLATFORM")]
    pub(in crate::cli) platform: Option<Platform>,
    /// Maximum number of layers in parallel [default: the configuration's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(in crate::cli) concurrency: Option<u16>,
    /// Format of the standard output, as for build
    #[arg(long, value_enum, default_value_t = Output::Text, value_name = "FORM")]
    pub(in crate::cli) output: Output,
    #[command(flatten)]
    pub(in crate::cli) layers: LayerArgs,
    /// Import without the privileges that a layer needs; `inspect` shows what could not be preserved
    #[arg(long)]
    pub(in crate::cli) rootless: bool,
    /// Reuse layers of the volumes in DIR/volumes, which must also contain --volume
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) share: Option<PathBuf>,
    /// Sign the sealed volume with this private key, an Ed25519 PEM file from `larder key generate` [default:
    /// the configuration's build.sign_key]
    ///
    /// The signature is written to cache.json.sig next to cache.json; `verify --trust` checks it. The key
    /// file must be readable by its owner only. If the volume is already sealed, it must be signed with this
    /// key, otherwise the import exits with 73.
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) sign_key: Option<PathBuf>,
    /// Verify the contents of the sealed volume before exiting
    #[arg(long)]
    pub(in crate::cli) verify_after: bool,
    /// Write the result to this file as one JSON line under 4 KiB, on success and failure
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) result_file: Option<PathBuf>,
    /// Stop at this time (RFC 3339) with exit code 75; the volume stays resumable
    #[arg(long, value_name = "TIME")]
    pub(in crate::cli) deadline: Option<DateTime<Utc>>,
    /// Read the archive and the layers in unconfined processes; see build
    #[arg(long)]
    pub(in crate::cli) no_sandbox: bool,
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
            source: Some(ImageSource::Archive { path: args.input, format: args.format, received: false }),
            ..OrderArgs::default()
        }
    }
}
