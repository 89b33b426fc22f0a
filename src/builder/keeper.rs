//! The supervisor of a build as its children see it: who mounts, signs and finds credentials for them, because they are confined.
//!
//! ```text
//! supervisor ──► child   greeting: the job, and descriptors          once, first
//! child ──► supervisor   mount | sign + cache.json | credentials
//! supervisor ──► child   reply + what was asked for
//! ```
//! Frames ([`super::wire`]) over a socket that is the child's standard input. At its end the supervisor is gone, and the child
//! ends too.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::share::VolumeName;
use super::wire::{self, Frame};
use larder_model::class::Class;
use larder_model::credential::{Credential, Secret};
use larder_model::key::PublicKey;
use larder_model::pull_secret::PullSecretName;
use larder_registry::{Credentials, CredentialsError};

/// Maximum size of a line that a child writes on standard output, bytes.
pub const LONGEST_LINE: usize = 8 << 20;

/// What the supervisor sends first.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Greeting {
    /// The text of the job, if there is one.
    pub job: Option<String>,
    /// Pull secrets that gave no credential.
    #[serde(default)]
    pub absent: Vec<PullSecretName>,
    /// The key by which the volume is signed, if it is.
    pub signer: Option<PublicKey>,
    /// What the descriptors that come with it are, in this order.
    #[serde(default)]
    pub descriptors: Vec<Passed>,
}

/// A descriptor that a child gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Passed {
    /// The connection between extractor and fetcher.
    Fetching,
    /// The archive that came on standard input, as a file.
    Archive,
}

/// What a child asks for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// To mount the sealed disk of a volume of the shared directory over its directory.
    Mount(VolumeName),
    /// To sign the `cache.json` in the body. The body of the reply is `cache.json.sig`.
    Sign,
    /// Credentials for a repository. The body of the reply has them.
    Credentials {
        /// The registry, as references name it.
        registry: String,
        /// The repository in it.
        repository: String,
    },
}

/// What a child is answered.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Reply {
    /// Why it does not get it; `None` if it does.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused: Option<Refusal>,
}

/// Why a child does not get what it asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// Class of the error.
    pub class: Class,
    /// What happened.
    pub message: String,
}

impl Refusal {
    /// A refusal of this class.
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Refusal { class, message: message.into() }
    }
}

/// The supervisor of this process; clones share it.
#[derive(Clone, Debug)]
pub struct Keeper(Arc<Mutex<UnixStream>>);

impl Keeper {
    /// The supervisor at the other end of `stream`, what it sent first, and the descriptors that came with it.
    ///
    /// # Errors
    /// The connection fails, or ends before the greeting.
    pub fn meet(stream: UnixStream) -> io::Result<(Self, Greeting, Vec<OwnedFd>)> {
        let first = wire::receive(&stream)?;
        let Frame { header, descriptors, .. } = first.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok((Keeper(Arc::new(Mutex::new(stream))), header, descriptors))
    }

    /// Has the disk of a volume of the shared directory mounted over the volume's directory, also in this process's own mount
    /// namespace. Blocks.
    ///
    /// # Errors
    /// Why that cannot be.
    pub fn mount(&self, volume: &VolumeName) -> Result<(), Refusal> {
        self.ask(&Request::Mount(volume.clone()), &[]).map(drop)
    }

    /// Has `cache_json` signed and returns the bytes of `cache.json.sig`. Blocks.
    ///
    /// # Errors
    /// The supervisor does not sign it: it does not name the images that the order stands for.
    pub fn sign(&self, cache_json: &[u8]) -> Result<Vec<u8>, Refusal> {
        Ok(self.ask(&Request::Sign, cache_json)?.body)
    }

    fn credentials(&self, registry: String, repository: String) -> Result<Vec<Credential>, Refusal> {
        let frame = self.ask(&Request::Credentials { registry, repository }, &[])?;
        // The parser's own words could have a secret in them.
        let found: Vec<Pair> = serde_json::from_slice(&frame.body)
            .map_err(|_| Refusal::new(Class::Internal, "the supervisor sent no credentials"))?;
        Ok(found.into_iter().map(Credential::from).collect())
    }

    fn ask(&self, request: &Request, body: &[u8]) -> Result<Frame<Reply>, Refusal> {
        // An answer that was not read would be the next question's.
        let stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let answered = wire::send(&stream, request, body, &[]).and_then(|()| wire::receive::<Reply>(&stream));
        let failed = |e: io::Error| Refusal::new(Class::Internal, format!("asking the supervisor: {e}"));
        let frame = answered.map_err(failed)?.ok_or_else(|| failed(io::ErrorKind::UnexpectedEof.into()))?;
        match frame.header.refused {
            Some(refusal) => Err(refusal),
            None => Ok(frame),
        }
    }
}

/// A fetcher gets credentials one repository at a time, when a registry asks for them.
impl Credentials for Keeper {
    fn lookup<'a>(
        &'a self,
        registry: &'a str,
        repository: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Credential>, CredentialsError>> {
        let (keeper, of, in_it) = (self.clone(), registry.to_owned(), repository.to_owned());
        Box::pin(async move {
            let found = tokio::task::spawn_blocking(move || keeper.credentials(of, in_it)).await;
            let failed = |reason| CredentialsError { registry: registry.to_owned(), reason };
            found.map_err(|e| failed(e.to_string()))?.map_err(|refusal| failed(refusal.message))
        })
    }
}

/// Credentials on their way to a fetcher; for [`Request::Credentials`].
///
/// # Errors
/// They cannot be written as JSON, which strings always can.
pub fn credentials_body(found: &[Credential]) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&found.iter().map(Pair::from).collect::<Vec<_>>())
}

/// A credential as it is sent. It has no `Debug`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Pair {
    Basic { username: String, password: String },
    IdentityToken(String),
}

impl From<&Credential> for Pair {
    fn from(credential: &Credential) -> Self {
        match credential {
            Credential::Basic { username, password } => {
                Pair::Basic { username: username.clone(), password: password.expose().to_owned() }
            }
            Credential::IdentityToken(token) => Pair::IdentityToken(token.expose().to_owned()),
        }
    }
}

impl From<Pair> for Credential {
    fn from(pair: Pair) -> Self {
        match pair {
            Pair::Basic { username, password } => {
                Credential::Basic { username, password: Secret::new(password) }
            }
            Pair::IdentityToken(token) => Credential::IdentityToken(Secret::new(token)),
        }
    }
}
