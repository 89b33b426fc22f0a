//! Arguments of `larder bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{BuildArgs, BuildOptions, CredentialArgs, LayerArgs, OutputArgs};
use larder_model::bench_report::Kind;
use larder_model::job::LayerFormat;
use larder_model::platform::Platform;
use larder_model::reference::ImageReference;

pub(super) const EXAMPLES: &str = "\
Examples:
  larder bench decode nginx:1.27
  larder bench build nginx:1.27 --dir /var/lib/larder --layer-format erofs

All files are created in new directories in DIR, larder-bench-<UUID>, which are
removed at the end, also after a failure or interruption. On ext4, especially
without a journal, wait a few minutes between benchmarks: creating files is slow
where others were just removed. Other load on the machine lowers the results,
and is reported.";

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum BenchKind {
    /// Measure decompressing and hashing the layers of IMAGE
    Decode(DecodeArgs),
    /// Measure building a volume of IMAGE from local files, without the network
    Apply(FillArgs),
    /// Measure building a volume of IMAGE from its registry
    Build(FillArgs),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct MeasureArgs {
    /// Image, for example nginx:1.27; an image that takes several seconds gives better results than a small
    /// one
    image: ImageReference,
    /// Platform as os/architecture[/variant] [default: this host's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    #[command(flatten)]
    credentials: CredentialArgs,
    /// Maximum number of layers in parallel [default: {build.concurrency}]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    concurrency: Option<u16>,
    /// Maximum number of connections per host [default: {registry.connections_per_host}]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    connections_per_host: Option<u16>,
    /// Number of runs; the report has the median and the spread of each figure
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    runs: u16,
    /// Also write the report as a page with pictures to FILE
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct DecodeArgs {
    #[command(flatten)]
    measure: MeasureArgs,
    /// Directory for the compressed layers during the run [default: the directory for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct FillArgs {
    #[command(flatten)]
    measure: MeasureArgs,
    /// Directory on the file system to measure; for each run, it needs space for the compressed image plus
    /// twice its decompressed size
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Format of the layers on the volume, as for build [default: {build.layer_format}]
    #[arg(long, value_enum, value_name = "FORM")]
    layer_format: Option<LayerFormat>,
    /// Write no tar-split files, as for build
    #[arg(long)]
    no_tar_split: bool,
    /// Build without the privileges that a layer needs, as for build
    #[arg(long)]
    rootless: bool,
}

/// A benchmark as ordered on the command line.
#[derive(Debug)]
pub(in crate::cli) struct BenchOrder {
    pub(in crate::cli) kind: Kind,
    pub(in crate::cli) dir: PathBuf,
    pub(in crate::cli) runs: u16,
    /// The file for the page; `None` for no page.
    pub(in crate::cli) html: Option<PathBuf>,
    /// Arguments of the equivalent build.
    pub(in crate::cli) build: BuildArgs,
}

impl BenchKind {
    /// Returns the ordered benchmark.
    pub(in crate::cli) fn into_order(self) -> BenchOrder {
        match self {
            BenchKind::Decode(DecodeArgs { mut measure, dir }) => BenchOrder {
                kind: Kind::Decode,
                dir: dir.unwrap_or_else(std::env::temp_dir),
                runs: measure.runs,
                html: measure.html.take(),
                build: measure.into(),
            },
            BenchKind::Apply(args) => args.into_order(Kind::Apply),
            BenchKind::Build(args) => args.into_order(Kind::Build),
        }
    }
}

impl FillArgs {
    fn into_order(mut self, kind: Kind) -> BenchOrder {
        let (runs, html) = (self.measure.runs, self.measure.html.take());
        BenchOrder { kind, dir: self.dir.clone(), runs, html, build: self.into() }
    }
}

impl From<MeasureArgs> for BuildArgs {
    fn from(args: MeasureArgs) -> Self {
        BuildArgs {
            images: vec![args.image],
            options: BuildOptions {
                platform: args.platform,
                concurrency: args.concurrency,
                output: args.output,
                ..BuildOptions::default()
            },
            credentials: args.credentials,
            connections_per_host: args.connections_per_host,
            ..BuildArgs::default()
        }
    }
}

impl From<FillArgs> for BuildArgs {
    fn from(args: FillArgs) -> Self {
        let FillArgs { measure, layer_format, no_tar_split, rootless, .. } = args;
        let mut args = BuildArgs::from(measure);
        args.options.layers = LayerArgs { layer_format, no_tar_split, verity: false };
        args.options.rootless = rootless;
        args
    }
}
