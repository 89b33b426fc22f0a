//! Key files: private keys that sign volumes, and trusted public keys.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use larder_model::class::Class;
use larder_model::io_error::{Context as _, FileRole, IoError, class};
use larder_model::key::{ParseKeyError, PublicKey, SigningKey, SigningKeyError};
use larder_model::trust::Trust;
use larder_sys::private::{self, ReadError};

/// Maximum size of a private key file, bytes; Larder's own have 119.
const MAX_PRIVATE_BYTES: u64 = 16 << 10;

/// Maximum size of a file of public keys, bytes.
const MAX_PUBLIC_BYTES: u64 = 256 << 10;

/// The error for a key that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file of a private key cannot be read, or other users have access to it.
    #[error("cannot read the signing key {path}: {source}")]
    Private {
        /// Path of the key file.
        path: String,
        /// Reason for the refusal.
        r#source: ReadError,
    },
    /// The file does not contain a valid private key.
    #[error("the signing key {path}: {source}")]
    SigningKey {
        /// Path of the key file.
        path: String,
        /// Error of parsing the key.
        r#source: SigningKeyError,
    },
    /// A key cannot be generated.
    #[error("cannot generate a key: {0}")]
    Random(SigningKeyError),
    /// A text is not a public key.
    #[error("the trusted key {text}: {source}")]
    PublicKey {
        /// Key, or path of the key file.
        text: String,
        /// Error of parsing the key.
        r#source: ParseKeyError,
    },
    /// A system call on a key file failed.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl Error {
    /// Returns the class of the error, which determines the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Private { source: ReadError::Open { .. }, .. } => Class::Denied,
            Error::Private { source: ReadError::Io(source), .. } => class(source, FileRole::Given),
            Error::Io(error) => error.class(FileRole::Given),
            Error::SigningKey { source, .. } | Error::Random(source) => source.class(),
            Error::PublicKey { .. } => Class::Invalid,
        }
    }
}

/// Reads a private key. Other users must not have access to the file ([`private::read`]).
///
/// # Errors
/// Returns [`Error`] if the file cannot be read, is accessible to others, or is not a private key.
pub fn signing(path: &Path) -> Result<SigningKey, Error> {
    let shown = || path.display().to_string();
    let pem =
        private::read(path, MAX_PRIVATE_BYTES).map_err(|source| Error::Private { path: shown(), source })?;
    SigningKey::parse(&pem).map_err(|source| Error::SigningKey { path: shown(), source })
}

/// Generates a key and writes it to a new file, which must not exist.
///
/// # Errors
/// Returns [`Error`] if the file exists or cannot be written.
pub fn generate(path: &Path) -> Result<SigningKey, Error> {
    let (key, pem) = SigningKey::generate().map_err(Error::Random)?;
    let written = private::create(path, pem.expose().as_bytes());
    written.context("writing the new key", path.display())?;
    Ok(key)
}

/// Returns the trust policy for a list of texts (see [`trusted`]): a signature by one of the keys is
/// required, or none if the list is empty.
///
/// # Errors
/// Returns [`Error`] for the first text that is neither a key nor a readable file of keys.
pub fn trust(texts: &[String]) -> Result<Trust, Error> {
    let mut keys = Vec::new();
    for text in texts {
        keys.append(&mut trusted(text)?);
    }
    Ok(Trust::only(keys))
}

/// Parses a value of `--trust`: one public key, or the path of a file with keys ([`PublicKey::parse_file`]).
///
/// # Errors
/// Returns [`Error`] if the text is neither a key nor a readable file of keys.
pub fn trusted(text: &str) -> Result<Vec<PublicKey>, Error> {
    let refused = |source| Error::PublicKey { text: text.to_owned(), source };
    if PublicKey::begins(text) {
        return Ok(vec![text.parse().map_err(refused)?]);
    }
    let io = |source| IoError::new("reading the trusted key", text, source);
    let mut file = String::new();
    let read =
        File::open(text).and_then(|opened| opened.take(MAX_PUBLIC_BYTES + 1).read_to_string(&mut file));
    match read {
        Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(refused(ParseKeyError::NoKey)),
        Err(e) => Err(io(e).into()),
        Ok(bytes) if bytes as u64 > MAX_PUBLIC_BYTES => Err(io(io::ErrorKind::FileTooLarge.into()).into()),
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
        // The message must not contain any content of the file.
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
