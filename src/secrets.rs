//! Pull secrets and docker configs by the rules of the kubelet's keyring.
//!
//! Pull secrets come first, in the order in which they are named; then docker configs. Every match is returned, for the
//! registry to try in turn. Credentials live only here and in the requests that carry them.

pub mod directory;
pub mod docker_config_file;
pub mod keyring;
pub mod pull_secret_data;

use docker_config_file::{DockerConfig, DockerConfigError};
use keyring::Keyring;
use larder_model::credential::Credential;
use larder_model::pull_secret::PullSecretName;

/// Every source of credentials of one build.
#[derive(Debug, Default)]
pub struct Secrets {
    keyring: Keyring,
    docker_configs: Vec<DockerConfig>,
}

impl Secrets {
    /// Pull secrets, then docker configs in their order.
    pub fn new(keyring: Keyring, docker_configs: Vec<DockerConfig>) -> Self {
        Secrets { keyring, docker_configs }
    }

    /// All credentials for `registry/repository`, in the order in which they are tried; none means anonymous.
    ///
    /// Docker configs are read and their helpers asked on every call, because helpers hand out short-lived tokens.
    ///
    /// # Errors
    /// A docker config is malformed or cannot be read.
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

    /// Pull secrets that were named and gave nothing; the message of a private image that fails names them.
    pub fn absent(&self) -> &[PullSecretName] {
        self.keyring.absent()
    }
}
