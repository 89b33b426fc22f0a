//! Arguments of `larder import`.

use std::path::PathBuf;

use clap::Args;

use super::{BuildArgs, BuildOptions, SOURCE, VOLUME};
use crate::archive;
use crate::builder::order::ImageSource;
use larder_model::reference::ImageReference;

pub(super) const IMPORT_EXAMPLES: &str = "\
Examples:
  larder import images.tar --volume ./cache
  docker save app:1 | larder import - --volume ./cache

Supported inputs: OCI layouts, tar archives of them, docker save archives, and
directories that skopeo writes (dir:). A tar can be compressed as a whole with
gzip or zstd. Compressed tars and standard input are copied to a temporary file
(TMPDIR) during the import; a plain file is read in place.

A disk image, as `export --format raw` writes it, becomes a volume of kind disk.
It is compared with the .sha256 file next to it, if there is one, and verified
in full before it is accepted. Only --volume and --output apply to it.

To import into a daemon's image cache instead, use `larder cache import`.";

/// Arguments of `larder import`.
#[derive(Debug, Args)]
pub(in crate::cli) struct ImportArgs {
    /// Archive or disk image (raw, erofs): a file, a directory, or - for standard input
    pub(in crate::cli) input: PathBuf,
    /// Archive format [default: detected]
    #[arg(long, value_enum, value_name = "FORMAT", help_heading = SOURCE)]
    pub(in crate::cli) format: Option<archive::Format>,
    /// Directory of the volume: empty, or from an earlier import of the same images
    #[arg(long, value_name = "DIR", help_heading = VOLUME)]
    pub(in crate::cli) volume: PathBuf,
    /// Import only this image; repeatable. Also names an image that has no name [default: all images]
    #[arg(long = "image", value_name = "IMAGE", help_heading = SOURCE)]
    pub(in crate::cli) images: Vec<ImageReference>,
    #[command(flatten)]
    pub(in crate::cli) options: BuildOptions,
}

impl From<ImportArgs> for BuildArgs {
    fn from(args: ImportArgs) -> Self {
        let ImportArgs { input, format, volume, images, options } = args;
        let source = Some(ImageSource::Archive { path: input, format, received: false });
        BuildArgs { images, volume: Some(volume), options, source, ..BuildArgs::default() }
    }
}
