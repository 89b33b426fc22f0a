//! The socket: root's alone.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use larder_model::class::Class;
use larder_sys::socket::{self, Place, activation};

const MODE: u32 = 0o600;

/// The socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Something else is there.
    #[error("{0} is no socket: remove it, or give another --socket")]
    NotASocket(PathBuf),
    /// Somebody answers there.
    #[error("somebody answers at {0} already")]
    Occupied(PathBuf),
    /// The service manager hands over something that is of no use.
    #[error("taking the socket of the service manager: {0}")]
    Activation(std::io::Error),
    /// The kernel refuses.
    #[error("making the socket {path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl SocketError {
    /// The class, which decides about the exit code.
    pub(super) fn class(&self) -> Class {
        match self {
            SocketError::NotASocket(_) | SocketError::Activation(_) => Class::Invalid,
            SocketError::Occupied(_) => Class::Conflict,
            SocketError::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::PermissionDenied => Class::Denied,
                _ => Class::Internal,
            },
        }
    }
}

/// The socket that the service manager hands over, or one of our own at `path`.
pub(super) fn take(path: &Path) -> Result<UnixListener, SocketError> {
    match activation::listener().map_err(SocketError::Activation)? {
        Some(socket) => Ok(socket),
        None => bind(path),
    }
}

fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let failed = |source| SocketError::Io { path: path.to_owned(), source };
    match socket::place(path).map_err(failed)? {
        Place::Free => socket::bind(path, MODE, None).map_err(failed),
        Place::NotASocket => Err(SocketError::NotASocket(path.to_owned())),
        Place::Occupied => Err(SocketError::Occupied(path.to_owned())),
    }
}
