//! Export of a sealed volume as one file or directory: an image archive, an image layout or a disk image.
//!
//! | format | output |
//! |---|---|
//! | `oci-layout` | an OCI image layout, a directory |
//! | `oci-archive` | an OCI image layout as one tar |
//! | `docker-archive` | the format of `docker save` |
//! | `raw` | the image file of a disk volume, including holes |
//! | `erofs` | one read-only EROFS image of the whole volume |
//!
//! Layers are rebuilt bit for bit from their trees and tar-split files. If the tar of a layer does not have
//! the diff ID from the image's config, the export fails. Image IDs do not change, because configs are copied
//! unchanged. A new manifest is written if the compression of the layers changes. The same volume gives the
//! same bytes.
//!
//! ```text
//! cache (sealed volume) ─► layer (tar, verified) ─► compress ─► target: layout | tar ─► output (visible once complete)
//! ```
//!
//! [`packaging`] writes the container image of larder itself with the same modules.

mod cache;
mod compress;
mod docker;
mod erofs;
pub mod error;
mod layer;
mod monitor;
mod names;
mod oci;
mod output;
mod pack;
pub mod packaging;
mod raw;
mod restore;
mod summed;
mod tar;
mod target;

use std::path::Path;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

pub use error::Error;
pub use monitor::Monitor;
pub use pack::pack;
pub use restore::{is_image, restore};

use crate::volume::disk;
use cache::Cache;
use larder_model::digest::Digest;
use larder_model::reference::ImageReference;
use larder_model::seal::Compression;
use output::{Directory, Unfinished};
use target::{Layout, Tar, Target};

/// Format of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// An OCI image layout: a directory
    OciLayout,
    /// An OCI image layout as one tar
    OciArchive,
    /// The format of docker save: one tar, layers uncompressed
    DockerArchive,
    /// The image file of a disk volume
    Raw,
    /// One read-only EROFS image of any volume
    Erofs,
}

/// Options of an export.
#[derive(Clone, Debug)]
pub struct Request {
    /// Format of the output.
    pub format: Format,
    /// Compression of the layers in an OCI layout.
    pub compression: Compression,
    /// The images to export; all images if empty.
    pub images: Vec<ImageReference>,
    /// `true` to replace an existing output.
    pub force: bool,
}

/// Result of an export.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The exported images, in order; empty for a disk image, which has all images of the volume.
    pub images: Vec<Exported>,
    /// Bytes written; for a disk image, its length including holes.
    pub size: u64,
    /// Checksum (sha256) of a disk image; `None` for archives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Digest>,
}

/// An exported image of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// The reference as given in the volume's job.
    pub reference: String,
    /// Name in the archive; `None` if the format cannot represent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Digest of its manifest in the archive; `None` in a docker-archive, which has no manifests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Digest>,
    /// Digest of its config: the image ID, which is the same in every format.
    pub config: Digest,
}

/// Exports the sealed volume at `volume` to the path `out`.
///
/// # Errors
/// Any [`Error`]. On failure nothing is created at `out`, and an existing output is unchanged.
pub fn export(volume: &Path, out: &Path, request: &Request, monitor: &Monitor) -> Result<Report, Error> {
    match request.format {
        Format::Raw => raw::export(volume, out, request, monitor),
        Format::Erofs => erofs::export(volume, out, request, monitor),
        Format::OciLayout => {
            let directory = Directory::begin(out, request.force)?;
            let mut layout = Layout::new(directory.dir()?);
            let report = archive(volume, request, &mut layout, monitor)?;
            directory.finish()?;
            Ok(report)
        }
        Format::OciArchive | Format::DockerArchive => {
            let unfinished = Unfinished::begin(out, request.force)?;
            let mut tar = Tar::of_file(unfinished.file()?);
            let report = archive(volume, request, &mut tar, monitor)?;
            unfinished.finish()?;
            Ok(report)
        }
    }
}

/// Exports to a stream. If it fails, the stream has received only a part.
///
/// # Errors
/// Any [`Error`]; of class Invalid for formats that cannot be written to a stream.
pub fn export_to(
    volume: &Path,
    out: Box<dyn std::io::Write + Send + '_>,
    request: &Request,
    monitor: &Monitor,
) -> Result<Report, Error> {
    match request.format {
        Format::Raw => raw::export_to(volume, out, monitor),
        Format::OciLayout | Format::Erofs => Err(Error::ToStream),
        Format::OciArchive | Format::DockerArchive => {
            archive(volume, request, &mut Tar::of_stream(out), monitor)
        }
    }
}

/// Returns the names of the images of a sealed volume.
///
/// # Errors
/// The volume cannot be read or is not sealed.
pub fn images(volume: &Path) -> Result<Vec<ImageReference>, Error> {
    let entered = disk::enter(volume)?;
    let cache = Cache::open(entered.path())?;
    let names = cache.choose(&[])?.into_iter().map(|image| {
        let name = image.name.parse();
        name.map_err(|e| Error::Contradiction { what: format!("an image has no name: {e}") })
    });
    names.collect()
}

fn archive(
    volume: &Path,
    request: &Request,
    target: &mut dyn Target,
    monitor: &Monitor,
) -> Result<Report, Error> {
    let entered = disk::enter(volume)?;
    let cache = Cache::open(entered.path())?;
    let images = cache.choose(&request.images)?;
    monitor.expect(cache.bytes(&images));
    let exported = match request.format {
        Format::DockerArchive => docker::write(&cache, &images, target, monitor)?,
        format => {
            let with_docker_list = format == Format::OciArchive;
            oci::write(&cache, &images, request.compression, with_docker_list, target, monitor)?
        }
    };
    let size = target.finish()?;
    Ok(Report { images: exported, size, sha256: None })
}
