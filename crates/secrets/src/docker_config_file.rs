//! The configuration file of docker: `config.json` with entries, `credHelpers` and `credsStore`.
//!
//! Entries are matched with the rules of the keyring, as Kubernetes does for a `config.json`. The
//! `docker_credential` crate runs helpers. A helper that fails or times out gives no credential, as in docker
//! itself.
//!
//! Only the parts of a file that a lookup needs are parsed. An empty file, null sections and malformed
//! entries of other registries are not errors.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, io};

use docker_credential::{DockerCredential, get_credential_from_reader};
use serde::Deserialize as _;
use serde_json::{Map, Value};

use super::directory::read_limited;
use super::keyring::{self, Entries, is_docker_hub};
use super::pull_secret_data::{Auth, SecretError, read};
use larder_model::class::Class;
use larder_model::credential::{Credential, Secret};

/// Timeout of a credential helper.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);

/// The server name under which docker stores the credentials of Docker Hub.
const DOCKER_HUB_SERVER: &str = "https://index.docker.io/v1/";

/// The error for a docker config that cannot be used. It contains none of the file's content.
#[derive(Debug, thiserror::Error)]
pub enum DockerConfigError {
    /// The file cannot be read.
    #[error("cannot read the docker config {}: {source}", path.display())]
    Read {
        /// Path of the configuration file.
        path: PathBuf,
        /// Error of the system call.
        r#source: io::Error,
    },
    /// The file is malformed.
    #[error("the docker config {} is malformed: {source}", path.display())]
    Malformed {
        /// Path of the configuration file.
        path: PathBuf,
        /// Error of parsing the file.
        r#source: SecretError,
    },
}

impl DockerConfigError {
    /// Returns the class of the error, which determines exit code and retries.
    pub fn class(&self) -> Class {
        Class::Invalid
    }
}

/// A docker configuration file, which is read again for each lookup.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    path: PathBuf,
}

/// The parsed JSON object of a file.
struct File(Map<String, Value>);

impl DockerConfig {
    /// Returns the `config.json` of a directory, as given by `--docker-config` and `$DOCKER_CONFIG`.
    pub fn in_directory(dir: &Path) -> Self {
        DockerConfig { path: dir.join("config.json") }
    }

    /// Returns the file with this path, as given by `--authfile`.
    pub fn at(path: PathBuf) -> Self {
        DockerConfig { path }
    }

    /// Returns the existing default files, which are used without `--docker-config`: docker's
    /// (`$DOCKER_CONFIG` or `~/.docker`), then podman's (`$REGISTRY_AUTH_FILE` or
    /// `$XDG_RUNTIME_DIR/containers/auth.json`; podman-login(1)).
    pub fn of_this_user() -> Vec<Self> {
        let var = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let docker = var("DOCKER_CONFIG").or_else(|| Some(var("HOME")?.join(".docker")));
        let podman =
            var("REGISTRY_AUTH_FILE").or_else(|| Some(var("XDG_RUNTIME_DIR")?.join("containers/auth.json")));
        let files = [docker.map(|dir| dir.join("config.json")), podman];
        let files = files.into_iter().flatten().filter(|path| path.is_file());
        files.map(|path| DockerConfig { path }).collect()
    }

    /// Returns all credentials for `registry/repository`: from the helper of the registry, then the entries,
    /// then the store.
    ///
    /// # Errors
    /// Returns [`DockerConfigError`] if the file cannot be read or is malformed.
    pub async fn lookup(
        &self,
        registry: &str,
        repository: &str,
    ) -> Result<Vec<Credential>, DockerConfigError> {
        let malformed = |source| DockerConfigError::Malformed { path: self.path.clone(), source };
        let bytes = read_limited(&self.path)
            .map_err(|source| DockerConfigError::Read { path: self.path.clone(), source })?;
        let file = File::parse(&bytes).map_err(malformed)?;
        let helper = file.helper(registry).map_err(malformed)?;
        let mut found = Vec::new();
        if let Some(helper) = helper {
            found.extend(run_helper(helper, registry).await);
        }
        found.extend(file.entries(registry, repository).map_err(malformed)?);
        // `docker login` leaves an empty entry in `auths` for credentials in a store.
        if helper.is_none()
            && found.is_empty()
            && let Some(store) = file.store().map_err(malformed)?
        {
            found.extend(run_helper(store, registry).await);
        }
        Ok(found)
    }
}

impl File {
    /// Parses the object. A file that is blank or null counts as empty; `docker logout` and editors leave
    /// such files.
    fn parse(bytes: &[u8]) -> Result<Self, SecretError> {
        if bytes.trim_ascii().is_empty() {
            return Ok(File(Map::new()));
        }
        let object: Option<Map<String, Value>> = read(bytes)?;
        Ok(File(object.unwrap_or_default()))
    }

