//! Pull secrets and docker configs, with the rules of the kubelet's keyring.
//!
//! Pull secrets come first, in the given order, and then docker configs. A lookup returns every match, and
//! the registry client tries them in turn. Credentials exist only here and in the requests that send them.

#![forbid(unsafe_code)]

pub mod directory;
pub mod docker_config_file;
pub mod keyring;
pub mod pull_secret_data;

use docker_config_file::{DockerConfig, DockerConfigError};
use keyring::Keyring;
use larder_model::credential::Credential;
use larder_model::pull_secret::PullSecretName;

/// All sources of credentials for one build.
#[derive(Debug, Default)]
pub struct Secrets {
    keyring: Keyring,
    docker_configs: Vec<DockerConfig>,
}

impl Secrets {
    /// Combines pull secrets and docker configs, which are tried in this order.
    pub fn new(keyring: Keyring, docker_configs: Vec<DockerConfig>) -> Self {
        Secrets { keyring, docker_configs }
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
