//! A container or snapshot that uses a layer of a volume.

use std::fmt;

use larder_model::escape::escape;

/// A container or snapshot that uses a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The containerd namespace of the user.
    pub namespace: String,
    /// ID of the container, running or not. `None` if another client has mounted the snapshot, or unpacks on
    /// top of a layer.
    pub container: Option<String>,
    /// Key of the active snapshot.
    pub snapshot: String,
    /// The image name in the container's record; can be empty.
    pub image: String,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let namespace = escape(&self.namespace);
        match &self.container {
            Some(container) if self.image.is_empty() => {
                write!(f, "container {} in namespace {namespace}", escape(container))
            }
            Some(container) => write!(
                f,
                "container {} of {} in namespace {namespace}",
                escape(container),
                escape(&self.image)
            ),
            None => write!(f, "snapshot {} in namespace {namespace}", escape(&self.snapshot)),
        }
    }
}
