//! A registry on loopback with deliberate faults, which counts the bytes that it serves.
//!
//! It runs on its own thread, so both async tests and tests that start the real binary can use it.

mod body;
mod serve;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, io};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::image::{Document, Target};
use larder_model::digest::Digest;

/// Generates bytes of a blob. The arguments are offset and length; the result has exactly that length.
pub type Generator = Arc<dyn Fn(u64, usize) -> Bytes + Send + Sync>;

/// A running registry. Dropping it closes its connections.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _stop: oneshot::Sender<()>,
}

/// A deliberate fault of the registry.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Returns `status` for the next `times` requests whose path contains `path`.
    Status {
        /// Part of the path.
        path: String,
        /// HTTP status code.
        status: u16,
        /// Number of affected requests.
        times: u32,
        /// Value of Retry-After.
        retry_after: Option<String>,
    },
    /// Closes the connection once the blob has been served up to each of these offsets; once per offset.
    DropAt {
        /// Digest of the blob.
        digest: Digest,
        /// Offsets in the blob, in bytes.
        offsets: Vec<u64>,
    },
    /// Stops sending without closing once the blob has been served up to each of these offsets; once per
    /// offset.
    StallAt {
        /// Digest of the blob.
        digest: Digest,
        /// Offsets in the blob, in bytes.
        offsets: Vec<u64>,
    },
    /// Sends the blob in pieces of `bytes`, each after a pause of `every`.
    Dribble {
        /// Digest of the blob.
        digest: Digest,
        /// Size of a piece, in bytes.
        bytes: u64,
        /// Pause before each piece.
        every: Duration,
    },
    /// Sends manifests byte by byte, with a pause of this length before each byte.
    DribbleManifests(Duration),
    /// Sends lists of tags byte by byte, with a pause of a second before each byte.
    DribbleTags,
    /// Returns 200 and the whole blob for a Range request.
    IgnoreRange,
    /// Does the same for this blob only.
    IgnoreRangeOf(Digest),
    /// Answers a Range request with at most this many bytes of the range, and a correct Content-Range.
    ShortRanges {
        /// Maximum number of bytes.
        bytes: u64,
    },
    /// Sends blobs at `slow` bytes per second on every connection whose number is a multiple of `every`, and
    /// at `rate` on the others. Connections are numbered from 0 when their first blob is requested.
    SlowConnections {
        /// Interval of slow connections.
        every: u64,
        /// Rate of these, bytes per second.
        slow: u64,
        /// Rate of the others, bytes per second.
        rate: u64,
    },
    /// Sends each blob at `rate` bytes per second, divided by the square of the number of blobs that are
    /// being sent: more connections of a client are slower together.
    Congested {
        /// Rate of a single connection, bytes per second.
        rate: u64,
    },
    /// Sends blobs at `rate` bytes per second once `after` bytes were sent in all.
    SlowAfter {
        /// Number of bytes at full speed.
        after: u64,
        /// Rate of each connection afterwards, bytes per second.
        rate: u64,
    },
    /// Answers the next `times` Range requests with 206, this Content-Range and the correct bytes.
    WrongContentRange {
        /// Value of the header.
        value: String,
        /// Number of affected requests.
        times: u32,
    },
    /// Returns 416 for the next `times` Range requests.
    RangeRefused {
        /// Number of affected requests.
        times: u32,
    },
    /// Redirects blobs to the same path (and a signed query) under this URL, or to exactly this URL with
    /// `exact`.
    RedirectBlobs {
        /// Target, for example `http://127.0.0.1:1234`.
        to: String,
        /// Uses the URL without any change.
        exact: bool,
    },
    /// Serves manifests with this Content-Type.
    ContentType(String),
    /// Serves blobs with this Content-Encoding, unchanged.
    ContentEncoding(String),
    /// Serves blobs longer (or, if negative, shorter) by this many bytes, without Content-Length.
    Length(i64),
    /// Serves manifests that never end.
    EndlessManifest,
    /// Serves a manifest whose bytes do not match the digest.
    WrongManifest,
    /// Uses this realm in challenges.
    Realm(String),
    /// Appends these bytes to each challenge.
    ChallengeEnd(Vec<u8>),
    /// Redirects the next `times` token requests to `to`, which can be a path, with this status.
    RedirectTokens {
        /// Target of the redirect.
        to: String,
        /// HTTP status code.
        status: u16,
        /// Number of affected requests.
        times: u32,
    },
    /// Sends this Warning header with each manifest.
    Warning(String),
    /// Issues this token.
    Token(String),
}

/// Authentication that a pull requires.
#[derive(Clone, Debug)]
pub enum Auth {
    /// Basic authentication with one of these (user name, password) pairs.
    Basic(Vec<(String, String)>),
    /// Bearer token from `/token`.
    Bearer {
        /// User names and passwords. A password is also accepted as a refresh token.
        users: Vec<(String, String)>,
        /// Allows pulls with anonymous tokens.
        anonymous: bool,
        /// Number of requests after which a token is refused.
        uses: u32,
    },
}

/// A request that the registry received.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Path, without the query.
    pub path: String,
    /// Query, if there is one.
    pub query: Option<String>,
    /// Value of the Authorization header.
    pub authorization: Option<String>,
    /// Value of the Range header.
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
    /// Number of blobs that are being sent.
    sending: u64,
    /// Number of connections on which a blob was requested.
    connections: u64,
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

    /// Starts a registry on a free port of another local address.
    pub fn spawn_at(address: IpAddr) -> Self {
        let listener = std::net::TcpListener::bind((address, 0)).expect("a local address has free ports");
        let address = listener.local_addr().expect("a bound socket has an address");
        listener.set_nonblocking(true).expect("sockets can be set non-blocking");
        let state = Arc::new(Mutex::new(State::default()));
        let (_stop, stopped) = oneshot::channel();
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be created").block_on(async move {
                tokio::select! {
                    () = serve::serve(listener, address, shared) => {}
                    _ = stopped => {}
                }
            });
        });
        Registry { address, state, _stop }
    }

    /// Returns the address: `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Stores a blob and returns its digest.
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

    /// Stores a blob whose bytes are generated on request; `digest` is their digest.
    pub fn put_generated(&self, digest: Digest, size: u64, generate: Generator) {
        self.state().blobs.insert(digest, Blob { size, generate });
    }

    /// Stores a manifest under its tag and its digest.
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

    /// Requires authentication from now on.
    pub fn require(&self, auth: Auth) {
        self.state().auth = Some(auth);
    }

    /// Adds a fault to the existing ones.
    pub fn fault(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// Removes all faults added so far.
    pub fn heal(&self) {
        self.state().faults.clear();
    }

    /// Returns the number of bytes of a blob sent so far, over all requests.
    pub fn served(&self, digest: &Digest) -> u64 {
        self.state().served.get(digest).copied().unwrap_or_default()
    }

    /// Returns the number of bytes of all blobs sent so far.
    pub fn served_total(&self) -> u64 {
        self.state().served.values().sum()
    }

    /// Returns the number of connections on which a blob was requested.
    pub fn connections(&self) -> u64 {
        self.state().connections
    }

    /// Returns the number of requests whose path contains `path`.
    pub fn requests(&self, path: &str) -> usize {
        self.state().seen.iter().filter(|seen| seen.path.contains(path)).count()
    }

    /// Returns all requests, oldest first.
    pub fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    /// Resets the recorded requests and byte counts.
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
