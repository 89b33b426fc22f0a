//! Images of runtimes that cannot start without a volume.
//!
//! Each runtime finds its own; a detach lists all of them in one refusal, or removes them where the caller consents.

use std::fmt;

use larder_model::escape::escape;
use larder_model::runtime::Runtime;

/// Images that a message names.
const NAMED: usize = 5;

/// What the caller of a detach consents to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Consent {
    /// A containerd that cannot be asked is taken for one that is not there any more.
    pub force: bool,
    /// Images that cannot start without the volume are removed from their runtimes, which pull them when they need them.
    pub remove_images: bool,
}

/// An image that cannot start without the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependent {
    /// The runtime that has it.
    pub runtime: Runtime,
    /// Its name there.
    pub image: String,
    /// Where the runtime has it, as `namespace k8s.io`; empty where there is one place only.
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

/// The images as a message lists them.
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
