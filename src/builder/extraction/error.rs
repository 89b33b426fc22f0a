//! Errors of a layer that is being extracted.

use crate::trees;
use larder_layer::extract;
use larder_model::class::Class;
use larder_model::io_error::{FileRole, class};
use std::io;

/// Failure of an extraction, caused by the layer or the volume.
#[derive(Debug)]
pub(in crate::builder) enum RunError {
    Layer(extract::Error),
    Volume(crate::volume::Error),
    Tree(trees::Error),
    Reading(io::Error),
    /// A layer of this volume is no longer there.
    ImageMissing,
}

impl RunError {
    pub(in crate::builder) fn class(&self) -> Class {
        match self {
            RunError::Layer(e) => e.class(),
            RunError::Volume(e) => e.class(),
            RunError::Tree(e) => e.class(),
            RunError::Reading(e) => class(e, FileRole::Own),
            RunError::ImageMissing => Class::Internal,
        }
    }

    pub(in crate::builder) fn describe(&self) -> String {
        match self {
            RunError::Layer(e) => format!("extracting the layer: {e}"),
            RunError::Volume(e) => e.to_string(),
            RunError::Tree(e) => e.to_string(),
            RunError::Reading(e) => format!("reading the image of the layer: {e}"),
            RunError::ImageMissing => "the image of the layer is missing".into(),
        }
    }

    pub(super) fn reading(source: io::Error) -> Self {
        RunError::Reading(source)
    }
}
