//! Images in the runtimes that cannot start without a volume.
//!
//! Each runtime finds its own. A detach lists all of them in one error, or removes them if the caller
//! consents.

use std::fmt;

use larder_model::escape::escape;
use larder_model::runtime::Runtime;

/// Maximum number of images listed in a message.
const NAMED: usize = 5;

/// Actions of a detach that need the caller's consent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Consent {
    /// Continue if containerd does not answer, as if it had been removed.
    pub force: bool,
    /// Remove images that cannot start without the volume from their runtimes, which pull them again when
    /// needed.
    pub remove_images: bool,
}

/// An image that cannot start without the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependent {
    /// The runtime that has the image.
    pub runtime: Runtime,
    /// The name of the image in the runtime.
    pub image: String,
    /// The location in the runtime, such as `namespace k8s.io`. Empty if the runtime has only one.
    pub place: String,
}

impl fmt::Display for Dependent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", escape(&self.image), self.runtime)?;
        if !self.place.is_empty() {
            write!(f, ", {}", escape(&self.place))?;
        }
        f.write_str(")")
    }
}

/// Formats the images for a message.
pub(super) fn listed(images: &[Dependent]) -> String {
    let mut text: Vec<String> = images.iter().take(NAMED).map(Dependent::to_string).collect();
    if images.len() > NAMED {
        text.push(format!("and {} more", images.len() - NAMED));
    }
    text.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_cut() {
        let image = |number: usize| Dependent {
            runtime: Runtime::Containerd,
            image: format!("app-{number}"),
            place: "namespace k8s.io".into(),
        };
        assert_eq!(listed(&[image(0)]), "app-0 (containerd, namespace k8s.io)");
        let all: Vec<Dependent> = (0..7).map(image).collect();
        assert!(
            listed(&all).ends_with("app-4 (containerd, namespace k8s.io), and 2 more"),
            "{}",
            listed(&all)
        );
    }
}
