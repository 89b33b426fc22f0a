//! Authentication: tokens, signed requests, and peers of the Unix socket.

mod replay;
mod signature;
mod token;

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::{fmt, io};

use axum::http::{HeaderMap, HeaderName, header};
use sha2::{Digest as _, Sha256};

use super::errors::{Code, Problem};
use crate::config::api::Api;
use crate::config::tenant::{ADMIN, Tenant};
use larder_model::class::Class;
use larder_model::credential::Secret;
use larder_model::image_cache::TenantName;
use larder_sys::private::{self, ReadError};

pub(super) use replay::{Stamp, UsedSignatures};
pub(super) use signature::{Claim as Signed, stated};

/// The header that contains a token.
pub(super) const TOKEN: HeaderName = HeaderName::from_static("x-auth-token");
/// Prefix of the path of a secret that systemd loads (systemd.exec(5), LoadCredential).
const CREDENTIAL: &str = "credential:";
/// Maximum length of a secret key, bytes.
const MAX_SECRET: u64 = 4096;

/// The tenants of the configuration, with their secrets loaded.
#[derive(Debug)]
pub struct Tenants {
    names: Vec<TenantName>,
    /// Hashes of tokens, each with the index of its tenant in `names`.
    tokens: Vec<(token::Hash, usize)>,
    keys: HashMap<String, (Secret, usize)>,
    metrics: Vec<token::Hash>,
    admin: TenantName,
}

/// The reason why a tenant cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum TenantError {
    /// The configuration is not the validated one.
    #[error("the configuration of tenant {0:?} is malformed")]
    Malformed(String),
    /// A secret cannot be read.
    #[error("reading the secret of access key {key} of tenant {tenant} from {}: {source}", path.display())]
    Secret {
        /// Name of the tenant.
        tenant: String,
        /// ID of the access key.
        key: String,
        /// Path of the secret file.
        path: PathBuf,
        /// The cause.
        r#source: ReadError,
    },
    /// A secret is loaded by systemd, but systemd did not provide it.
    #[error(
        "access key {key} of tenant {tenant} needs {named}, and there is no such credential: set LoadCredential= in the systemd unit"
    )]
    Credential {
        /// Name of the tenant.
        tenant: String,
        /// ID of the access key.
        key: String,
        /// The configured path of the secret.
        named: String,
    },
}

impl TenantError {
    /// Returns the class, which determines the exit code and whether to retry.
    pub fn class(&self) -> Class {
        match self {
            TenantError::Secret { source: ReadError::Open { .. }, .. } => Class::Denied,
            _ => Class::Invalid,
        }
    }
}

impl Tenants {
    /// Loads the tenants of the configuration. `credentials` is the directory of credentials that systemd
    /// loaded (`CREDENTIALS_DIRECTORY`).
    ///
    /// # Errors
    /// Returns [`TenantError`] if a secret cannot be read.
    pub fn load(api: &Api, tenants: &[Tenant], credentials: Option<&Path>) -> Result<Self, TenantError> {
        let parse = |name: &str| name.parse().map_err(|_| TenantError::Malformed(name.to_owned()));
        let mut all = Tenants {
            names: Vec::new(),
            tokens: Vec::new(),
            keys: HashMap::new(),
            metrics: api.metrics_token_sha256.iter().filter_map(|text| token::hash_of_hex(text)).collect(),
            admin: parse(ADMIN)?,
        };
        for (at, tenant) in tenants.iter().enumerate() {
            all.names.push(parse(&tenant.name)?);
            for text in &tenant.token_sha256 {
                let hash = token::hash_of_hex(text);
                let hash = hash.ok_or_else(|| TenantError::Malformed(tenant.name.clone()))?;
                all.tokens.push((hash, at));
            }
            for key in &tenant.access_keys {
                let path = locate(&tenant.name, &key.id, &key.secret_file, credentials)?;
                let secret = read_secret(&path).map_err(|source| TenantError::Secret {
                    tenant: tenant.name.clone(),
                    key: key.id.clone(),
                    path,
                    source,
                })?;
                all.keys.insert(key.id.clone(), (secret, at));
            }
        }
        Ok(all)
    }

