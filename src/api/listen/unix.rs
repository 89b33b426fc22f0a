//! The Unix socket, where the kernel identifies the user of the peer process.
//!
//! The socket has mode 0660: only root and its group can connect. With `api.socket_group`, every process that
//! can connect is the tenant `admin`. The kernel reports only the primary group of a peer (SO_PEERCRED,
//! unix(7)), so access is controlled by the mode. Without `api.socket_group`, only root and the daemon's own
//! user are `admin`, whatever the group of the socket is.

use std::path::Path;

use tokio::net::{UnixListener, UnixStream};

use super::{Accepted, Acceptor, ListenError, Peer};
use larder_sys::process;
use larder_sys::socket::{self, Place};

const MODE: u32 = 0o660;

/// Binds the socket at `path` for `group`, a name or number. An empty string means the daemon's own group.
pub(super) fn bind(path: &Path, group: &str) -> Result<UnixListener, ListenError> {
    let gid = match group {
        "" => None,
        group => {
            let gid = process::group(group);
            Some(gid.ok().flatten().ok_or_else(|| ListenError::Group(group.to_owned()))?)
        }
    };
    let failed = |doing| move |source| ListenError::Unix { path: path.to_owned(), doing, source };
    match socket::place(path).map_err(failed("checking the existing socket"))? {
        Place::Free => {}
        Place::NotASocket => return Err(ListenError::NotASocket(path.to_owned())),
        Place::Occupied => return Err(ListenError::Occupied(path.to_owned())),
    }
    let listener = socket::bind(path, MODE, gid).map_err(failed("creating the socket"))?;
    UnixListener::from_std(listener).map_err(failed("creating the socket"))
}

/// Accepts and serves connections until the daemon stops.
pub(super) async fn accept(listener: UnixListener, group: bool, acceptor: Acceptor) {
    let (own, _) = process::ids();
    let peer = move |stream: &UnixStream| match stream.peer_cred() {
        Ok(credentials) => {
            let uid = credentials.uid();
            Some(Peer::Unix { uid, admitted: group || uid == 0 || uid == own })
        }
        Err(error) => {
            tracing::warn!(%error, "cannot read the peer credentials of a socket connection");
            None
        }
    };
    acceptor
        .open(
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
