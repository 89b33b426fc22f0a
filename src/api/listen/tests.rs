//! Listeners on a real socket and a real port.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};

use axum::extract::Extension;
use axum::routing::get;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;

use super::*;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";

struct Host {
    dir: TempDir,
    settings: Api,
    address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

fn settings(dir: &TempDir, max_connections: usize) -> Api {
    let socket = dir.path().join("larder.sock");
    let tcp = Some("127.0.0.1:0".parse().unwrap());
    Api { socket, tcp, max_connections, header_timeout_seconds: 300, ..Api::default() }
}

/// Starts a server that answers with the peer of the request.
async fn host(max_connections: usize) -> Host {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(&dir, max_connections);
    let listeners = Listeners::bind(&settings).unwrap();
    let address = listeners.tcp_address().unwrap();
    let stop = CancellationToken::new();
    let router =
        Router::new().route("/", get(|Extension(peer): Extension<Peer>| async move { format!("{peer:?}") }));
    let serving = {
        let (settings, stop) = (settings.clone(), stop.clone());
        tokio::spawn(async move { listeners.serve(router, settings, stop).await })
    };
    Host { dir, settings, address, stop, serving }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("within 30 s")
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
    stream.write_all(REQUEST).await.unwrap();
    let mut text = String::new();
    soon(stream.read_to_string(&mut text)).await.unwrap();
    text
}

#[tokio::test]
async fn each_listener_reports_its_peer() {
    let host = host(8).await;
    let response = answer(UnixStream::connect(&host.settings.socket).await.unwrap()).await;
    assert!(response.starts_with("HTTP/1.1 200") && response.contains("admitted: true"), "{response}");
    let response = answer(TcpStream::connect(host.address).await.unwrap()).await;
    assert!(response.contains("Tcp { address: 127.0.0.1:"), "{response}");
    let metadata = std::fs::metadata(&host.settings.socket).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o660);
    let names: Vec<_> =
        std::fs::read_dir(host.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["larder.sock"], "no temporary file is left");
    host.stop.cancel();
    soon(host.serving).await.unwrap();
}

#[tokio::test]
async fn a_flood_over_tcp_leaves_both_listeners_open() {
    let host = host(16).await;
    // Silent clients keep their connections for 300 s.
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(host.address).await.unwrap());
    }
    for _ in 0..3 {
        let response = answer(UnixStream::connect(&host.settings.socket).await.unwrap()).await;
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
        let response = answer(TcpStream::connect(host.address).await.unwrap()).await;
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    }
    let mut closed = 0;
    for stream in &mut silent {
        let read = tokio::time::timeout(Duration::from_millis(1), stream.read_u8()).await;
        closed += usize::from(read.is_ok());
    }
    assert!(closed >= 40 - 14, "{closed}: the longest idle connections are closed");
    host.stop.cancel();
    soon(host.serving).await.unwrap();
}

#[tokio::test]
async fn only_a_dead_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Api { tcp: None, ..settings(&dir, 8) };
    let alive = Listeners::bind(&settings).unwrap();
    assert!(matches!(Listeners::bind(&settings), Err(ListenError::Occupied(_))));
    drop(alive);
    assert!(settings.socket.exists(), "a killed daemon leaves its socket");
    // Leftovers of a daemon that was killed while it bound the socket.
    std::fs::create_dir(dir.path().join(".bind")).unwrap();
    std::fs::write(dir.path().join(".bind/s"), "").unwrap();
    drop(Listeners::bind(&settings).unwrap());
    std::fs::remove_file(&settings.socket).unwrap();
    std::fs::write(&settings.socket, "precious").unwrap();
    assert!(matches!(Listeners::bind(&settings), Err(ListenError::NotASocket(_))));
    assert_eq!(std::fs::read(&settings.socket).unwrap(), b"precious");
    let absent = |path: &str| Api { socket: dir.path().join(path), ..settings.clone() };
    assert!(Listeners::bind(&absent("absent/larder.sock")).is_ok(), "as /run/larder is after a boot");
    let mode = std::fs::metadata(dir.path().join("absent")).unwrap().mode();
    assert_eq!(mode & 0o022, 0, "other users must not create a socket there: {mode:o}");
    assert!(matches!(Listeners::bind(&absent("larder.sock/larder.sock")), Err(ListenError::Unix { .. })));
}

#[tokio::test]
async fn the_group_of_the_socket() {
    let dir = tempfile::tempdir().unwrap();
    let own = std::fs::metadata(dir.path()).unwrap().gid();
    let with = |group: &str| Api { tcp: None, socket_group: group.to_owned(), ..settings(&dir, 8) };
    let numbered = with(&own.to_string());
    drop(Listeners::bind(&numbered).unwrap());
    assert_eq!(std::fs::metadata(&numbered.socket).unwrap().gid(), own);
    assert!(matches!(Listeners::bind(&with("no-such-group-here")), Err(ListenError::Group(_))));
}

#[tokio::test]
async fn unsafe_tcp_settings_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(&dir, 8);
    let open = Api { tcp: Some("0.0.0.0:0".parse().unwrap()), ..settings.clone() };
    assert!(matches!(Listeners::bind(&open), Err(ListenError::Plain(_))));
    assert!(Listeners::bind(&settings).is_ok(), "loopback needs no certificate");
}
