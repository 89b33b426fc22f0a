//! Debian's docker-registry on a free port of loopback.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use larder_model::digest::Digest;
use larder_testing::image::Image;
use tempfile::TempDir;

use super::http::Client;
use super::succeed;
use super::token::TokenServer;

/// The user that a registry with authentication accepts.
pub(crate) const USER: &str = "larder";
/// The password of [`USER`].
pub(crate) const PASSWORD: &str = "p:ss w\u{f6}rd";

/// Authentication method of a registry.
#[derive(Debug)]
enum Authentication {
    None,
    Basic,
    Token(TokenServer),
}

/// A running registry. Stopped when it is dropped, and its content is deleted.
#[derive(Debug)]
pub(crate) struct Registry {
    process: Child,
    address: SocketAddr,
    authentication: Authentication,
    dir: Arc<TempDir>,
}

impl Registry {
    /// Starts a registry without authentication.
    pub(crate) fn open() -> Self {
        Registry::start(tempfile::tempdir().unwrap().into(), "", "", Authentication::None)
    }

    /// Starts a registry with basic authentication for [`USER`].
    pub(crate) fn with_password() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let line = succeed(Command::new("htpasswd").args(["-nbB", USER, PASSWORD]));
        let file = dir.path().join("htpasswd");
        fs::write(&file, line.trim_end()).unwrap();
        let config = format!("auth: {{htpasswd: {{realm: larder-test, path: {}}}}}", file.display());
        Registry::start(dir.into(), "", &config, Authentication::Basic)
    }

    /// Starts a registry with bearer tokens from a token server that accepts [`USER`]. Each token is valid
    /// for `lifetime`.
    pub(crate) fn with_tokens(lifetime: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tokens = TokenServer::start(dir.path(), lifetime);
        let config = format!(
            "auth: {{token: {{realm: 'http://{}/token', service: {}, issuer: {}, rootcertbundle: {}}}}}",
            tokens.address(),
            TokenServer::SERVICE,
            TokenServer::ISSUER,
            tokens.certificate().display(),
        );
        Registry::start(dir.into(), "", &config, Authentication::Token(tokens))
    }

    /// Starts a registry with HTTPS for clients with a certificate, and pushes `image`. Certificates and keys
    /// are `server.pem`, `server.key` and `ca.pem` in `certificates`.
    pub(crate) fn with_tls(certificates: &Path, image: &Image, repository: &str, tag: &str) -> Self {
        let clients = format!(", clientcas: [{}]", certificates.join("ca.pem").display());
        Registry::with_https(certificates, &clients, image, repository, tag)
    }

    /// Starts a registry with HTTPS for all clients, and pushes `image`.
    pub(crate) fn with_certificate(certificates: &Path, image: &Image, repository: &str, tag: &str) -> Self {
        Registry::with_https(certificates, "", image, repository, tag)
    }

    fn with_https(certificates: &Path, more: &str, image: &Image, repository: &str, tag: &str) -> Self {
        let open = Registry::open();
        open.push(image, repository, tag);
        let dir = Arc::clone(&open.dir);
        drop(open);
        let at = |name: &str| certificates.join(name).display().to_string();
        let (certificate, key) = (at("server.pem"), at("server.key"));
        let tls = format!(", tls: {{certificate: {certificate}, key: {key}{more}}}");
        Registry::start(dir, &tls, "", Authentication::None)
    }

    /// Reports whether the registry's log contains a request over `protocol`.
    pub(crate) fn spoke(&self, protocol: &str) -> bool {
        fs::read_to_string(self.dir.path().join("log")).unwrap().contains(protocol)
    }

    fn start(dir: Arc<TempDir>, http: &str, auth: &str, authentication: Authentication) -> Self {
        // Another process can take the free port before the registry binds it, so a lost race is repeated.
        for _ in 0..5 {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let address = free.local_addr().unwrap();
            drop(free);
            if let Some(process) = spawn(dir.path(), http, auth, address) {
                return Registry { process, address, authentication, dir };
            }
        }
        let log = fs::read_to_string(dir.path().join("log")).unwrap_or_default();
        panic!("docker-registry did not start:\n{log}");
    }

    /// Returns the host and port, as in a reference.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    /// Returns a reference to an image in this registry.
    pub(crate) fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Returns a client that can read and write `repository`.
    pub(crate) fn client(&self, repository: &str) -> Client {
        let authorization = match &self.authentication {
            Authentication::None => None,
            Authentication::Basic => Some(basic()),
            Authentication::Token(tokens) => {
                Some(format!("Bearer {}", tokens.sign(repository, &["pull", "push"])))
            }
        };
        Client { address: self.address, authorization }
    }

    /// Pushes `image` and returns its reference.
    pub(crate) fn push(&self, image: &Image, repository: &str, tag: &str) -> String {
        image.push(&mut self.client(repository), repository, tag).unwrap();
        self.reference(&format!("{repository}:{tag}"))
    }

    /// Deletes a manifest, regardless of the tags that point to it.
    pub(crate) fn delete(&self, repository: &str, manifest: &Digest) {
        let path = format!("/v2/{repository}/manifests/{manifest}");
        let answer = self.client(repository).request("DELETE", &path, "text/plain", &[]).unwrap();
        assert_eq!(answer.status, 202, "{path}");
    }

    /// Writes a docker config with the credentials of [`USER`] and returns its directory.
    pub(crate) fn docker_config(&self) -> PathBuf {
        let dir = self.dir.path().join("docker");
        fs::create_dir_all(&dir).unwrap();
        let auth = BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}"));
        let config = serde_json::json!({"auths": {self.host(): {"auth": auth}}});
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
        dir
    }

    /// Returns the GET requests for blobs served so far, from the registry's own log: digest and response
    /// bytes.
    pub(crate) fn blobs_served(&self) -> Vec<(String, u64)> {
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap();
        log.lines().filter_map(blob_served).collect()
    }

    /// Returns the number of tokens issued so far; 0 without token authentication.
    pub(crate) fn tokens_issued(&self) -> usize {
        match &self.authentication {
            Authentication::Token(tokens) => tokens.issued(),
            _ => 0,
        }
    }

    /// Stops the registry at once, so that nothing answers on its port any more.
    pub(crate) fn stop(mut self) {
        self.kill();
        assert!(TcpStream::connect(self.address).is_err());
    }

    fn kill(&mut self) {
        // Fails if the process has ended already, which is fine.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns the `Authorization` header of [`USER`].
pub(crate) fn basic() -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}")))
}

