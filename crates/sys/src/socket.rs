//! Unix sockets in the file system (unix(7)), which nobody but those meant can connect to at any time.

pub mod activation;

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _, lchown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use super::dir;

/// What is where a socket is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nothing, or a socket at which nobody answers.
    Free,
    /// Something else than a socket.
    NotASocket,
    /// A socket at which somebody answers.
    Occupied,
}

/// Looks at the place. An error of somebody else's socket that is not dead, as of one with a full backlog, is told.
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

/// Binds a socket at `path`, over a dead one, with this mode and group; it does not block. Its directory is made where that
/// is missing.
///
/// It is bound in a directory that only we can enter, and put in its place when mode and group are right: at no time can
/// anybody else connect, and the umask of a process with many threads is left alone.
pub fn bind(path: &Path, mode: u32, gid: Option<u32>) -> io::Result<UnixListener> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    // /run is empty after each boot, and only systemd makes a RuntimeDirectory=.
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
