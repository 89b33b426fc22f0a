//! The Unix socket, where the operator is known by what the kernel says of the process at the other end.
//!
//! The socket is mode 0660: root and its group can connect, nobody else. With `api.socket_group` whoever can connect is the
//! tenant `admin`: the kernel tells only the primary group of a peer (SO_PEERCRED, unix(7)), so the mode is what admits the
//! others. Without it only root and the daemon's own user are, whatever the group of the socket is.

use std::path::Path;

use tokio::net::{UnixListener, UnixStream};

use super::{Accepted, Door, ListenError, Peer};
use larder_sys::process;
use larder_sys::socket::{self, Place};

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
    let failed = |doing| move |source| ListenError::Unix { path: path.to_owned(), doing, source };
    match socket::place(path).map_err(failed("asking who is at its place"))? {
        Place::Free => {}
        Place::NotASocket => return Err(ListenError::NotASocket(path.to_owned())),
        Place::Occupied => return Err(ListenError::Occupied(path.to_owned())),
    }
    let listener = socket::bind(path, MODE, gid).map_err(failed("making the socket"))?;
    UnixListener::from_std(listener).map_err(failed("making the socket"))
}

/// Accepts and serves connections until the daemon stops.
pub(super) async fn accept(listener: UnixListener, group: bool, door: Door) {
    let (own, _) = process::ids();
    let peer = move |stream: &UnixStream| match stream.peer_cred() {
        Ok(credentials) => {
            let uid = credentials.uid();
            Some(Peer::Unix { uid, admitted: group || uid == 0 || uid == own })
        }
        Err(error) => {
            tracing::warn!(%error, "the kernel does not say which user is at the other end of the socket");
            None
        }
    };
    door.open(
        |context| {
            listener.poll_accept(context).map_ok(|(stream, _)| {
                let peer = peer(&stream);
                (stream, peer)
            })
        },
        |Accepted { stream, peer, standing }: Accepted<UnixStream>, connection| {
            connection.serve(stream, peer, standing)
        },
    )
    .await;
}
