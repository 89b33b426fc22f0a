//! Failures on their way to the outcome.

use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::event::Failure;
use larder_model::reference::ImageReference;

/// Something failed, and for whom.
#[derive(Clone, Debug)]
pub(super) struct Fail {
    /// Class of the error.
    pub(super) class: Class,
    /// References, as given, of the images that cannot be had because of it.
    pub(super) images: Vec<String>,
    /// The layer to blame.
    pub(super) layer: Option<Digest>,
    /// What was being done, need and have, remedy.
    pub(super) message: String,
}

impl Fail {
    /// A failure of the whole job.
    pub(super) fn job(class: Class, message: impl Into<String>) -> Self {
        Fail { class, images: Vec::new(), layer: None, message: message.into() }
    }

    /// A failure of one image.
    pub(super) fn image(reference: &ImageReference, class: Class, message: impl Into<String>) -> Self {
        Fail { class, images: vec![reference.given().to_owned()], layer: None, message: message.into() }
    }

    /// Whether going on with other layers could still be of use.
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

/// A failure of the volume, which is a failure of the whole job.
impl From<crate::volume::Error> for Fail {
    fn from(error: crate::volume::Error) -> Self {
        Fail::job(error.class(), error.to_string())
    }
}
