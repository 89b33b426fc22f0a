//! The Unix socket, where the operator is known by what the kernel says of the process at the other end.
//!
//! The socket is mode 0660: root and its group can connect, nobody else. With `api.socket_group` whoever can connect is the
//! tenant `admin`: the kernel tells only the primary group of a peer (SO_PEERCRED, unix(7)), so the mode is what admits the
//! others. Without it only root and the daemon's own user are, whatever the group of the socket is.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener as Bound, UnixStream as Probe};
use std::path::Path;

use tokio::net::{UnixListener, UnixStream};

use super::{Door, ListenError, Peer};
use crate::sys::process;

const MODE: u32 = 0o660;

/// Binds the socket at `path` for `group`, by name or number; empty is the daemon's own.
pub(super) fn bind(path: &Path, group: &str) -> Result<UnixListener, ListenError> {
    let gid = match group {
        "" => None,
        group => {
            let gid = process::group(group);
            Some(gid.ok().flatten().ok_or_else(|| ListenError::Group(group.to_owned()))?)
        }
    };
    check_place(path)?;
    let failed = |doing| move |source| ListenError::Unix { path: path.to_owned(), doing, source };
    // Bound in a directory that only we can enter, and put in its place when mode and group are right: at no time can anybody
    // else connect, and the umask of a process with many threads is left alone. The rename replaces what is dead.
    let parent = path.parent().unwrap_or(Path::new("/"));
    // /run is empty after each boot, and only systemd makes a RuntimeDirectory=.
    match DirBuilder::new().mode(0o755).create(parent) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed("making its directory")(e)),
        _ => {}
    }
    let nursery = parent.join(".bind");
    let inside = nursery.join("s");
    let _ = fs::remove_file(&inside);
    let _ = fs::remove_dir(&nursery);
    DirBuilder::new().mode(0o700).create(&nursery).map_err(failed("making a directory beside it"))?;
    let bound = put(&inside, gid, path);
    let _ = fs::remove_file(&inside);
    let _ = fs::remove_dir(&nursery);
    let listener = bound.map_err(failed("making the socket"))?;
    listener.set_nonblocking(true).map_err(failed("making the socket"))?;
    UnixListener::from_std(listener).map_err(failed("making the socket"))
}

fn put(inside: &Path, gid: Option<u32>, path: &Path) -> io::Result<Bound> {
    let listener = Bound::bind(inside)?;
    fs::set_permissions(inside, Permissions::from_mode(MODE))?;
    if gid.is_some() {
        std::os::unix::fs::lchown(inside, None, gid)?;
    }
    fs::rename(inside, path)?;
    Ok(listener)
}

/// Only a socket at which nobody answers may be replaced.
fn check_place(path: &Path) -> Result<(), ListenError> {
    let failed = |doing, source| ListenError::Unix { path: path.to_owned(), doing, source };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed("looking at its place", e)),
        Ok(metadata) if !metadata.file_type().is_socket() => Err(ListenError::NotASocket(path.to_owned())),
        Ok(_) => match Probe::connect(path) {
            Ok(_) => Err(ListenError::Occupied(path.to_owned())),
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            // Somebody else's, or with a full backlog: not dead.
            Err(e) => Err(failed("asking who is there", e)),
        },
    }
}

/// Serves who comes.
pub(super) async fn accept(listener: UnixListener, group: bool, door: Door) {
    let (own, _) = process::ids();
    door.open(
        |context| listener.poll_accept(context),
        |(stream, _): (UnixStream, _), connection| async move {
            let uid = match stream.peer_cred() {
                Ok(credentials) => credentials.uid(),
                Err(error) => {
                    tracing::warn!(%error, "the kernel does not say who is at the other end of the socket");
                    return;
                }
            };
            let admitted = group || uid == 0 || uid == own;
            connection.serve(stream, Peer::Unix { uid, admitted }).await;
        },
    )
    .await;
}
