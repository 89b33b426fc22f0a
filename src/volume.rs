//! Layout, cap, journal, commit in chain order, seal, verify.

/// The seal of a volume.
pub mod seal {
    use std::path::Path;

    use crate::model::class::Class;
    use crate::model::seal::CacheManifest;

    /// The seal cannot be read.
    #[derive(Debug, thiserror::Error)]
    #[error("{message}")]
    pub struct Error {
        class: Class,
        message: String,
    }

    impl Error {
        /// The class, which decides about the exit code.
        pub fn class(&self) -> Class {
            self.class
        }
    }

    /// Reads and checks the seal of the volume at `path`.
    pub fn read(path: &Path) -> Result<CacheManifest, Error> {
        let shown = path.display();
        let bytes = std::fs::read(path.join("cache.json")).map_err(|e| Error {
            class: if path.is_dir() { Class::Conflict } else { Class::NotFound },
            message: format!("{shown} is not sealed: {e}"),
        })?;
        CacheManifest::parse(&bytes)
            .map_err(|e| Error { class: Class::Corrupt, message: format!("{shown}: {e}") })
    }
}
