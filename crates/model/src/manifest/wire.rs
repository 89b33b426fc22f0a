//! Parts of documents as Go's encoding/json decodes them: an absent or null member is empty.

use serde::Deserialize;

use crate::platform::Platform;

/// An image manifest before validation.
#[derive(Debug, Deserialize)]
pub(super) struct WireManifest {
    pub(super) config: WireDescriptor,
    pub(super) layers: Vec<WireDescriptor>,
}

/// A descriptor before validation.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WireDescriptor {
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: i64,
    pub(super) urls: Option<Vec<String>>,
}

/// The platform of an index entry.
#[derive(Debug, Default, Deserialize)]
pub struct WirePlatform {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

impl WirePlatform {
    /// Returns the platform; `None` if OS or architecture is empty or invalid.
    pub fn platform(&self) -> Option<Platform> {
        let text = |part: &Option<String>| part.clone().unwrap_or_default();
        let variant = Some(text(&self.variant)).filter(|v| !v.is_empty()).map(|v| format!("/{v}"));
        let name = format!("{}/{}{}", text(&self.os), text(&self.architecture), variant.unwrap_or_default());
        name.parse().ok()
    }
}

/// An index entry before validation.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WireEntry {
    pub(super) media_type: Option<String>,
    pub(super) digest: Option<String>,
    pub(super) size: Option<i64>,
    pub(super) platform: Option<WirePlatform>,
    pub(super) artifact_type: Option<String>,
}
