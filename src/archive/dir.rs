//! The directories of skopeo's `dir:` (containers/image, `directory/directory_dest.go`), as `podman save --format docker-dir`
//! writes them: one image, whose manifest is `manifest.json` and whose blobs are called by their digests alone.

use super::error::Error;
use super::store::Store;
use super::{Archive, Digest, Entry};
use larder_model::manifest::{Document, ManifestError};

/// What every such directory has, and what it begins with.
const VERSION: &str = "version";
const MARK: &[u8] = b"Directory Transport Version: 1";

const MANIFEST: &str = "manifest.json";

/// Largest manifest, bytes.
const MAX: u64 = 4 << 20;

/// Whether this is such a directory.
pub(super) fn is_one(store: &Store) -> Result<bool, Error> {
    let Some(version) = store.open(VERSION)? else { return Ok(false) };
    Ok(version.size() < 128 && version.read(128)?.starts_with(MARK) && store.has(MANIFEST)?)
}

/// Reads the manifest.
pub(super) fn read(archive: &mut Archive) -> Result<(), Error> {
    let document = |source: ManifestError| Error::Document { file: MANIFEST.to_owned(), source };
    let bytes = archive.store.read(MANIFEST, MAX)?;
    let media_type = match Document::parse(&bytes, None).map_err(document)? {
        Document::Index(index) => index.media_type,
        Document::Image(manifest) => manifest.media_type,
    };
    let (digest, size) = (Digest::sha256(&bytes), bytes.len() as u64);
    archive.paths.insert(digest.clone(), MANIFEST.to_owned());
    archive.entries.push(Entry { name: None, media_type, digest, size, platform: None });
    Ok(())
}

/// Where a blob lies, or a manifest of an index.
pub(super) fn places(digest: &Digest) -> [String; 2] {
    let hex = digest.hex();
    [hex.to_owned(), format!("{hex}.manifest.json")]
}
