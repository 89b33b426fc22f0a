//! Certificates and keys; each file is read once.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::error::Error;

/// Files read so far. Some contain private keys, so `Debug` never prints their bytes.
#[derive(Default)]
pub(crate) struct Files(Mutex<HashMap<PathBuf, Arc<[u8]>>>);

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files").finish_non_exhaustive()
    }
}

impl Files {
    /// Returns the content of `file` as it was at the first call.
    pub(crate) fn read(&self, file: &Path) -> Result<Arc<[u8]>, Error> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(content) = files.get(file) {
            return Ok(Arc::clone(content));
        }
        let content = std::fs::read(file);
        let content = content.map_err(|e| Error::Setup(format!("reading {}: {e}", file.display())))?;
        let content: Arc<[u8]> = content.into();
        files.insert(file.to_owned(), Arc::clone(&content));
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_once_and_never_shown() {
        let path = std::env::temp_dir().join(format!("larder-files-{}", std::process::id()));
        let files = Files::default();
        assert!(files.read(&path).is_err());
        std::fs::write(&path, "a private key").unwrap();
        assert_eq!(&*files.read(&path).unwrap(), b"a private key");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(&*files.read(&path).unwrap(), b"a private key");
        assert!(!format!("{files:?}").contains("private key"));
    }
}
