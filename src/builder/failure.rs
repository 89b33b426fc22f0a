//! Failures before they are part of the outcome.

use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::event::Failure;
use larder_model::reference::ImageReference;

/// A failure and the images that it affects.
#[derive(Clone, Debug)]
pub(super) struct Fail {
    /// Class of the error.
    pub(super) class: Class,
    /// References, as given, of the images that fail because of it.
    pub(super) images: Vec<String>,
    /// The layer that caused it.
    pub(super) layer: Option<Digest>,
    /// Description: the operation, the need and the available amount, and a hint.
    pub(super) message: String,
}

impl Fail {
    /// Creates a failure of the whole job.
    pub(super) fn job(class: Class, message: impl Into<String>) -> Self {
        Fail { class, images: Vec::new(), layer: None, message: message.into() }
    }

    /// Creates a failure of one image.
    pub(super) fn image(reference: &ImageReference, class: Class, message: impl Into<String>) -> Self {
        Fail { class, images: vec![reference.given().to_owned()], layer: None, message: message.into() }
    }

    /// Reports whether other layers can still be completed.
    pub(super) fn spares_others(&self) -> bool {
        matches!(
            self.class,
            Class::Corrupt | Class::NotFound | Class::Invalid | Class::Denied | Class::Transient
        ) && !self.images.is_empty()
    }
}

impl From<Fail> for Failure {
    fn from(fail: Fail) -> Self {
        Failure { class: fail.class, images: fail.images, layer: fail.layer, message: fail.message }
    }
}

/// Converts an error of the volume, which fails the whole job.
impl From<crate::volume::Error> for Fail {
    fn from(error: crate::volume::Error) -> Self {
        Fail::job(error.class(), error.to_string())
    }
}
