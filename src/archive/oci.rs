//! The `index.json` of an OCI image layout (OCI image spec, image-layout.md).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::error::Error;
use super::store::Store;
use super::{Digest, Entry};
use larder_model::manifest::{ManifestError, WirePlatform, read_json};
use larder_model::reference::ImageReference;

const INDEX: &str = "index.json";

/// Maximum size of the index, bytes.
const MAX_INDEX: u64 = 4 << 20;

#[derive(Deserialize)]
struct Index {
    manifests: Option<Vec<WireDescriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireDescriptor {
    media_type: String,
    digest: String,
    size: i64,
    annotations: Option<BTreeMap<String, String>>,
    platform: Option<WirePlatform>,
}

/// Returns the images that the layout lists. A `null` list counts as empty: docker 25 writes one for an image
/// without a tag.
///
/// # Errors
/// The index cannot be read, or every one of its entries is malformed.
pub(super) fn entries(store: &Store) -> Result<Vec<Entry>, Error> {
    let document = |source| Error::Document { file: INDEX.to_owned(), source };
    let index: Index = read_json(&store.read(INDEX, MAX_INDEX)?).map_err(document)?;
    let (entries, malformed): (Vec<_>, Vec<_>) =
        index.manifests.into_iter().flatten().map(entry).partition(Result::is_ok);
    let entries: Vec<Entry> = entries.into_iter().flatten().collect();
    match malformed.into_iter().find_map(Result::err) {
        Some(error) if entries.is_empty() => Err(document(error)),
        _ => Ok(entries),
    }
}

fn entry(wire: WireDescriptor) -> Result<Entry, ManifestError> {
    let digest: Digest = wire.digest.parse()?;
    let name = wire.annotations.as_ref().and_then(name);
    let platform = wire.platform.and_then(|wire| wire.platform());
    let size = u64::try_from(wire.size)
        .map_err(|_| ManifestError::NegativeSize { digest: digest.to_string(), size: wire.size })?;
    Ok(Entry { name, media_type: wire.media_type, digest, size, platform })
}

/// Returns the name of the image: containerd's annotation, or else the annotation of the specification, which
/// can be only a tag.
fn name(annotations: &BTreeMap<String, String>) -> Option<ImageReference> {
    let whole = |name: &&String| name.contains(['/', ':']);
    let names = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
    let mut names = names.iter().filter_map(|key| annotations.get(*key)).filter(whole);
    names.find_map(|name| name.parse().ok())
}

#[cfg(test)]
mod tests {
    #[test]
    fn names() {
        let name = |containerd: &str, spec: &str| {
            let pairs =
                [("io.containerd.image.name", containerd), ("org.opencontainers.image.ref.name", spec)];
            let pairs = pairs.iter().filter(|(_, name)| !name.is_empty());
            let found = super::name(&pairs.map(|(key, name)| (key.to_string(), name.to_string())).collect());
            found.map(|name| name.to_string())
        };
        assert_eq!(name("docker.io/library/a:1", "1").as_deref(), Some("docker.io/library/a:1"));
        assert_eq!(name("", "r.io/a:1").as_deref(), Some("r.io/a:1"));
        assert_eq!(name("", "a:1").as_deref(), Some("docker.io/library/a:1"));
        assert_eq!(name("", "latest"), None);
        assert_eq!(name("not a name/", "r.io/a:1").as_deref(), Some("r.io/a:1"));
        assert_eq!(name("", ""), None);
    }
}
