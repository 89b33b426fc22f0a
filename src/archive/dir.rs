//! The directories of skopeo's `dir:` (containers/image, `directory/directory_dest.go`), also written by
//! `podman save --format docker-dir`. Each contains one image: its manifest is `manifest.json`, and its blobs
//! are named by their hex digests.

use super::error::Error;
use super::store::Store;
use super::{Archive, Digest, Entry};
use larder_model::manifest::{self, Document, ManifestError};

/// A file of every such directory, and how its content starts.
const VERSION: &str = "version";
const MARK: &[u8] = b"Directory Transport Version: 1";

const MANIFEST: &str = "manifest.json";

/// Maximum size of the manifest, bytes.
const MAX_MANIFEST: u64 = manifest::MAX_BYTES as u64;

/// Reports whether the directory was written by the `dir:` transport.
pub(super) fn is_directory_transport(store: &Store) -> Result<bool, Error> {
    let Some(version) = store.open(VERSION)? else { return Ok(false) };
    Ok(version.size() < 128 && version.read(128)?.starts_with(MARK) && store.has(MANIFEST)?)
}

/// Reads the manifest and adds its image to the archive.
pub(super) fn read(archive: &mut Archive) -> Result<(), Error> {
    let document = |source: ManifestError| Error::Document { file: MANIFEST.to_owned(), source };
    let bytes = archive.store.read(MANIFEST, MAX_MANIFEST)?;
    let media_type = match Document::parse(&bytes, None).map_err(document)? {
        Document::Index(index) => index.media_type,
        Document::Image(manifest) => manifest.media_type,
    };
    let (digest, size) = (Digest::sha256(&bytes), bytes.len() as u64);
    archive.paths.insert(digest.clone(), MANIFEST.to_owned());
    archive.entries.push(Entry { name: None, media_type, digest, size, platform: None });
    Ok(())
}

/// Returns the paths at which a blob, or a manifest of an index, can be stored.
pub(super) fn candidate_paths(digest: &Digest) -> [String; 2] {
    let hex = digest.hex();
    [hex.to_owned(), format!("{hex}.manifest.json")]
}
