//! Opens the socket, which is accessible to root only.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use larder_model::class::Class;
use larder_model::io_error::{FileRole, class};
use larder_sys::socket::{self, Place, activation};

const MODE: u32 = 0o600;

/// The socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another kind of file exists at the path.
    #[error("{0} is not a socket: remove it, or use another --socket")]
    NotASocket(PathBuf),
    /// Another process serves the socket.
    #[error("another process already serves {0}: stop it, or use another --socket")]
    Occupied(PathBuf),
    /// The service manager passed an unusable socket.
    #[error("using the socket of the service manager: {0}")]
    Activation(std::io::Error),
    /// A system call failed.
    #[error("creating the socket {path}: {source}")]
    Io {
        /// Path of the socket.
        path: PathBuf,
        /// The error of the system call.
        r#source: std::io::Error,
    },
}

impl SocketError {
    /// Returns the error class, which determines the exit code.
    pub(super) fn class(&self) -> Class {
        match self {
            SocketError::NotASocket(_) | SocketError::Activation(_) => Class::Invalid,
            SocketError::Occupied(_) => Class::Conflict,
            SocketError::Io { source, .. } => class(source, FileRole::Own),
        }
    }
}

/// Returns the socket that the service manager passed, or a new one at `path`.
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
