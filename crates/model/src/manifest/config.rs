//! Image configs (OCI image spec, config.md). All fields except platform, diff IDs and time are data for the
//! runtime.

use super::{MAX_BYTES, MAX_LAYERS, Manifest, ManifestError, error, go, shapes};
use crate::digest::Digest;
use crate::platform::Platform;

/// The fields of an image config that a build needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageConfig {
    /// Platform of the image; `None` if the config has no operating system or no architecture.
    pub platform: Option<Platform>,
    /// Digests (sha256) of the layers' tars, base first.
    pub diff_ids: Vec<Digest>,
    /// Creation time of the image, RFC 3339.
    pub created: Option<String>,
}

impl ImageConfig {
    /// Parses a config in the same way as the runtimes that will read it from the volume. The caller must
    /// have verified the digest of `bytes`.
    ///
    /// # Errors
    /// Returns a [`ManifestError`] of class Corrupt if a runtime would refuse the config.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        error::check_max("bytes", bytes.len() as u64, MAX_BYTES)?;
        let config = go::read(bytes, &shapes::CONFIG)?;
        let rootfs = config.object("rootfs").cloned().unwrap_or_default();
        if !matches!(rootfs.text("type"), "" | "layers") {
            return Err(malformed("rootfs.type", rootfs.text("type"), "layers"));
        }
        let diff_ids = rootfs.texts("diff_ids");
        error::check_max("diff IDs", diff_ids.len() as u64, MAX_LAYERS)?;
        Ok(ImageConfig {
            platform: platform(&config)?,
            diff_ids: diff_ids.iter().map(|d| d.parse()).collect::<Result<_, _>>()?,
            created: Some(config.text("created")).filter(|time| !time.is_empty()).map(str::to_owned),
        })
    }

    /// Checks that the config has as many layers as the manifest.
    ///
    /// # Errors
    /// Returns [`ManifestError::LayerCount`] if the numbers differ.
    pub fn check_layers(&self, manifest: &Manifest) -> Result<(), ManifestError> {
        if self.diff_ids.len() != manifest.layers.len() {
            return Err(ManifestError::LayerCount {
                diff_ids: self.diff_ids.len(),
                layers: manifest.layers.len(),
            });
        }
        Ok(())
    }
}

/// Returns the platform. The specification requires OS and architecture, but runtimes accept images without
/// them (buildpacks).
fn platform(config: &go::Object) -> Result<Option<Platform>, ManifestError> {
    let (os, architecture, variant) =
        (config.text("os"), config.text("architecture"), config.text("variant"));
    if os.is_empty() || architecture.is_empty() {
        return Ok(None);
    }
    let separator = if variant.is_empty() { "" } else { "/" };
    let platform = format!("{os}/{architecture}{separator}{variant}");
    let parsed = platform.parse();
    parsed.map(Some).map_err(|_| malformed("the platform", &platform, "os/architecture[/variant]"))
}

fn malformed(member: &str, given: &str, want: &str) -> ManifestError {
    ManifestError::Malformed { reason: format!("{member} is {}, want {want}", error::truncate(given)) }
}
