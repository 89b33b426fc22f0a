//! Pull secrets and docker configs, with the rules of the kubelet's keyring.
//!
//! Pull secrets come first, in the given order, and then docker configs. A lookup returns every match, and
//! the registry client tries them in turn. Credentials exist only here and in the requests that send them.

#![forbid(unsafe_code)]

pub mod directory;
pub mod docker_config_file;
pub mod keyring;
pub mod pull_secret_data;

use std::collections::BTreeSet;

use docker_config_file::{DockerConfig, DockerConfigError};
use keyring::Keyring;
use larder_model::credential::Credential;
use larder_model::pull_secret::PullSecretName;

/// All sources of credentials for one build.
#[derive(Debug, Default)]
pub struct Secrets {
    given: Option<Given>,
    keyring: Keyring,
    docker_configs: Vec<DockerConfig>,
}

/// A credential of the command line.
#[derive(Debug)]
struct Given {
    credential: Credential,
    registries: BTreeSet<String>,
}

impl Secrets {
    /// Combines pull secrets and docker configs, which are tried in this order.
    pub fn new(keyring: Keyring, docker_configs: Vec<DockerConfig>) -> Self {
        Secrets { given: None, keyring, docker_configs }
    }

    /// Uses only `credential` for the given registries.
    #[must_use]
    pub fn with_given(self, credential: Credential, registries: BTreeSet<String>) -> Self {
        Secrets { given: Some(Given { credential, registries }), ..self }
    }

    /// Returns all credentials for `registry/repository`, in the order in which to try them. An empty list
    /// means anonymous access.
    ///
    /// Every call reads the docker configs and runs their helpers, because helpers return short-lived tokens.
    ///
    /// # Errors
    /// Returns [`DockerConfigError`] if a docker config is malformed or cannot be read.
    pub async fn lookup(
        &self,
        registry: &str,
        repository: &str,
    ) -> Result<Vec<Credential>, DockerConfigError> {
        if let Some(given) = self.given.as_ref().filter(|given| given.registries.contains(registry)) {
            return Ok(vec![given.credential.clone()]);
        }
        let mut found = self.keyring.lookup(registry, repository);
        for config in &self.docker_configs {
            found.extend(config.lookup(registry, repository).await?);
        }
        Ok(found)
    }

    /// Returns the requested pull secrets that gave no credential. The error message of a denied image lists
    /// them.
    pub fn absent(&self) -> &[PullSecretName] {
        self.keyring.absent()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keyring::Entries;
    use larder_model::credential::Secret;

    #[test]
    fn a_given_credential_replaces_the_others_of_its_registries() {
        let basic = |username: &str| Credential::Basic {
            username: username.to_owned(),
            password: Secret::new("hidden"),
        };
        let mut keyring = Keyring::default();
        keyring.add(Entries::new(["r.io", "m.io"].map(|key| (key.to_owned(), basic("stored")))));
        let registries = BTreeSet::from(["r.io".to_owned()]);
        let secrets = Secrets::new(keyring, Vec::new()).with_given(basic("given"), registries);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let lookup = |registry: &str| runtime.block_on(secrets.lookup(registry, "a")).unwrap();
        assert_eq!(lookup("r.io"), [basic("given")]);
        assert_eq!(lookup("m.io"), [basic("stored")]);
        assert!(!format!("{secrets:?}").contains("hidden"));
    }
}
