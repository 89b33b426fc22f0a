//! A sealed volume as one thing that can be carried away: an archive of images, a layout, an image of the disk.
//!
//! | format | what it is |
//! |---|---|
//! | `oci-layout` | an OCI image layout, a directory |
//! | `oci-archive` | the same as one tar |
//! | `docker-archive` | what `docker save` writes |
//! | `raw` | the image file of a disk volume, holes and all |
//! | `erofs` | one read-only EROFS image of the whole volume |
//!
//! Layers are rebuilt from their trees and tar-split files, bit for bit: a layer whose tar has not the diff ID that the
//! image's config names fails the export. Image IDs hold, because configs are carried unchanged; manifests are made anew
//! where layers are not compressed as they came. The same volume gives the same bytes.
//!
//! ```text
//! cache (sealed volume) ─► layer (tar, proven) ─► compress ─► target: layout | tar ─► output (named when it is whole)
//! ```
//!
//! [`packaging`] writes the container image of larder itself by the same parts.

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

/// What a volume is exported as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// An OCI image layout: a directory
    OciLayout,
    /// An OCI image layout as one tar
    OciArchive,
    /// What docker save writes: one tar, layers uncompressed
    DockerArchive,
    /// The image file of a disk volume
    Raw,
    /// One read-only EROFS image of any volume
    Erofs,
}

/// What to export, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// The form.
    pub format: Format,
    /// How layers of an OCI layout are compressed.
    pub compression: Compression,
    /// Images to take; all where none is named.
    pub images: Vec<ImageReference>,
    /// Whether what is there may be replaced.
    pub force: bool,
}

/// What was exported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Images in it, in order. A raw image has what the volume has.
    pub images: Vec<Exported>,
    /// Bytes written; of a raw image its length, holes included.
    pub size: u64,
    /// sha256 of a raw image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Digest>,
}

/// One image of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// The reference as the volume's job gave it.
    pub reference: String,
    /// Its name in the archive; none where the format cannot carry it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Digest of its manifest in the archive; none in a docker-archive, which has no manifests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Digest>,
    /// Digest of its config: the image ID, the same everywhere.
    pub config: Digest,
}

/// Exports the sealed volume at `volume` to the path `out`.
///
/// # Errors
/// [`Error`]; nothing is left at `out`, and what was there before is untouched.
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

/// Exports to a stream, which has got only a part when this fails.
///
/// # Errors
/// [`Error`], of class Invalid for a layout, which is a directory.
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

/// The images of a sealed volume by their names.
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
