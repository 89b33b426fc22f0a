//! Slow and silent clients.

use axum::routing::get;
use futures_util::stream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::*;

const SHORT: Duration = Duration::from_millis(100);

/// A server for one connection at a time, with the means to release its handler.
struct Server {
    connection: Connection,
    begun: Arc<Notify>,
    release: Arc<Notify>,
}

impl Server {
    fn new() -> Self {
        let (begun, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let wait = {
            let (begun, release) = (Arc::clone(&begun), Arc::clone(&release));
            move || async move {
                begun.notify_one();
                release.notified().await;
                "released"
            }
        };
        let endless = || async {
            Body::from_stream(stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 4096]))))
        };
        let router = Router::new()
            .route("/", get(|| async { "ok" }))
            .route("/wait", get(wait))
            .route("/endless", get(endless));
        let connection = Connection {
            router,
            limits: limits(SHORT),
            stop: CancellationToken::new(),
            cut: CancellationToken::new(),
        };
        Server { connection, begun, release }
    }

    fn connect(&self) -> (DuplexStream, JoinHandle<()>) {
        let (client, server) = tokio::io::duplex(16 << 10);
        let peer = Peer::Unix { uid: 0, admitted: true };
        (client, tokio::spawn(self.connection.clone().serve(server, peer, ConnectionState::new(true))))
    }

    /// Waits until a silent connection is closed, which is longer than every limit of [`SHORT`].
    async fn a_while(&self) {
        let (_silent, serving) = self.connect();
        soon(serving).await.unwrap();
    }
}

/// Returns limits that are all equal.
fn limits(all: Duration) -> Limits {
    Limits { header: all, idle: all, unauthenticated_idle: all, unauthenticated_life: all, stall: all }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("within 30 s")
}

async fn until(client: &mut DuplexStream, end: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        text.push(soon(client.read_u8()).await.unwrap());
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn a_client_without_a_request_is_disconnected() {
    let server = Server::new();
    // The third is half of the HTTP/2 connection preface (RFC 9113, 3.4), and the fourth all of it.
    let starts: [&[u8]; 5] =
        [b"", b"GET / HTTP/1.1\r\nHost:", b"PRI * HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET"];
    for start in starts {
        let (mut client, serving) = server.connect();
        client.write_all(start).await.unwrap();
        soon(serving).await.unwrap();
    }
}

#[tokio::test]
async fn a_slow_head_is_disconnected() {
    let server = Server::new();
    let (mut client, serving) = server.connect();
    client.write_all(b"GET / HTTP/1.1\r\nX: ").await.unwrap();
    let drip = async {
        while client.write_all(b"x").await.is_ok() {
            tokio::time::sleep(SHORT / 10).await;
        }
    };
    soon(async { tokio::join!(drip, serving).1.unwrap() }).await;
}

#[tokio::test]
async fn a_bare_line_feed_is_refused() {
    let server = Server::new();
    for head in [
        "GET / HTTP/1.1\nHost: h\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\n\n",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n",
    ] {
        let (mut client, serving) = server.connect();
        // The second request on the connection, after the body of the first one.
        let first = "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n\n\n";
        client.write_all(first.as_bytes()).await.unwrap();
        until(&mut client, "ok").await;
        client.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon(client.read_to_string(&mut answer)).await.unwrap();
        let status = answer.split_once("\r\n").map(|(line, _)| line);
        assert!(
            matches!(status, Some("HTTP/1.1 400 Bad Request" | "HTTP/1.1 405 Method Not Allowed")),
            "{head:?}: {answer}"
        );
        soon(serving).await.unwrap();
    }
}

#[tokio::test]
async fn a_connection_is_kept_for_the_next_request_for_a_limited_time() {
    let server = Server::new();
    let (mut client, serving) = server.connect();
    for _ in 0..2 {
        client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
        assert!(until(&mut client, "ok").await.starts_with("HTTP/1.1 200"));
    }
    soon(serving).await.unwrap();
}

#[tokio::test]
async fn a_slow_answer_keeps_the_connection_open() {
    let server = Server::new();
    let (mut client, serving) = server.connect();
    client.write_all(b"GET /wait HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    soon(server.begun.notified()).await;
    server.a_while().await;
    server.a_while().await;
    server.release.notify_one();
    until(&mut client, "released").await;
    soon(serving).await.unwrap();
}

#[tokio::test]
async fn a_client_that_does_not_read_is_disconnected() {
    let server = Server::new();
    let (mut client, serving) = server.connect();
    client.write_all(b"GET /endless HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    soon(serving).await.unwrap();
}

#[tokio::test]
async fn a_stop_closes_idle_connections_and_waits_for_active_ones() {
    let mut server = Server::new();
    server.connection.limits = limits(far());
    let (mut idle, idle_serving) = server.connect();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    until(&mut idle, "ok").await;
    let (mut busy, busy_serving) = server.connect();
    busy.write_all(b"GET /wait HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    soon(server.begun.notified()).await;
    let (mut stuck, stuck_serving) = server.connect();
    stuck.write_all(b"GET /wait HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    soon(server.begun.notified()).await;
    server.connection.stop.cancel();
    soon(idle_serving).await.unwrap();
    server.release.notify_one();
    let answer = until(&mut busy, "released").await;
    assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
    soon(busy_serving).await.unwrap();
    assert!(!stuck_serving.is_finished());
    server.connection.cut.cancel();
    soon(stuck_serving).await.unwrap();
}

#[tokio::test]
async fn timeouts_are_short_without_a_credential() {
    let mut server = Server::new();
    let whole = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    // (limits, whether the credential is valid, whether the connection is closed)
    let cases = [
        (Limits { unauthenticated_idle: SHORT, ..limits(far()) }, false, true),
        (Limits { unauthenticated_life: SHORT, ..limits(far()) }, false, true),
        (Limits { unauthenticated_idle: SHORT, unauthenticated_life: SHORT, ..limits(far()) }, true, false),
    ];
    for (limits, authenticated, cut) in cases {
        server.connection.limits = limits;
        let (mut client, io) = tokio::io::duplex(16 << 10);
        let peer = Peer::Tcp { address: "192.0.2.1:1".parse().unwrap() };
        let standing = ConnectionState::new(false);
        let serving = tokio::spawn(server.connection.clone().serve(io, peer, Arc::clone(&standing)));
        client.write_all(whole.as_bytes()).await.unwrap();
        until(&mut client, "ok").await;
        if authenticated {
            standing.authenticate();
            tokio::time::sleep(5 * SHORT).await;
            assert!(!serving.is_finished());
            standing.close();
        }
        soon(serving).await.unwrap();
        assert_eq!(cut, !authenticated);
    }
}

#[tokio::test]
async fn a_connection_that_must_close_is_closed_at_once() {
    let mut server = Server::new();
    server.connection.limits = limits(far());
    let (mut client, io) = tokio::io::duplex(16 << 10);
    let standing = ConnectionState::new(false);
    let peer = Peer::Tcp { address: "192.0.2.1:1".parse().unwrap() };
    let serving = tokio::spawn(server.connection.clone().serve(io, peer, Arc::clone(&standing)));
    client.write_all(b"GET /wait HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    soon(server.begun.notified()).await;
    standing.close();
    soon(serving).await.unwrap();
}

fn far() -> Duration {
    Duration::from_secs(300)
}
