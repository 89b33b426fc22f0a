//! A token server for docker-registry's `auth.token`. It signs JSON Web Tokens (RFC 7519) with a key created
//! by openssl.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{fs, thread};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::json;

use super::registry::basic;
use super::succeed;

/// A running token server. Its thread ends with the test process.
#[derive(Debug)]
pub(crate) struct TokenServer {
    address: SocketAddr,
    signer: Signer,
    issued: Arc<AtomicUsize>,
}

#[derive(Clone, Debug)]
struct Signer {
    key: PathBuf,
    certificate: PathBuf,
    lifetime: Duration,
}

impl TokenServer {
    /// Name of the registry in tokens.
    pub(crate) const SERVICE: &str = "larder-test-registry";
    /// Name of this server in tokens.
    pub(crate) const ISSUER: &str = "larder-test-issuer";

    /// Creates a key and a certificate in `dir` and answers `GET /token` on a free port.
    pub(crate) fn start(dir: &Path, lifetime: Duration) -> Self {
        let signer = Signer { key: dir.join("token.key"), certificate: dir.join("token.pem"), lifetime };
        succeed(
            Command::new("openssl")
                .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"])
                .args(["-subj", "/CN=larder-test", "-keyout"])
                .arg(&signer.key)
                .arg("-out")
                .arg(&signer.certificate),
        );
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let server = TokenServer {
            address: listener.local_addr().unwrap(),
            signer: signer.clone(),
            issued: Arc::default(),
        };
        let issued = Arc::clone(&server.issued);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that disconnects early is not an error of the server.
                let _ = answer(stream, &signer, &issued);
            }
        });
        server
    }

    /// Returns the address on which it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the certificate that verifies its tokens.
    pub(crate) fn certificate(&self) -> &Path {
        &self.signer.certificate
    }

    /// Returns the number of tokens issued over HTTP.
    pub(crate) fn issued(&self) -> usize {
        self.issued.load(Ordering::Relaxed)
    }

    /// Returns a token for `actions` on `repository`.
    pub(crate) fn sign(&self, repository: &str, actions: &[&str]) -> String {
        self.signer.sign(repository, actions)
    }
}

impl Signer {
    fn sign(&self, repository: &str, actions: &[&str]) -> String {
        let pem = fs::read_to_string(&self.certificate).unwrap();
        let der: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [der]});
        let claims = json!({
            "iss": TokenServer::ISSUER, "sub": "larder", "aud": TokenServer::SERVICE,
            "nbf": now - 60, "iat": now, "exp": now + self.lifetime.as_secs(), "jti": "1",
            "access": [{"type": "repository", "name": repository, "actions": actions}],
        });
        let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        let signed =
            format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
        let mut openssl = Command::new("openssl")
            .args(["dgst", "-sha256", "-sign"])
            .arg(&self.key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = openssl.stdin.take().unwrap();
        stdin.write_all(signed.as_bytes()).unwrap();
        drop(stdin);
        let output = openssl.wait_with_output().unwrap();
        assert!(output.status.success(), "openssl failed to sign");
        format!("{signed}.{}", encode(&output.stdout))
    }
}

/// Answers one request: the scope is in the query, the credentials are in the header.
fn answer(mut stream: TcpStream, signer: &Signer, issued: &AtomicUsize) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let mut known = false;
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        let value = line.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case("authorization"));
        known |= value.is_some_and(|(_, value)| value == basic());
    }
    let scope = request
        .split(['?', '&', ' '])
        .find_map(|part| part.strip_prefix("scope="))
        .unwrap_or_default()
        .replace("%3A", ":")
        .replace("%2F", "/");
    let repository = scope.split(':').nth(1).unwrap_or_default();
    let (status, body) = if known {
        issued.fetch_add(1, Ordering::Relaxed);
        let token = signer.sign(repository, &["pull"]);
        let body = json!({"token": token, "expires_in": signer.lifetime.as_secs()});
        ("200 OK", body.to_string())
    } else {
        ("401 Unauthorized", json!({"details": "unknown user"}).to_string())
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
