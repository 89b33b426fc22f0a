//! A registry on loopback that misbehaves on purpose and counts what it serves.
//!
//! It runs on a thread of its own, so that both async tests and tests that start the real binary can use it.

mod body;
mod serve;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::image::{Document, Target};
use larder_model::digest::Digest;

/// Makes the bytes of a generated blob: `(offset, length)` in, exactly so many bytes out.
pub type Generator = Arc<dyn Fn(u64, usize) -> Bytes + Send + Sync>;

/// A running registry; dropped, it stops and closes its connections.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _stop: oneshot::Sender<()>,
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answers `status` to the next `times` requests whose path contains `path`.
    Status {
        /// Part of the path.
        path: String,
        /// Status code.
        status: u16,
        /// How often.
        times: u32,
        /// Value of Retry-After.
        retry_after: Option<String>,
    },
    /// Closes the connection when the blob has been served up to each of these offsets, once each.
    DropAt {
        /// The blob.
        digest: Digest,
        /// Offsets in bytes.
        offsets: Vec<u64>,
    },
    /// Sends nothing more, without closing, when the blob has been served up to each of these offsets, once each.
    StallAt {
        /// The blob.
        digest: Digest,
        /// Offsets in bytes.
        offsets: Vec<u64>,
    },
    /// Sends the blob in pieces of `bytes`, one after each pause of `every`.
    Dribble {
        /// The blob.
        digest: Digest,
        /// Size of a piece.
        bytes: u64,
        /// The pause.
        every: Duration,
    },
    /// Sends one byte of each manifest after each pause of this length.
    DribbleManifests(Duration),
    /// Answers 200 and the whole blob to a Range request.
    IgnoreRange,
    /// Answers 206 with this Content-Range, and the right bytes, to the next `times` Range requests.
    WrongContentRange {
        /// The header's value.
        value: String,
        /// How often.
        times: u32,
    },
    /// Answers 416 to the next `times` Range requests.
    RangeRefused {
        /// How often.
        times: u32,
    },
    /// Redirects blobs to the same path (and a query with a signature) under this URL, or to this very URL with `exact`.
    RedirectBlobs {
        /// `http://127.0.0.1:1234`.
        to: String,
        /// Use the URL as it is.
        exact: bool,
    },
    /// Serves manifests with this Content-Type.
    ContentType(String),
    /// Serves blobs with this Content-Encoding, unchanged.
    ContentEncoding(String),
    /// Serves blobs longer (or, negative, shorter) by so many bytes, without Content-Length.
    Length(i64),
    /// Serves manifests that never end.
    EndlessManifest,
    /// Serves other bytes than those of the digest as manifest.
    WrongManifest,
    /// Names this realm in challenges.
    Realm(String),
    /// Sends these bytes behind each challenge.
    ChallengeEnd(Vec<u8>),
    /// Redirects the next `times` requests for a token to `to`, which may be a path, with this status.
    RedirectTokens {
        /// Where to.
        to: String,
        /// Status code.
        status: u16,
        /// How often.
        times: u32,
    },
    /// Sends this Warning header with each manifest.
    Warning(String),
    /// Gives this token.
    Token(String),
}

/// Who may pull.
#[derive(Clone, Debug)]
pub enum Auth {
    /// Basic with one of these (user name, password).
    Basic(Vec<(String, String)>),
    /// Bearer with a token from `/token`.
    Bearer {
        /// User names and passwords; a password is also taken as a refresh token.
        users: Vec<(String, String)>,
        /// Anonymous tokens may pull too.
        anonymous: bool,
        /// A token is refused after so many requests.
        uses: u32,
    },
}

/// A request that was seen.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Path without query.
    pub path: String,
    /// Query.
    pub query: Option<String>,
    /// Authorization header.
    pub authorization: Option<String>,
    /// Range header.
    pub range: Option<String>,
}