    /// Returns `true` if any tenant can use the API over TCP.
    pub fn any_credential(&self) -> bool {
        !self.tokens.is_empty() || !self.keys.is_empty()
    }

    /// Returns the name of the tenant `admin`.
    pub(crate) fn admin(&self) -> &TenantName {
        &self.admin
    }

    /// Returns the owner of a token.
    pub(super) fn of_token(&self, token: &[u8]) -> Option<&TenantName> {
        let at = token::find(token, self.tokens.iter().map(|(hash, _)| hash))?;
        self.names.get(self.tokens.get(at)?.1)
    }

    /// Returns the owner of a credential. An unknown access key takes the same time as a wrong secret key.
    pub(crate) fn of_proof(&self, proof: &Proof) -> Option<&TenantName> {
        match proof {
            Proof::Token(given) => {
                let at = token::find_hash(given, self.tokens.iter().map(|(hash, _)| hash))?;
                self.names.get(self.tokens.get(at)?.1)
            }
            Proof::Key(access, given) => {
                let (secret, tenant) = self.of_key(access).unzip();
                let dummy = Secret::new("a secret of no access key");
                let wanted = Sha256::digest(secret.unwrap_or(&dummy).expose()).into();
                token::find_hash(given, [&wanted]).and(secret).and(tenant)
            }
        }
    }

    /// Returns `true` if it is a token for metrics.
    pub(super) fn is_for_metrics(&self, token: &[u8]) -> bool {
        token::find(token, &self.metrics).is_some()
    }

    /// Returns the secret and the owner of an access key.
    pub(super) fn of_key(&self, access: &str) -> Option<(&Secret, &TenantName)> {
        let (secret, at) = self.keys.get(access)?;
        Some((secret, self.names.get(*at)?))
    }
}

fn locate(tenant: &str, key: &str, file: &Path, credentials: Option<&Path>) -> Result<PathBuf, TenantError> {
    let Some(name) = file.to_str().and_then(|file| file.strip_prefix(CREDENTIAL)) else {
        return Ok(file.to_owned());
    };
    let plain = matches!(Path::new(name).components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
    let directory = credentials.filter(|_| plain);
    let directory = directory.ok_or_else(|| TenantError::Credential {
        tenant: tenant.to_owned(),
        key: key.to_owned(),
        named: format!("{CREDENTIAL}{name}"),
    })?;
    Ok(directory.join(name))
}

/// Reads a secret key, whose file must be private ([`private::read`]). A trailing line end is ignored.
fn read_secret(path: &Path) -> Result<Secret, ReadError> {
    let fault = |what| ReadError::Io(io::Error::new(io::ErrorKind::InvalidData, what));
    let bytes = private::read(path, MAX_SECRET + 1)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| fault("it is not UTF-8"))?;
    match text.trim_end_matches(['\n', '\r']) {
        "" => Err(fault("it is empty")),
        secret if secret.len() as u64 > MAX_SECRET => Err(fault("it is longer than 4096 bytes")),
        secret => Ok(Secret::new(secret)),
    }
}

/// A credential that was presented in a form, without its secret.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Proof {
    /// SHA-256 of a token.
    Token(token::Hash),
    /// An access key, and the SHA-256 of its secret key.
    Key(String, token::Hash),
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proof")
    }
}

impl Proof {
    /// Returns the proof of a token.
    pub(crate) fn of_token(token: &Secret) -> Self {
        Proof::Token(Sha256::digest(token.expose()).into())
    }

    /// Returns the proof of an access key.
    pub(crate) fn of_key(access: &str, secret: &Secret) -> Self {
        Proof::Key(access.to_owned(), Sha256::digest(secret.expose()).into())
    }
}

