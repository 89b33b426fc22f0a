//! Foreign locations of layers (`urls` in descriptor.md of the OCI image spec), collected from the manifests
//! that the fetcher read. The extractor identifies a layer only by its digest. So a compromised extractor
//! cannot choose where the fetcher connects.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use larder_model::digest::Digest;
use larder_model::manifest::Document;

/// Maximum number of layers whose locations are recorded. Further layers are fetched only from their
/// registries.
const MAX_LAYERS: usize = 10_000;

/// The locations of each layer, by the digest of the layer.
#[derive(Debug, Default)]
pub(super) struct Foreign(Mutex<HashMap<Digest, Vec<String>>>);

impl Foreign {
    /// Adds the locations in a manifest. Adds nothing for an index, or for bytes that are not a manifest.
    pub(super) fn add(&self, bytes: &[u8], media_type: Option<&str>) {
        let Ok(Document::Image(manifest)) = Document::parse(bytes, media_type) else { return };
        let mut known = self.lock();
        for layer in manifest.layers.into_iter().filter(|layer| !layer.urls.is_empty()) {
            if known.len() < MAX_LAYERS {
                known.entry(layer.digest).or_insert(layer.urls);
            }
        }
    }

    /// Returns the locations of a layer; empty if no manifest has any.
    pub(super) fn of(&self, layer: &Digest) -> Vec<String> {
        self.lock().get(layer).cloned().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Vec<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_manifests_name_locations() {
        let digest = |letter: &str| format!("sha256:{}", letter.repeat(64)).parse::<Digest>().unwrap();
        let foreign = Foreign::default();
        foreign.add(b"no manifest", None);
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
                "config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{0}","size":2}},
                "layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{0}","size":3}},
                          {{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{1}","size":4,
                            "urls":["https://example.org/layer"]}}]}}"#,
            digest("a"),
            digest("b")
        );
        foreign.add(manifest.as_bytes(), None);
        assert_eq!(foreign.of(&digest("b")), ["https://example.org/layer"]);
        assert!(foreign.of(&digest("a")).is_empty() && foreign.of(&digest("c")).is_empty());
    }
}
