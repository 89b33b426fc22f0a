//! Whether a volume is one of those whom one believes ([`model::trust`](crate::model::trust)).

use std::path::Path;

use super::error::{Context, Error};
use super::seal::{self, Files};
use crate::model::key::KeyId;
use crate::model::seal::CacheManifest;
use crate::model::trust::Trust;
use crate::sys::Dir;

/// Reads and checks the seal of the volume at `path` as [`seal::read`] does, if it is one that `trust` asks for, and says who
/// signed. Both are of the same bytes.
pub fn read_trusted(path: &Path, trust: &Trust) -> Result<(CacheManifest, Option<KeyId>), Error> {
    let shown = path.display().to_string();
    let root = Dir::open(path).context("opening the volume", &shown)?;
    let files = Files::read(&root, &shown)?;
    let signed_by = trust.check_seal(path, &files)?;
    Ok((seal::parse(&files.cache_json, &shown)?, signed_by))
}

impl Trust {
    /// Judges the volume at `root` whose `cache.json` was read as `cache_json`, by the signature beside it. The answer is who
    /// signed; nothing where nobody did, and nobody has to.
    ///
    /// It says nothing of whether the volume is what `cache.json` says: [`verify`](crate::verify) does.
    ///
    /// # Errors
    /// Of class Denied: not signed, or by an unknown key. Of class Corrupt: the signature does not hold or is none.
    pub fn check(&self, root: &Path, cache_json: &[u8]) -> Result<Option<KeyId>, Error> {
        let path = root.display().to_string();
        let signature = seal::signature(&Dir::open(root).context("opening the volume", &path)?, &path)?;
        self.check_files(&path, cache_json, signature.as_deref())
    }

    /// The same for a seal whose files were read, of the volume at `path`.
    pub fn check_seal(&self, path: &Path, seal: &Files) -> Result<Option<KeyId>, Error> {
        self.check_files(&path.display().to_string(), &seal.cache_json, seal.signature.as_deref())
    }

    fn check_files(
        &self,
        path: &str,
        cache_json: &[u8],
        signature: Option<&[u8]>,
    ) -> Result<Option<KeyId>, Error> {
        self.judge(cache_json, signature).map_err(|source| Error::Trust { path: path.to_owned(), source })
    }
}
