//! The version of this program: release, commit, compiler, target and features.

use std::fmt;

use serde::Serialize;

/// Identifies a build of this program. The Display form has one line per field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Version {
    /// Release, as semantic version.
    pub version: &'static str,
    /// First twelve digits of the git commit. Empty if the sources were not in a git repository.
    pub commit: &'static str,
    /// Version line of the Rust compiler.
    pub compiler: &'static str,
    /// Target triple, for example `x86_64-unknown-linux-gnu`.
    pub target: &'static str,
    /// Enabled optional features of the package.
    pub features: &'static [&'static str],
}

/// The version of this program.
pub const VERSION: Version = Version {
    version: env!("CARGO_PKG_VERSION"),
    commit: env!("LARDER_BUILD_COMMIT"),
    compiler: env!("LARDER_BUILD_COMPILER"),
    target: env!("LARDER_BUILD_TARGET"),
    features: if cfg!(feature = "isal") { &["isal"] } else { &[] },
};

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_none = |text: &'static str| if text.is_empty() { "none" } else { text };
        writeln!(f, "larder {}", self.version)?;
        writeln!(f, "commit: {}", or_none(self.commit))?;
        writeln!(f, "compiler: {}", or_none(self.compiler))?;
        writeln!(f, "target: {}", self.target)?;
        write!(f, "features: {}", or_none(self.features.first().copied().unwrap_or_default()))
    }
}
