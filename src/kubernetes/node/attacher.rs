//! What attaches volumes on the node. All calls block.

use std::fmt;
use std::path::Path;

use larder_model::class::Class;
use larder_model::digest::Digest;

/// Attaches what the kubelet has mounted.
pub trait Attacher: fmt::Debug + Send + Sync + 'static {
    /// Sees to it that the volume with this seal is attached under `name`. `volume` is where it is mounted now; one that is
    /// attached and sound already stays as it is, wherever it came from.
    ///
    /// # Errors
    /// `Corrupt` if it is another volume or none, and what attaching says.
    fn attach(&self, volume: &Path, name: &str, seal: &Digest) -> Result<(), AttachFault>;

    /// Lets `name` go. What is not attached is nothing to complain of.
    ///
    /// # Errors
    /// `Busy` while anything on the node uses it.
    fn detach(&self, name: &str) -> Result<(), AttachFault>;

    /// The names under which something is attached, or was about to be.
    fn attached(&self) -> Result<Vec<String>, AttachFault>;
}

/// A volume cannot be attached or let go.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct AttachFault {
    /// Decides whether it is told as a failure or waited for.
    pub class: Class,
    /// What was being done to what, and why it failed.
    pub reason: String,
}

impl AttachFault {
    /// The class.
    pub fn class(&self) -> Class {
        self.class
    }
}

/// The name under which the volume of a claim is attached: short, for options of mounts, and told from names of others.
pub fn name(claim: &str) -> String {
    format!("k{}", &Digest::sha256(claim.as_bytes()).hex()[..8])
}

/// Whether a name is of this form.
pub fn is_name(name: &str) -> bool {
    let hex = name.strip_prefix('k').unwrap_or_default();
    hex.len() == 8 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_again() {
        assert!(is_name(&name("ic-8f14e45f-ceea-4e7a-9c2b-0123456789ab-0123456789")));
        assert_ne!(name("a"), name("b"));
        for other in ["", "k", "k0123abc", "k0123abcdE", "k0123abcX", "x01234567", "icv"] {
            assert!(!is_name(other), "{other}");
        }
    }
}
