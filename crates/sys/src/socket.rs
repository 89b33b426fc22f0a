//! Unix sockets in the file system (unix(7)) that other users cannot connect to at any time.

pub mod activation;

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _, lchown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use super::dir;

/// State of the path at which a socket will be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The path is free, or has a dead socket.
    Free,
    /// The path is not a socket.
    NotASocket,
    /// A process listens at the socket.
    Occupied,
}

/// Examines the path of a socket.
///
/// # Errors
/// Those of lstat(2) and connect(2), for example if the socket is alive but its backlog is full.
pub fn place(path: &Path) -> io::Result<Place> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Place::Free),
        Err(e) => Err(e),
        Ok(metadata) if !metadata.file_type().is_socket() => Ok(Place::NotASocket),
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => Ok(Place::Occupied),
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(Place::Free),
            Err(e) => Err(e),
        },
    }
}

/// Binds a non-blocking socket with this mode and group at `path`, and replaces a dead one. Its directory is
/// created if missing.
///
/// The socket is bound in a private directory and renamed to `path` once its mode and group are correct. No
/// other user can connect before that, and the process-wide umask is not changed, which would affect other
/// threads.
///
/// # Errors
/// Those of creating the directory and the socket; `InvalidInput` if `path` has no file name.
pub fn bind(path: &Path, mode: u32, gid: Option<u32>) -> io::Result<UnixListener> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    // /run is empty after each boot, and only systemd creates a RuntimeDirectory=.
    dir::create_all(parent, 0o755)?;
    let nursery = parent.join(match path.file_name() {
        Some(name) => format!(".bind.{}", name.display()),
        None => return Err(io::ErrorKind::InvalidInput.into()),
    });
    let inside = nursery.join("s");
    let clear = || {
        let _ = fs::remove_file(&inside);
        let _ = fs::remove_dir(&nursery);
    };
    clear();
    DirBuilder::new().mode(0o700).create(&nursery)?;
    let bound = put(&inside, mode, gid, path);
    clear();
    bound
}

fn put(inside: &Path, mode: u32, gid: Option<u32>, path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(inside)?;
    fs::set_permissions(inside, Permissions::from_mode(mode))?;
    if gid.is_some() {
        lchown(inside, None, gid)?;
    }
    fs::rename(inside, path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
