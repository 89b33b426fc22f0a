//! The files of the keys by which volumes are signed: private ones, and those that are trusted.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use larder_model::class::Class;
use larder_model::key::{ParseKeyError, PublicKey, SigningKey, SigningKeyError};
use larder_model::trust::Trust;
use larder_sys::private::{self, ReadError};

/// Most bytes of a private key; one of ours has 119.
const MAX_PRIVATE: u64 = 16 << 10;

/// Most bytes of a file of public keys.
const MAX_PUBLIC: u64 = 256 << 10;

/// A key cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file of a private key is not one's own.
    #[error("reading the signing key {path}: {source}")]
    Private {
        /// The file.
        path: String,
        /// Why.
        source: ReadError,
    },
    /// The file holds no private key.
    #[error("the signing key {path}: {source}")]
    SigningKey {
        /// The file.
        path: String,
        /// Why.
        source: SigningKeyError,
    },
    /// No key can be made.
    #[error("making a key: {0}")]
    Random(SigningKeyError),
    /// A text is no public key.
    #[error("the trusted key {text}: {source}")]
    PublicKey {
        /// The key, or the file.
        text: String,
        /// Why.
        source: ParseKeyError,
    },
    /// The file system refuses.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    /// The class, which decides about the exit code.
    pub fn class(&self) -> Class {
        let io = |error: &io::Error| match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Class::Denied,
            io::ErrorKind::AlreadyExists => Class::Conflict,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Class::NoSpace,
            _ => Class::Invalid,
        };
        match self {
            Error::Private { source: ReadError::Open { .. }, .. } => Class::Denied,
            Error::Private { source: ReadError::Io(source), .. } | Error::Io { source, .. } => io(source),
            Error::SigningKey { source, .. } | Error::Random(source) => source.class(),
            Error::PublicKey { .. } => Class::Invalid,
        }
    }
}

/// Reads a private key, which has to be one's own ([`private::read`]).
pub fn signing(path: &Path) -> Result<SigningKey, Error> {
    let shown = || path.display().to_string();
    let pem = private::read(path, MAX_PRIVATE).map_err(|source| Error::Private { path: shown(), source })?;
    SigningKey::parse(&pem).map_err(|source| Error::SigningKey { path: shown(), source })
}

/// Makes a key and the file of it, which must not exist.
pub fn generate(path: &Path) -> Result<SigningKey, Error> {
    let (key, pem) = SigningKey::generate().map_err(Error::Random)?;
    let written = private::create(path, pem.expose().as_bytes());
    written.map_err(|source| Error::Io {
        doing: "writing the new key",
        path: path.display().to_string(),
        source,
    })?;
    Ok(key)
}

/// What a list of such texts asks for: a signature by one of all these keys; nothing, where there is none.
pub fn trust(texts: &[String]) -> Result<Trust, Error> {
    let mut keys = Vec::new();
    for text in texts {
        keys.append(&mut trusted(text)?);
    }
    Ok(Trust::only(keys))
}

/// The public keys that a text gives, as `--trust` does: one key, or the name of a file with some
/// ([`PublicKey::parse_file`]).
pub fn trusted(text: &str) -> Result<Vec<PublicKey>, Error> {
    let refused = |source| Error::PublicKey { text: text.to_owned(), source };
    if PublicKey::begins(text) {
        return Ok(vec![text.parse().map_err(refused)?]);
    }
    let io = |source| Error::Io { doing: "reading the trusted key", path: text.to_owned(), source };
    let mut file = String::new();
    let read = File::open(text).and_then(|opened| opened.take(MAX_PUBLIC + 1).read_to_string(&mut file));
    match read {
        Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(refused(ParseKeyError::NoKey)),
        Err(e) => Err(io(e)),
        Ok(bytes) if bytes as u64 > MAX_PUBLIC => Err(io(io::ErrorKind::FileTooLarge.into())),
        Ok(_) => PublicKey::parse_file(&file).map_err(refused),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn keys_and_files_of_keys() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let key = generate(&path).unwrap();
        assert_eq!(signing(&path).unwrap().public(), key.public());
        assert_eq!(generate(&path).unwrap_err().class(), Class::Conflict);
        let line = key.public().to_string();
        assert_eq!(trusted(&line).unwrap(), [key.public()]);
        let file = dir.path().join("key.pub");
        for (text, many) in [(line.clone(), 1), (key.public().pem(), 1), (key.public().pem().repeat(2), 2)] {
            fs::write(&file, text).unwrap();
            assert_eq!(trusted(file.to_str().unwrap()).unwrap().len(), many);
        }
        let refused = trusted(path.to_str().unwrap()).unwrap_err();
        assert!(matches!(refused, Error::PublicKey { source: ParseKeyError::Private, .. }));
        // Nothing of the file is in the message.
        let secret = fs::read_to_string(&path).unwrap();
        assert!(!refused.to_string().contains(secret.lines().nth(1).unwrap()));
        assert_eq!(trusted(&line[..50]).unwrap_err().class(), Class::Invalid);
        assert_eq!(trusted("/nowhere").unwrap_err().class(), Class::Invalid);
        fs::write(&file, [0xff; 10]).unwrap();
        assert_eq!(trusted(file.to_str().unwrap()).unwrap_err().class(), Class::Invalid);
        fs::write(&file, vec![b'#'; 300 << 10]).unwrap();
        assert_eq!(trusted(file.to_str().unwrap()).unwrap_err().class(), Class::Invalid);
        assert_eq!(signing(&file).unwrap_err().class(), Class::Denied);
    }
}
