//! Attaching volumes on the node. All calls block.

use std::fmt;
use std::path::Path;

use larder_model::class::Class;
use larder_model::digest::Digest;

/// Attaches and detaches volumes that the kubelet has mounted.
pub trait Attacher: fmt::Debug + Send + Sync + 'static {
    /// Ensures that the volume with this seal is attached under `name`. `volume` is its current mount. A
    /// volume that is already attached and verified stays as it is, even if it came from another mount.
    ///
    /// # Errors
    /// `Corrupt` if the directory contains another volume or none, or the error of the attach.
    fn attach(&self, volume: &Path, name: &str, seal: &Digest) -> Result<(), AttachFault>;

    /// Detaches `name`. Does nothing if it is not attached.
    ///
    /// # Errors
    /// `Busy` while any process on the node uses it.
    fn detach(&self, name: &str) -> Result<(), AttachFault>;

    /// Returns the names under which a volume is attached, or an attach has started.
    ///
    /// # Errors
    /// The state of the node cannot be read.
    fn attached(&self) -> Result<Vec<String>, AttachFault>;
}

/// A volume cannot be attached or detached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct AttachFault {
    /// Class of the failure: it decides between a report and a silent retry.
    pub class: Class,
    /// The failed action and its cause.
    pub reason: String,
}

impl AttachFault {
    /// Returns the class of the failure.
    pub fn class(&self) -> Class {
        self.class
    }
}

/// Returns the name under which the volume of a claim is attached. It is short, because mount options have a
/// limited length, and differs from names of other origin.
pub fn name(claim: &str) -> String {
    format!("k{}", &Digest::sha256(claim.as_bytes()).hex()[..8])
}

/// Reports whether a name has the form of [`name`].
pub fn is_name(name: &str) -> bool {
    let hex = name.strip_prefix('k').unwrap_or_default();
    hex.len() == 8 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_name_accepts_names() {
        assert!(is_name(&name("ic-8f14e45f-ceea-4e7a-9c2b-0123456789ab-0123456789")));
        assert_ne!(name("a"), name("b"));
        for other in ["", "k", "k0123abc", "k0123abcdE", "k0123abcX", "x01234567", "icv"] {
            assert!(!is_name(other), "{other}");
        }
    }
}
