//! Image configs (OCI image spec, config.md). Everything but platform, diff IDs and time is data for the runtime.

use super::{MAX_BYTES, MAX_LAYERS, Manifest, ManifestError, error, go, shapes};
use crate::digest::Digest;
use crate::platform::Platform;

/// What a build needs of an image config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageConfig {
    /// The platform the image was made for; `None` if the config names no operating system or no architecture.
    pub platform: Option<Platform>,
    /// sha256 of each layer's tar, base first.
    pub diff_ids: Vec<Digest>,
    /// When the image was made, RFC 3339.
    pub created: Option<String>,
}

impl ImageConfig {
    /// Reads a config whose digest the caller has compared, as the runtimes do that will read it from the volume.
    ///
    /// # Errors
    /// [`ManifestError`] of class Corrupt: a runtime would refuse it.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        error::at_most("bytes", bytes.len() as u64, MAX_BYTES)?;
        let config = go::read(bytes, &shapes::CONFIG)?;
        let rootfs = config.object("rootfs").cloned().unwrap_or_default();
        if !matches!(rootfs.text("type"), "" | "layers") {
            return Err(malformed("rootfs.type", rootfs.text("type"), "layers"));
        }
        let diff_ids = rootfs.texts("diff_ids");
        error::at_most("diff IDs", diff_ids.len() as u64, MAX_LAYERS)?;
        Ok(ImageConfig {
            platform: platform(&config)?,
            diff_ids: diff_ids.iter().map(|d| d.parse()).collect::<Result<_, _>>()?,
            created: Some(config.text("created")).filter(|time| !time.is_empty()).map(str::to_owned),
        })
    }

    /// Checks that the config speaks of as many layers as the manifest.
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

/// The specification requires both parts, and runtimes do without: images of buildpacks have neither.
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
    ManifestError::Malformed { reason: format!("{member} is {}, want {want}", error::cut(given)) }
}
