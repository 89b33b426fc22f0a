//! Tests of the server through the real client. Tests of behaviour that a real server shares also run against
//! a real one if `LARDER_TEST_KUBECONFIG` names it, which proves that the fake is faithful.

mod access;
mod apply;
mod custom;
mod faults;
mod garbage;
mod objects;
mod pods;
mod snapshots;
mod watches;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::response::Status;
use kube::{Api, Client, Config};
use serde_json::{Value, json};

use super::{Cluster, Timing};

/// A new namespace on the fake server or on a real one.
struct Fixture {
    client: Client,
    namespace: String,
    /// The fake server; `None` for a real one.
    fake: Option<Cluster>,
}

impl Fixture {
    async fn new() -> Self {
        Fixture::with(Timing::default()).await
    }

    /// Creates a namespace. A fake server uses the delays in `timing`.
    async fn with(timing: Timing) -> Self {
        let (client, fake) = match std::env::var_os("LARDER_TEST_KUBECONFIG").map(PathBuf::from) {
            Some(path) => {
                let config = Kubeconfig::read_from(path).unwrap();
                let config =
                    Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
                (Client::try_from(config).unwrap(), None)
            }
            None => {
                let fake = Cluster::with_timing(timing);
                (fake.admin(), Some(fake))
            }
        };
        let namespace = format!("larder-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        let fixture = Fixture { client, namespace, fake };
        fixture.namespaces().create(&PostParams::default(), &namespace_of(&fixture.namespace)).await.unwrap();
        fixture
    }

    fn namespaces(&self) -> Api<Namespace> {
        Api::all(self.client.clone())
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn end(self) {
        self.namespaces().delete(&self.namespace, &DeleteParams::default()).await.unwrap();
    }
}

fn namespace_of(name: &str) -> Namespace {
    typed(json!({"metadata": {"name": name}}))
}

fn typed<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

/// Returns the error response of a request that must be refused.
fn refused<T: std::fmt::Debug>(answer: kube::Result<T>) -> Box<Status> {
    match answer {
        Err(kube::Error::Api(status)) => status,
        other => panic!("not refused: {other:?}"),
    }
}

/// Waits until `probe` returns a value.
async fn until<T>(what: &str, probe: impl AsyncFnMut() -> Option<T>) -> T {
    // The machine might be busy.
    until_within(Duration::from_secs(120), what, probe).await
}

/// Waits like [`until`], with a given limit.
async fn until_within<T>(patience: Duration, what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    while start.elapsed() < patience {
        if let Some(found) = probe().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{what}: not within {patience:?}");
}