/// The current tenants. A reload replaces them as a whole.
#[derive(Clone, Debug)]
pub struct SharedTenants(Arc<RwLock<Arc<Tenants>>>);

impl SharedTenants {
    /// Creates a handle with `tenants` as the current ones.
    pub fn new(tenants: Tenants) -> Self {
        SharedTenants(Arc::new(RwLock::new(Arc::new(tenants))))
    }

    /// Replaces the current tenants. Active requests keep those with which they started.
    pub fn replace(&self, tenants: Tenants) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(tenants);
    }

    /// Returns the tenants as they are now.
    pub fn current(&self) -> Arc<Tenants> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The credentials that a request contains.
#[derive(Debug)]
pub(super) enum Claim {
    /// No credential at all.
    None,
    /// A token in `X-Auth-Token`, or in `Authorization` with the scheme Bearer.
    Token(Secret),
    /// A signature in `Authorization`.
    Signed(Signed),
}

impl Claim {
    /// Reads the credentials from the headers.
    pub(super) fn of(headers: &HeaderMap, authority: Option<&str>) -> Result<Self, Problem> {
        let one = |name: &HeaderName| {
            let mut values = headers.get_all(name).iter();
            let first = values.next();
            if values.next().is_some() {
                return Err(Problem::invalid(format!("header {name} is repeated, send it once")));
            }
            Ok(first)
        };
        let unreadable = |name: &HeaderName| {
            Problem::new(Code::Unauthenticated, format!("header {name} is empty, too long or not text"))
        };
        match (one(&TOKEN)?, one(&header::AUTHORIZATION)?) {
            (None, None) => Ok(Claim::None),
            // The daemon must not guess which of the two is intended.
            (Some(_), Some(_)) => {
                Err(Problem::invalid("X-Auth-Token and Authorization are both set, send one of them"))
            }
            (Some(token), None) => claimed_token(token.to_str().ok()).ok_or_else(|| unreadable(&TOKEN)),
            (None, Some(authorization)) => {
                let text = authorization.to_str().map_err(|_| unreadable(&header::AUTHORIZATION))?;
                match bearer(text) {
                    Some(token) => {
                        claimed_token(Some(token)).ok_or_else(|| unreadable(&header::AUTHORIZATION))
                    }
                    None => Signed::parse(text, headers, authority).map(Claim::Signed),
                }
            }
        }
    }
}

fn claimed_token(text: Option<&str>) -> Option<Claim> {
    let text = text.filter(|text| !text.is_empty() && text.len() <= token::MAX_LENGTH)?;
    Some(Claim::Token(Secret::new(text)))
}

