//! The child's end of the connection to the supervisor of a build. Children are confined, so the supervisor
//! mounts, signs and looks up credentials for them.
//!
//! ```text
//! supervisor ──► child   greeting: the job, and descriptors          once, first
//! child ──► supervisor   mount | sign + cache.json | credentials | check space
//! supervisor ──► child   reply + result
//! ```
//! Frames ([`super::wire`]) are sent over a socket that is the child's standard input. The connection ends
//! when the supervisor exits, and the child then exits too.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::volume_name::VolumeName;
use super::wire::{self, Frame};
use larder_model::class::Class;
use larder_model::credential::{Credential, Secret};
use larder_model::key::PublicKey;
use larder_model::pull_secret::PullSecretName;
use larder_registry::{Credentials, CredentialsError};

/// Maximum size of a line that a child writes to standard output, bytes.
pub const MAX_LINE: usize = 8 << 20;

/// First message of the supervisor.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Greeting {
    /// Text of the job, if there is one.
    pub job: Option<String>,
    /// Pull secrets without credentials.
    #[serde(default)]
    pub absent: Vec<PullSecretName>,
    /// Public key for signing the volume; `None` if it is not signed.
    pub signer: Option<PublicKey>,
    /// Purposes of the descriptors that come with the greeting, in order.
    #[serde(default)]
    pub descriptors: Vec<DescriptorPurpose>,
}

/// Purpose of a descriptor that a child receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DescriptorPurpose {
    /// The connection between extractor and fetcher.
    Fetching,
    /// The archive from standard input, as a file.
    Archive,
}

/// A request of a child.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Mount the sealed disk of a volume of the shared directory over its directory.
    Mount(VolumeName),
    /// Sign the `cache.json` in the body. The body of the reply is `cache.json.sig`.
    Sign,
    /// Check that the host has this space for the disk of the volume.
    CheckSpace {
        /// Space that the images need on the disk, bytes.
        bytes: u64,
    },
    /// Look up credentials for a repository. They are in the body of the reply.
    Credentials {
        /// The registry, as in references.
        registry: String,
        /// Name of the repository in the registry.
        repository: String,
    },
}

/// Reply to a request.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Reply {
    /// Reason of a refusal; `None` if the request succeeded.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused: Option<Refusal>,
}

/// Reason why a request was refused.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// Class of the error.
    pub class: Class,
    /// Description of the error.
    pub message: String,
}

impl Refusal {
    /// Creates a refusal of the given class.
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Refusal { class, message: message.into() }
    }
}

/// The supervisor of this process; clones share the connection.
#[derive(Clone, Debug)]
pub struct SupervisorClient(Arc<Mutex<UnixStream>>);

impl SupervisorClient {
    /// Connects to the supervisor at the other end of `stream`. Also returns its greeting, and the
    /// descriptors that came with it.
    ///
    /// # Errors
    /// The connection fails, or ends before the greeting.
    pub fn meet(stream: UnixStream) -> io::Result<(Self, Greeting, Vec<OwnedFd>)> {
        let first = wire::receive(&stream)?;
        let Frame { header, descriptors, .. } = first.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok((SupervisorClient(Arc::new(Mutex::new(stream))), header, descriptors))
    }

    /// Requests that the disk of a volume of the shared directory is mounted over the volume's directory. It
    /// is also mounted in this process's mount namespace. Blocks.
    ///
    /// # Errors
    /// The supervisor refuses, or the connection fails.
    pub fn mount(&self, volume: &VolumeName) -> Result<(), Refusal> {
        self.request(&Request::Mount(volume.clone()), &[]).map(drop)
    }

    /// Requests a signature of `cache_json` and returns the bytes of `cache.json.sig`. Blocks.
    ///
    /// # Errors
    /// The supervisor refuses because the images in it are not those of the order, or the connection fails.
    pub fn sign(&self, cache_json: &[u8]) -> Result<Vec<u8>, Refusal> {
        Ok(self.request(&Request::Sign, cache_json)?.body)
    }

    /// Requests a check that the host has `bytes` for the disk of the volume, or has reserved them. Blocks.
    ///
    /// # Errors
    /// The host has less space, or the connection fails.
    pub fn check_space(&self, bytes: u64) -> Result<(), Refusal> {
        self.request(&Request::CheckSpace { bytes }, &[]).map(drop)
    }

    fn credentials(&self, registry: String, repository: String) -> Result<Vec<Credential>, Refusal> {
        let frame = self.request(&Request::Credentials { registry, repository }, &[])?;
        // The parser's error message is dropped, because it could contain a secret.
        let found: Vec<WireCredential> = serde_json::from_slice(&frame.body)
            .map_err(|_| Refusal::new(Class::Internal, "the supervisor sent malformed credentials"))?;
        Ok(found.into_iter().map(Credential::from).collect())
    }

    fn request(&self, request: &Request, body: &[u8]) -> Result<Frame<Reply>, Refusal> {
        // The lock covers the reply, so that it is not read by the next request.
        let stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let answered = wire::send(&stream, request, body, &[]).and_then(|()| wire::receive::<Reply>(&stream));
        let failed =
            |e: io::Error| Refusal::new(Class::Internal, format!("sending a request to the supervisor: {e}"));
        let frame = answered.map_err(failed)?.ok_or_else(|| failed(io::ErrorKind::UnexpectedEof.into()))?;
        match frame.header.refused {
            Some(refusal) => Err(refusal),
            None => Ok(frame),
        }
    }
}

/// A fetcher looks up credentials for one repository at a time, when a registry requires them.
impl Credentials for SupervisorClient {
    fn lookup<'a>(
        &'a self,
        registry: &'a str,
        repository: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Credential>, CredentialsError>> {
        let (supervisor, of, in_it) = (self.clone(), registry.to_owned(), repository.to_owned());
        Box::pin(async move {
            let found = crate::blocking::spawn(move || supervisor.credentials(of, in_it)).await;
            let failed = |reason| CredentialsError { registry: registry.to_owned(), reason };
            found.map_err(|e| failed(e.to_string()))?.map_err(|refusal| failed(refusal.message))
        })
    }
}

/// Serializes credentials for a fetcher; the reply to [`Request::Credentials`].
///
/// # Errors
/// They cannot be written as JSON, which cannot happen for strings.
pub fn credentials_body(found: &[Credential]) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&found.iter().map(WireCredential::from).collect::<Vec<_>>())
}

/// A credential in its serialized form. It has no `Debug`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WireCredential {
    Basic { username: String, password: String },
    IdentityToken(String),
}

impl From<&Credential> for WireCredential {
    fn from(credential: &Credential) -> Self {
        match credential {
            Credential::Basic { username, password } => {
                WireCredential::Basic { username: username.clone(), password: password.expose().to_owned() }
            }
            Credential::IdentityToken(token) => WireCredential::IdentityToken(token.expose().to_owned()),
        }
    }
}

impl From<WireCredential> for Credential {
    fn from(credential: WireCredential) -> Self {
        match credential {
            WireCredential::Basic { username, password } => {
                Credential::Basic { username, password: Secret::new(password) }
            }
            WireCredential::IdentityToken(token) => Credential::IdentityToken(Secret::new(token)),
        }
    }
}