/// Parses an access log line in the combined format: `… "GET /v2/a/blobs/sha256:… HTTP/1.1" 200 1234 …`.
fn blob_served(line: &str) -> Option<(String, u64)> {
    let (_, request) = line.split_once("\"GET ")?;
    let (path, rest) = request.split_once(" HTTP/1.1\" ")?;
    let (_, digest) = path.split_once("/blobs/")?;
    let mut answer = rest.split(' ');
    let status = answer.next()?;
    let bytes = answer.next()?.parse().ok()?;
    matches!(status, "200" | "206").then(|| (digest.to_owned(), bytes))
}

fn spawn(dir: &Path, http: &str, auth: &str, address: SocketAddr) -> Option<Child> {
    let config = dir.join("registry.yml");
    let storage = dir.join("storage");
    let text = format!(
        "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
         http: {{addr: '{address}', secret: test{http}}}\n{auth}\n",
        storage.display()
    );
    fs::write(&config, text).unwrap();
    let log = File::create(dir.join("log")).unwrap();
    let mut process = Command::new("docker-registry")
        .arg("serve")
        .arg(&config)
        .env("OTEL_TRACES_EXPORTER", "none")
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        if process.try_wait().unwrap().is_some() {
            return None;
        }
        let client = Client { address, authorization: None };
        if client.request("GET", "/v2/", "text/plain", &[]).is_ok() {
            return Some(process);
        }
        sleep(Duration::from_millis(20));
    }
    let _ = process.kill();
    let _ = process.wait();
    None
}

/// Returns a setting that redirects every registry to `host`.
pub(crate) fn one_registry_for_all(dir: &Path, host: &str) -> String {
    let default = dir.join("_default");
    fs::create_dir(&default).unwrap();
    fs::write(default.join("hosts.toml"), format!("server = 'http://{host}'\n")).unwrap();
    format!("registry.certs_d = '{}'\n", dir.display())
}