    /// Returns a member that is an object; `None` if it is absent or null.
    fn section(&self, name: &'static str) -> Result<Option<&Map<String, Value>>, SecretError> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(section)) => Ok(Some(section)),
            Some(_) => Err(SecretError::Member(name)),
        }
    }

    /// Returns the name of the registry's helper.
    fn helper(&self, registry: &str) -> Result<Option<&str>, SecretError> {
        let hub = is_docker_hub(registry);
        let matches = |key: &str| key == registry || hub && (key == DOCKER_HUB_SERVER || is_docker_hub(key));
        let helpers = self.section("credHelpers")?.into_iter().flatten();
        text(helpers.into_iter().find(|(key, _)| matches(key)).map(|(_, helper)| helper), "credHelpers")
    }

    /// Returns the credentials of the entries for `registry/repository`.
    fn entries(&self, registry: &str, repository: &str) -> Result<Vec<Credential>, SecretError> {
        let mut entries = Vec::new();
        for (key, value) in self.section("auths")?.into_iter().flatten() {
            if !keyring::is_for(key, registry, repository) {
                continue;
            }
            // The text of a serde_json error would quote the content.
            let auth = Option::<Auth>::deserialize(value).map_err(|_| SecretError::Member("auths"))?;
            let credential = auth.map(Auth::credential).transpose()?.flatten();
            entries.extend(credential.map(|credential| (key.clone(), credential)));
        }
        Ok(Entries::new(entries).lookup(registry, repository))
    }

    /// Returns the name of the helper for all registries.
    fn store(&self) -> Result<Option<&str>, SecretError> {
        text(self.0.get("credsStore"), "credsStore")
    }
}

/// Returns a non-empty text; `None` if it is absent, null or empty.
fn text<'a>(value: Option<&'a Value>, name: &'static str) -> Result<Option<&'a str>, SecretError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
        Some(_) => Err(SecretError::Member(name)),
    }
}

/// Runs `docker-credential-<helper> get`. The output of a helper can contain a secret, so it is not logged
/// after a failure.
async fn run_helper(helper: &str, registry: &str) -> Option<Credential> {
    // The name becomes part of a program name; with a slash, it would be a path.
    if helper.contains('/') {
        tracing::warn!(helper, "the name of a credential helper is a path; the helper is not run");
        return None;
    }
    let config = serde_json::json!({ "credsStore": helper }).to_string();
    let server = if is_docker_hub(registry) { DOCKER_HUB_SERVER.to_owned() } else { registry.to_owned() };
    #[expect(clippy::disallowed_methods, reason = "this crate does not know the pool of the program")]
    let run = tokio::task::spawn_blocking(move || get_credential_from_reader(config.as_bytes(), &server));
    match tokio::time::timeout(HELPER_TIMEOUT, run).await {
        Ok(Ok(Ok(DockerCredential::IdentityToken(token)))) => {
            Some(Credential::IdentityToken(Secret::new(token)))
        }
        Ok(Ok(Ok(DockerCredential::UsernamePassword(username, password)))) => {
            Some(Credential::Basic { username, password: Secret::new(password) })
        }
        Ok(_) => {
            tracing::warn!(helper, registry, "the credential helper returned no credential");
            None
        }
        Err(_) => {
            tracing::warn!(helper, registry, "the credential helper timed out after 30 seconds");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(json: &str, registry: &str) -> Result<Vec<Credential>, DockerConfigError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), json).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(DockerConfig::in_directory(dir.path()).lookup(registry, "library/a"))
    }

    #[test]
    fn entries_and_tokens() {
        let json = r#"{"auths":{"https://index.docker.io/v1/":{"identitytoken":"t","auth":"dTpw"},
            "r.io":{"auth":"dTpw"}}}"#;
        let token = Credential::IdentityToken(Secret::new("t"));
        assert_eq!(lookup(json, "docker.io").unwrap(), [token]);
        let basic = Credential::Basic { username: "u".to_owned(), password: Secret::new("p") };
        assert_eq!(lookup(json, "r.io").unwrap(), [basic]);
    }

    #[test]
    fn an_absent_helper_gives_no_credential() {
        for json in [
            r#"{"credsStore":"larder-absent"}"#,
            r#"{"credHelpers":{"r.io":"larder-absent"}}"#,
            r#"{"credsStore":"../../bin/true"}"#,
        ] {
            assert_eq!(lookup(json, "r.io").unwrap(), []);
        }
    }

    #[test]
    fn only_relevant_parts_are_parsed() {
        for json in [
            "",
            "\n",
            "null",
            "{}",
            r#"{"auths":null,"credHelpers":null,"credsStore":null}"#,
            r#"{"auths":{"r.io":null}}"#,
            r#"{"auths":{"r.io":{}},"credHelpers":{"r.io":null},"credsStore":""}"#,
            r#"{"auths":{"other.io":{"auth":"%%%"},"another.io":17,"third.io":["x"]}}"#,
            r#"{"credHelpers":{"other.io":17}}"#,
            r#"{"HttpHeaders":17,"proxies":[]}"#,
        ] {
            assert_eq!(lookup(json, "r.io").unwrap(), [], "{json}");
        }
        // The store is not needed if there is an entry.
        let json = r#"{"auths":{"r.io":{"auth":"dTpw"},"other.io":17},"credsStore":17}"#;
        assert_eq!(lookup(json, "r.io").unwrap().len(), 1);
        for json in [
            "{",
            "[]",
            "17",
            r#"{"auths":[]}"#,
            r#"{"auths":{"r.io":17}}"#,
            r#"{"auths":{"*.io":{"auth":"%%%"}}}"#,
            r#"{"credHelpers":{"r.io":17}}"#,
            r#"{"credsStore":17}"#,
        ] {
            assert_eq!(lookup(json, "r.io").unwrap_err().class(), Class::Invalid, "{json}");
        }
    }

    #[test]
    fn errors_name_the_file_but_not_its_content() {
        let error = lookup(r#"{"auths":{"r.io":{"auth":["secret"]}}}"#, "r.io").unwrap_err();
        assert!(error.to_string().contains("config.json"));
        assert!(!format!("{error} {error:?}").contains("secret"));
    }
}
