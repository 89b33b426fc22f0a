//! `larder bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{CredentialArgs, LayerArgs, OrderArgs, Output};
use larder_model::bench_report::Kind;
use larder_model::job::LayerFormat;
use larder_model::platform::Platform;
use larder_model::reference::ImageReference;

pub(super) const EXAMPLES: &str = "\
Examples:
  larder bench decode nginx:1.27
  larder bench apply nginx:1.27 --dir /var/lib/larder
  larder bench build nginx:1.27 --dir /var/lib/larder --layer-format erofs
  larder bench build nginx:1.27 --dir /mnt/volume --concurrency 8 --output json

Everything lies in a new directory in DIR, larder-bench-<UUID>, which is gone afterwards, also when it fails or is
interrupted. On an ext4, without a journal above all, wait some minutes before the next run: making files is slow there where
others were just removed. On a machine that has something else to do the numbers are of what is left of it.";

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum BenchKind {
    /// Inflate and hash the layers of IMAGE
    Decode(DecodeArgs),
    /// Build a volume of IMAGE from files: everything but the network
    Apply(FillArgs),
    /// Build a volume of IMAGE from its registry
    Build(FillArgs),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct MeasureArgs {
    /// Image, as in nginx:1.27; one that takes some seconds tells more than a small one
    image: ImageReference,
    /// Platform as os/architecture[/variant] [default: this host's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    #[command(flatten)]
    credentials: CredentialArgs,
    /// Most layers at once [default: the configuration's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    concurrency: Option<u16>,
    /// Most connections to one host [default: the configuration's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    connections_per_host: Option<u16>,
    /// Form of standard output; json also silences the progress on standard error
    #[arg(long, value_enum, default_value_t = Output::Text, value_name = "FORM")]
    output: Output,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct DecodeArgs {
    #[command(flatten)]
    measure: MeasureArgs,
    /// Directory that the compressed layers are kept in meanwhile [default: the one for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct FillArgs {
    #[command(flatten)]
    measure: MeasureArgs,
    /// Directory on the file system to be measured; the compressed image and twice what it inflates to have room there
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Form in which layers lie on the volume, as of build [default: the configuration's]
    #[arg(long, value_enum, value_name = "FORM")]
    layer_format: Option<LayerFormat>,
    /// Write no tar-split files, as of build
    #[arg(long)]
    no_tar_split: bool,
    /// Build without the privileges a layer asks for, as of build
    #[arg(long)]
    rootless: bool,
}

impl BenchKind {
    /// What to measure, where, and the order of such a build.
    pub(in crate::cli) fn into_order(self) -> (Kind, PathBuf, OrderArgs) {
        match self {
            BenchKind::Decode(DecodeArgs { measure, dir }) => {
                (Kind::Decode, dir.unwrap_or_else(std::env::temp_dir), measure.into())
            }
            BenchKind::Apply(args) => (Kind::Apply, args.dir.clone(), args.into()),
            BenchKind::Build(args) => (Kind::Build, args.dir.clone(), args.into()),
        }
    }
}

impl From<MeasureArgs> for OrderArgs {
    fn from(args: MeasureArgs) -> Self {
        OrderArgs {
            images: vec![args.image],
            platform: args.platform,
            credentials: args.credentials,
            concurrency: args.concurrency,
            connections_per_host: args.connections_per_host,
            output: args.output,
            ..OrderArgs::default()
        }
    }
}

impl From<FillArgs> for OrderArgs {
    fn from(args: FillArgs) -> Self {
        let FillArgs { measure, layer_format, no_tar_split, rootless, .. } = args;
        let layers = LayerArgs { layer_format, no_tar_split, verity: false };
        OrderArgs { layers, rootless, ..measure.into() }
    }
}
