//! The way to the API server.

use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::config::cluster::Cluster;
use larder_model::class::Class;

/// There is no way to the cluster.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig cannot be used.
    #[error("cluster {uid}: reading the kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        /// UID of the cluster.
        uid: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<kube::config::KubeconfigError>,
    },
    /// This process is in no pod.
    #[error(
        "cluster {uid}: larder does not run in a pod of it: {source}; name a kubeconfig to run elsewhere"
    )]
    InCluster {
        /// UID of the cluster.
        uid: String,
        /// What is missing.
        source: Box<kube::config::InClusterError>,
    },
    /// The client cannot be made.
    #[error("cluster {uid}: {source}")]
    Client {
        /// UID of the cluster.
        uid: String,
        /// Why not.
        source: Box<kube::Error>,
    },
}

impl ConnectError {
    /// The class that decides exit code and retry.
    pub fn class(&self) -> Class {
        Class::Invalid
    }
}

/// A client for the cluster: by the kubeconfig that is named, else by the ServiceAccount of the pod. A kubeconfig that
/// happens to lie about is never looked for.
pub async fn connect(cluster: &Cluster) -> Result<Client, ConnectError> {
    connect_by(&cluster.uid, cluster.kubeconfig.as_deref()).await
}

/// The same for the cluster that is called `uid` in errors.
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
    // Requests are repeated in one place (fault::ask).
    config.default_retry = false;
    Client::try_from(config).map_err(|source| ConnectError::Client { uid: uid(), source: Box::new(source) })
}

/// A client that can be shown, and says nothing then.
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