/// Returns the token of an `Authorization` header with the scheme Bearer (RFC 6750, 2.1; the name of a scheme
/// is case-insensitive, RFC 9110, 11.1).
fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::config::tenant::AccessKey;
    use larder_model::digest::hex;

    fn tenant(name: &str, tokens: &[&str]) -> Tenant {
        let token_sha256 = tokens.iter().map(|token| hex(&Sha256::digest(token))).collect();
        Tenant { name: name.into(), token_sha256, ..Tenant::default() }
    }

    #[test]
    fn tokens_lead_to_their_tenant() {
        let api = Api { metrics_token_sha256: vec![hex(&Sha256::digest("m"))], ..Api::default() };
        let tenants = [tenant("a", &["one", "two"]), tenant("b", &["three"]), tenant("c", &[])];
        let tenants = Tenants::load(&api, &tenants, None).unwrap();
        let of = |token: &str| tenants.of_token(token.as_bytes()).map(TenantName::as_str);
        assert_eq!([of("one"), of("two"), of("three"), of("m")], [Some("a"), Some("a"), Some("b"), None]);
        let of_proof = |token: &str| tenants.of_proof(&Proof::of_token(&Secret::new(token)));
        assert_eq!(of_proof("three").map(TenantName::as_str), Some("b"));
        assert!(of_proof("m").is_none() && of_proof("").is_none());
        assert!(tenants.is_for_metrics(b"m") && !tenants.is_for_metrics(b"one"));
        assert!(tenants.any_credential());
        let without = Tenants::load(&api, &[tenant("c", &[])], None).unwrap();
        assert!(!without.any_credential(), "a token for metrics does not count");
    }

    #[test]
    fn secrets_are_read_and_not_shown() {
        let dir = std::env::temp_dir().join(format!("larder-auth-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&dir).unwrap();
        let file = dir.join("ak");
        let mode = |mode| std::fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        let load = |secret_file: PathBuf, credentials: Option<&Path>| {
            let access_keys = vec![AccessKey { id: "AK".into(), secret_file }];
            let tenant = Tenant { name: "a".into(), access_keys, ..Tenant::default() };
            Tenants::load(&Api::default(), &[tenant], credentials)
        };
        assert!(load(file.clone(), None).is_err(), "absent");
        for bad in [String::new(), "\n".into(), "x".repeat(4097), "x".repeat(5000)] {
            std::fs::write(&file, bad).unwrap();
            mode(0o600);
            assert!(load(file.clone(), None).is_err());
        }
        std::fs::write(&file, "x".repeat(4096) + "\n").unwrap();
        assert!(load(file.clone(), None).is_ok());
        std::fs::write(&file, "opensesame\n").unwrap();
        for loaded in [load(file.clone(), None), load("credential:ak".into(), Some(&dir))] {
            let loaded = loaded.unwrap();
            assert_eq!(loaded.of_key("AK").unwrap().0.expose(), "opensesame");
            assert!(!format!("{loaded:?}").contains("opensesame"));
            let of = |access: &str, secret: &str| {
                let proof = Proof::of_key(access, &Secret::new(secret));
                loaded.of_proof(&proof).map(TenantName::as_str)
            };
            assert_eq!(of("AK", "opensesame"), Some("a"));
            // The dummy of an unknown key is not a credential.
            for (access, secret) in
                [("AK", "other"), ("BK", "opensesame"), ("BK", "a secret of no access key"), ("AK", "")]
            {
                assert_eq!(of(access, secret), None, "{access} {secret}");
            }
        }
        mode(0o640);
        for named in [file.clone(), "credential:ak".into()] {
            let error = load(named, Some(&dir)).unwrap_err();
            assert_eq!(error.class(), Class::Denied);
            assert!(
                error.to_string().contains("mode is 0640") && error.to_string().contains("chmod 600"),
                "{error}"
            );
        }
        if nix::unistd::geteuid().is_root() {
            // The owner that systemd and Kubernetes give a file for the group of a service.
            std::os::unix::fs::chown(&file, Some(65532), None).unwrap();
            assert!(load(file.clone(), None).is_ok());
        }
        for named in ["credential:ak", "credential:../ak", "credential:", "credential:a/b"] {
            let credentials = (named != "credential:ak").then_some(dir.as_path());
            assert!(
                matches!(load(named.into(), credentials), Err(TenantError::Credential { .. })),
                "{named}"
            );
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn one_claim_at_a_time() {
        let mut headers = HeaderMap::new();
        assert!(matches!(Claim::of(&headers, None), Ok(Claim::None)));
        headers.insert(TOKEN, "secret-token".parse().unwrap());
        let claim = Claim::of(&headers, None).unwrap();
        assert!(!format!("{claim:?}").contains("secret-token"));
        headers.append(TOKEN, "other".parse().unwrap());
        assert_eq!(Claim::of(&headers, None).unwrap_err().code(), Code::Invalid);
        headers.insert(TOKEN, "one".parse().unwrap());
        headers.insert(header::AUTHORIZATION, "Basic x".parse().unwrap());
        assert_eq!(Claim::of(&headers, None).unwrap_err().code(), Code::Invalid);
        headers.remove(TOKEN);
        assert_eq!(Claim::of(&headers, None).unwrap_err().code(), Code::Unauthenticated);
    }
}