#[derive(Default)]
struct State {
    blobs: HashMap<Digest, Blob>,
    manifests: HashMap<(String, String), (String, Bytes)>,
    faults: Vec<Fault>,
    auth: Option<Auth>,
    tokens: HashMap<String, u32>,
    issued: u32,
    seen: Vec<Seen>,
    served: HashMap<Digest, u64>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("faults", &self.faults).finish_non_exhaustive()
    }
}

#[derive(Clone)]
struct Blob {
    size: u64,
    generate: Generator,
}

impl Registry {
    /// Starts a registry on a free port of 127.0.0.1; for async tests.
    pub async fn start() -> Self {
        Registry::spawn()
    }

    /// Starts a registry on a free port of 127.0.0.1; for blocking tests.
    pub fn spawn() -> Self {
        Registry::spawn_at(Ipv4Addr::LOCALHOST.into())
    }

    /// The same on another address of this machine.
    pub fn spawn_at(address: IpAddr) -> Self {
        let listener = std::net::TcpListener::bind((address, 0)).expect("an address of ours has free ports");
        let address = listener.local_addr().expect("a bound socket has an address");
        listener.set_nonblocking(true).expect("sockets can be set non-blocking");
        let state = Arc::new(Mutex::new(State::default()));
        let (_stop, stopped) = oneshot::channel();
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be made").block_on(async move {
                tokio::select! {
                    () = serve::serve(listener, address, shared) => {}
                    _ = stopped => {}
                }
            });
        });
        Registry { address, state, _stop }
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Keeps a blob.
    pub fn put_blob(&self, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::sha256(&bytes);
        let size = bytes.len() as u64;
        let generate: Generator = Arc::new(move |offset, length| {
            let offset = usize::try_from(offset).expect("an offset in memory is a usize");
            bytes.slice(offset..offset + length)
        });
        self.put_generated(digest.clone(), size, generate);
        digest
    }

    /// Keeps a blob whose bytes are made when they are asked for; `digest` is theirs.
    pub fn put_generated(&self, digest: Digest, size: u64, generate: Generator) {
        self.state().blobs.insert(digest, Blob { size, generate });
    }

    /// Keeps a manifest under its tag and its digest.
    pub fn put_manifest(
        &self,
        repository: &str,
        tag: &str,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::sha256(&bytes);
        let mut state = self.state();
        for reference in [tag.to_owned(), digest.to_string()] {
            let name = (repository.to_owned(), reference);
            state.manifests.insert(name, (media_type.to_owned(), bytes.clone()));
        }
        digest
    }

    /// Demands authentication from now on.
    pub fn require(&self, auth: Auth) {
        self.state().auth = Some(auth);
    }

    /// Adds a fault.
    pub fn fault(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// Behaves from now on.
    pub fn heal(&self) {
        self.state().faults.clear();
    }

    /// Bytes of a blob handed to the network so far, all requests together.
    pub fn served(&self, digest: &Digest) -> u64 {
        self.state().served.get(digest).copied().unwrap_or_default()
    }

    /// Bytes of all blobs handed to the network so far.
    pub fn served_total(&self) -> u64 {
        self.state().served.values().sum()
    }

    /// Requests whose path contains `path`.
    pub fn requests(&self, path: &str) -> usize {
        self.state().seen.iter().filter(|seen| seen.path.contains(path)).count()
    }

    /// All requests, oldest first.
    pub fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    /// Forgets what was counted.
    pub fn forget(&self) {
        let mut state = self.state();
        state.seen.clear();
        state.served.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Target for Registry {
    fn put_blob(&mut self, _: &str, _: &Digest, bytes: &Bytes) -> io::Result<()> {
        Registry::put_blob(self, bytes.clone());
        Ok(())
    }

    fn put_manifest(&mut self, repository: &str, reference: &str, document: &Document) -> io::Result<()> {
        Registry::put_manifest(self, repository, reference, &document.media_type, document.bytes.clone());
        Ok(())
    }
}
