//! Connection to the API server.

use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::config::cluster::Cluster;
use larder_model::class::Class;

/// A client for the cluster cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig cannot be used.
    #[error("cluster {uid}: reading the kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        /// UID of the cluster.
        uid: String,
        /// Path of the kubeconfig.
        path: PathBuf,
        /// Error of the kubeconfig parser.
        r#source: Box<kube::config::KubeconfigError>,
    },
    /// No kubeconfig is configured, and this process does not run in a pod.
    #[error(
        "cluster {uid}: larder does not run in a pod of this cluster: {source}; set a kubeconfig to run elsewhere"
    )]
    InCluster {
        /// UID of the cluster.
        uid: String,
        /// Error that names the missing file or variable.
        r#source: Box<kube::config::InClusterError>,
    },
    /// The configuration is valid, but the client cannot be created.
    #[error("cluster {uid}: {source}")]
    Client {
        /// UID of the cluster.
        uid: String,
        /// Error of the client library.
        r#source: Box<kube::Error>,
    },
}

impl ConnectError {
    /// Returns the class, which decides exit code and retry.
    pub fn class(&self) -> Class {
        Class::Invalid
    }
}

/// Creates a client for the cluster, from the configured kubeconfig or else from the ServiceAccount of the
/// pod. The default locations of a kubeconfig are never searched.
///
/// # Errors
/// The kubeconfig is invalid, or there is none and this process does not run in a pod.
pub async fn connect(cluster: &Cluster) -> Result<Client, ConnectError> {
    connect_by(&cluster.uid, cluster.kubeconfig.as_deref()).await
}

/// Creates a client as [`connect`] does. Errors name the cluster `uid`.
///
/// # Errors
/// The kubeconfig is invalid, or there is none and this process does not run in a pod.
pub async fn connect_by(uid: &str, kubeconfig: Option<&Path>) -> Result<Client, ConnectError> {
    let uid = || uid.to_owned();
    let mut config = match kubeconfig {
        Some(path) => {
            let failed = |source| ConnectError::Kubeconfig {
                uid: uid(),
                path: path.to_owned(),
                source: Box::new(source),
            };
            let file = Kubeconfig::read_from(path).map_err(failed)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(failed)?
        }
        None => {
            let failed = |source| ConnectError::InCluster { uid: uid(), source: Box::new(source) };
            Config::incluster().map_err(failed)?
        }
    };
    // Only `fault::request!` retries.
    config.default_retry = false;
    Client::try_from(config).map_err(|source| ConnectError::Client { uid: uid(), source: Box::new(source) })
}

/// A client with a `Debug` implementation that prints no details.
pub struct ApiServer(Client);

impl From<Client> for ApiServer {
    fn from(client: Client) -> Self {
        ApiServer(client)
    }
}

impl Deref for ApiServer {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.0
    }
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiServer")
    }
}
