//! Image references: the text that a user gives, and its normal form.

mod parse;

use std::fmt;
use std::str::FromStr;

use oci_spec::distribution::Reference;
use serde::{Deserialize, Serialize};

use super::digest::Digest;

/// An image reference as it was given, with its normal form (registry, repository, tag, digest).
///
/// Short names refer to Docker Hub: `nginx` is `docker.io/library/nginx:latest`. Equality compares the normal
/// forms.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageReference {
    given: String,
    normal: Reference,
    digest: Option<Digest>,
}

/// The error for a string that is not an image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not an image reference: {reason}")]
pub struct ParseReferenceError {
    given: String,
    reason: String,
}

impl ImageReference {
    /// Returns the reference as it was given.
    pub fn given(&self) -> &str {
        &self.given
    }

    /// Returns the registry host and port as in the reference; Docker Hub is `docker.io`.
    pub fn registry(&self) -> &str {
        self.normal.registry()
    }

    /// Returns the repository, for example `library/nginx`.
    pub fn repository(&self) -> &str {
        self.normal.repository()
    }

    /// Returns the tag; `latest` if neither tag nor digest was given. With a digest, the tag is only a label.
    pub fn tag(&self) -> Option<&str> {
        self.normal.tag()
    }

    /// Returns the digest that pins the image, if one was given.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Returns `registry/repository`, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry(), self.repository())
    }
}

impl FromStr for ImageReference {
    type Err = ParseReferenceError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let refuse = |reason: String| ParseReferenceError { given: s.chars().take(300).collect(), reason };
        if s.len() > 1024 {
            return Err(refuse("it is longer than 1024 bytes".into()));
        }
        let (normal, digest) = parse::parse(s).map_err(refuse)?;
        Ok(ImageReference { given: s.to_owned(), normal, digest })
    }
}

impl TryFrom<String> for ImageReference {
    type Error = ParseReferenceError;

    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl From<ImageReference> for String {
    fn from(reference: ImageReference) -> String {
        reference.given
    }
}

impl PartialEq for ImageReference {
    fn eq(&self, other: &Self) -> bool {
        self.normal == other.normal
    }
}

impl Eq for ImageReference {}

impl std::hash::Hash for ImageReference {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.normal.hash(state);
    }
}

impl fmt::Display for ImageReference {
    /// Writes the normal form: `docker.io/library/nginx:1.27`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.normal.whole())
    }
}

impl fmt::Debug for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn normal_forms() {
        let hex = "f".repeat(64);
        for (given, normal) in [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("team/app:1", "docker.io/team/app:1".to_owned()),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest".to_owned()),
            (&format!("r.io/a@sha256:{hex}"), format!("r.io/a@sha256:{hex}")),
            (&format!("r.io/a:t@sha256:{hex}"), format!("r.io/a:t@sha256:{hex}")),
        ] {
            let reference: ImageReference = given.parse().unwrap();
            assert_eq!(reference.to_string(), normal);
            assert_eq!(reference.given(), given);
        }
    }

    #[test]
    fn malformed_references_are_refused() {
        for bad in ["", "UPPER/x", "a b", "a@sha256:zz", "-a", "a/../b", "a:\n", "a@md5:ffff"] {
            assert!(bad.parse::<ImageReference>().is_err(), "{bad}");
        }
        assert!(format!("r.io/a@sha256:{}", "F".repeat(64)).parse::<ImageReference>().is_err());
        assert!("a".repeat(2000).parse::<ImageReference>().is_err());
    }
    proptest! {
        /// The normal form of every accepted text parses to the same reference.
        #[test]
        fn normal_forms_are_stable(text in "[a-zA-Z0-9._-]{0,8}(:[0-9]{0,5})?(/[a-zA-Z0-9._-]{0,8}){0,3}(:[a-zA-Z0-9._-]{0,8})?(@sha256:[0-9a-f]{64})?") {
            if let Ok(reference) = text.parse::<ImageReference>() {
                let normal = reference.to_string();
                let again: ImageReference = normal.parse().unwrap();
                prop_assert_eq!(&again, &reference);
                prop_assert_eq!(again.to_string(), normal);
                let parts = |part: &str| !part.is_empty() && part != "." && part != "..";
                prop_assert!(reference.repository().split('/').all(parts));
            }
        }

        #[test]
        fn any_text_parses_or_errs(text in any::<String>()) {
            if let Ok(reference) = text.parse::<ImageReference>() {
                prop_assert!(!reference.to_string().contains(char::is_control));
            }
        }
    }
}
