//! Image configs (OCI image spec, config.md). Everything but platform, diff IDs and time is data for the runtime.

use chrono::DateTime;
use serde::Deserialize;

use super::{MAX_LAYERS, Manifest, ManifestError, error, json};
use crate::model::digest::Digest;
use crate::model::platform::Platform;

/// What a build needs of an image config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageConfig {
    /// The platform that the image was made for; `None` if the config does not name os and architecture, which the specification
    /// requires and runtimes do not.
    pub platform: Option<Platform>,
    /// sha256 of each layer's tar, base first.
    pub diff_ids: Vec<Digest>,
    /// When the image was made, as written; RFC 3339.
    pub created: Option<String>,
}

#[derive(Deserialize)]
struct Wire {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    created: Option<String>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    r#type: String,
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

impl ImageConfig {
    /// Reads a config whose digest the caller has compared. Unknown members are ignored.
    ///
    /// # Errors
    /// [`ManifestError`] of class Corrupt.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        json::check(bytes)?;
        let wire: Wire = json::read(bytes)?;
        if wire.rootfs.r#type != "layers" {
            return Err(malformed("rootfs.type", &wire.rootfs.r#type, "layers"));
        }
        // containers/storage and Go's encoding/json refuse any other form, so no runtime could read the image.
        if let Some(created) = &wire.created
            && DateTime::parse_from_rfc3339(created).is_err()
        {
            return Err(malformed("created", created, "a time as in RFC 3339"));
        }
        let diff_ids = wire.rootfs.diff_ids.unwrap_or_default();
        error::at_most("diff IDs", diff_ids.len() as u64, MAX_LAYERS)?;
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let platform = match (given(wire.os), given(wire.architecture)) {
            (Some(os), Some(architecture)) => {
                let variant = given(wire.variant).map(|v| format!("/{v}")).unwrap_or_default();
                let name = format!("{os}/{architecture}{variant}");
                let platform = name.parse();
                Some(platform.map_err(|_| malformed("the platform", &name, "os/architecture[/variant]"))?)
            }
            _ => None,
        };
        Ok(ImageConfig {
            platform,
            diff_ids: diff_ids.iter().map(|d| d.parse()).collect::<Result<_, _>>()?,
            created: wire.created,
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

fn malformed(member: &str, given: &str, want: &str) -> ManifestError {
    ManifestError::Malformed { reason: format!("{member} is {}, want {want}", error::cut(given)) }
}
