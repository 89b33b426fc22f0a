//! Verification of a volume's signature ([`model::trust`](larder_model::trust)).

use std::path::Path;

use super::error::Error;
use super::seal::{self, Files};
use larder_model::io_error::Context as _;
use larder_model::key::KeyId;
use larder_model::seal::CacheManifest;
use larder_model::trust::Trust;
use larder_sys::Dir;

/// Reads and checks the seal and the signature of the volume at `path`, as [`seal::read`] and [`check`] do.
/// Returns the seal and the key that signed it. Both checks use the same bytes.
///
/// # Errors
/// Those of [`seal::read`] and [`check`].
pub fn read_trusted(path: &Path, trust: &Trust) -> Result<(CacheManifest, Option<KeyId>), Error> {
    let shown = path.display().to_string();
    let root = Dir::open(path).context("opening the volume", &shown)?;
    let files = Files::read(&root, &shown)?;
    let signed_by = check_seal(trust, path, &files)?;
    Ok((seal::parse(&files.cache_json, &shown)?, signed_by))
}

/// Checks the signature of the volume at `root`, whose `cache.json` has the bytes `cache_json`. Returns the
/// key that signed it, or `None` if the volume is not signed and `trust` does not require it.
///
/// The content of the volume is not compared with `cache.json`; [`verify`](crate::verify) does that.
///
/// # Errors
/// Class Denied: not signed, or signed by an unknown key. Class Corrupt: the signature is malformed or wrong.
pub fn check(trust: &Trust, root: &Path, cache_json: &[u8]) -> Result<Option<KeyId>, Error> {
    let path = root.display().to_string();
    let signature = seal::signature(&Dir::open(root).context("opening the volume", &path)?, &path)?;
    check_files(trust, &path, cache_json, signature.as_deref())
}

/// Checks the signature of the volume at `path` with the seal `seal`, as [`check`] does.
///
/// # Errors
/// Those of [`check`].
pub fn check_seal(trust: &Trust, path: &Path, seal: &Files) -> Result<Option<KeyId>, Error> {
    check_files(trust, &path.display().to_string(), &seal.cache_json, seal.signature.as_deref())
}

fn check_files(
    trust: &Trust,
    path: &str,
    cache_json: &[u8],
    signature: Option<&[u8]>,
) -> Result<Option<KeyId>, Error> {
    trust.judge(cache_json, signature).map_err(|source| Error::Trust { path: path.to_owned(), source })
}
