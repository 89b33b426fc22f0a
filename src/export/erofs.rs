//! One read-only EROFS image of the whole volume. It omits the `.larder` directory, because no builder uses
//! the image.
//!
//! Its UUID is derived from the seal, so the same volume gives the same image. The content is not verified
//! here; the receiver verifies it.

use std::fs::File;
use std::io::Seek as _;
use std::ops::ControlFlow;
use std::path::Path;

use super::raw::read;
use super::summed::Summed;
use super::{Error, Monitor, Report, Request};
use crate::volume::lease::Lease;
use crate::volume::{disk, layout, seal};
use larder_layer::erofs::{self, Label, Options, TreeError, TreeObserver, Writer};
use larder_layer::space::NoAccounting;
use larder_model::digest::Digest;
use larder_model::io_error::Context as _;
use larder_sys::{Dir, space};

pub(super) fn export(
    volume: &Path,
    out: &Path,
    request: &Request,
    monitor: &Monitor,
) -> Result<Report, Error> {
    if !request.images.is_empty() {
        return Err(Error::WholeDisk);
    }
    let entered = disk::enter(volume)?;
    let root = Dir::open(entered.path()).context("opening the volume", volume.display())?;
    let sealed = seal::read(entered.path())?;
    let _lease = match root.try_stat(layout::LARDER).context("examining", ".larder")? {
        Some(_) => {
            let being_removed = || Error::BeingRemoved { path: volume.display().to_string() };
            Some(Lease::shared(&root)?.ok_or_else(being_removed)?)
        }
        None => None,
    };
    let unfinished = Summed::begin(out, request.force)?;
    monitor.expect(space::occupied(&root).context("measuring", volume.display())?);
    let mut image = unfinished.file()?;
    write(root, &sealed.digest, &image, &unfinished.parent()?, monitor)?;
    // The first block was written last, so the checksum requires a second read.
    image.rewind().context("reading", "the image")?;
    let report = read(&image, monitor, &mut |_, _| Ok(()))?;
    unfinished.finish(report)
}

fn write(root: Dir, seal: &Digest, image: &File, dir: &Dir, monitor: &Monitor) -> Result<(), Error> {
    let failed = |source: erofs::Error| Error::Erofs(TreeError::Entry { path: ".".into(), source });
    let image = image.try_clone().context("opening", "the image")?;
    let label = Label::new("larder").map_err(failed)?;
    let options = Options { label, ..Options::of(seal) };
    let mut writer = Writer::new(image, dir, &NoAccounting, options).map_err(failed)?;
    writer.tree(root, &mut ProgressWatch(monitor)).map_err(|error| match error {
        TreeError::Stopped => Error::Interrupted,
        error => Error::Erofs(error),
    })?;
    writer.finish().map_err(failed)?;
    Ok(())
}

struct ProgressWatch<'a>(&'a Monitor);

impl TreeObserver for ProgressWatch<'_> {
    fn is_skipped(&self, path: &[u8]) -> bool {
        path == layout::LARDER || path == layout::LOST_AND_FOUND
    }

    fn advance(&mut self, bytes: u64) -> ControlFlow<()> {
        match self.0.advance(bytes) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }
}
