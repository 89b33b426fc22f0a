//! What an agent does: objects made and deleted, volumes attached and let go.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Node as NodeObject, PersistentVolumeClaim, Pod};
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, PostParams};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::agent::Settings;
use super::attacher::{self, AttachFault, Attacher};
use super::holding::{Holding, Step};
use super::objects::Objects;
use super::place;
use super::wish::Wish;
use crate::kubernetes::client::ApiServer;
use crate::kubernetes::fault::{Fault, ask, opt};
use crate::kubernetes::names::MANAGER;
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_sys::mount::make_read_only;

/// A step failed. It is taken again, later each time.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) class: Class,
    pub(super) reason: String,
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        Trouble { class: fault.class(), reason: fault.to_string() }
    }
}

impl From<AttachFault> for Trouble {
    fn from(fault: AttachFault) -> Self {
        Trouble { class: fault.class, reason: fault.reason }
    }
}

/// With what it does so.
#[derive(Debug)]
pub(super) struct Hands {
    pub(super) client: ApiServer,
    pub(super) settings: Settings,
    pub(super) attacher: Arc<dyn Attacher>,
}

impl Hands {
    /// Takes a step. Each may be taken twice.
    pub(super) async fn take(
        &self,
        claim: &str,
        holding: &Holding,
        wish: Option<&Wish>,
        step: &Step,
    ) -> Result<(), Trouble> {
        match (step, wish) {
            (Step::MakeClaim, Some(wish)) => {
                self.make::<PersistentVolumeClaim>(|objects| objects.claim(wish)).await
            }
            (Step::MakeHolder, Some(wish)) => {
                let before: Vec<&Pod> = holding.pods.iter().map(AsRef::as_ref).collect();
                self.make::<Pod>(|objects| objects.holder(wish, &before)).await
            }
            (Step::DeleteHolder(name), _) => self.delete::<Pod>(name).await,
            (Step::DeleteClaim, _) => self.delete::<PersistentVolumeClaim>(claim).await,
            (Step::Attach { uid, volume, seal }, Some(_)) => {
                self.attach(claim, uid.clone(), volume.clone(), seal.clone()).await
            }
            (Step::Detach, _) => self.detach(attacher::name(claim)).await,
            _ => Ok(()),
        }
    }

    /// Objects of the namespace of volumes.
    pub(super) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.settings.config.namespace)
    }

    /// Makes an object. One that is there already, by a try whose answer was lost, is seen soon.
    async fn make<K>(&self, object: impl FnOnce(&Objects<'_>) -> Value) -> Result<(), Trouble>
    where
        K: kube::Resource<Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + serde::Serialize
            + std::fmt::Debug,
        K::DynamicType: Default,
    {
        let node = &self.settings.node;
        let nodes: Api<NodeObject> = Api::all(self.client.clone());
        // Asked each time: a node that registers again is another object.
        let uid =
            ask!(&format!("reading the node {node}"), nodes.get_metadata(node))?.uid().unwrap_or_default();
        let value = object(&Objects { settings: &self.settings.config, node: (node, &uid) });
        let kind = kind::<K>();
        let doing = format!("making the {kind} {}", value["metadata"]["name"]);
        let object: K = serde_json::from_value(value)
            .map_err(|e| Trouble { class: Class::Internal, reason: format!("{doing}: {e}") })?;
        let parameters = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let api: Api<K> = self.api();
        match ask!(&doing, api.create(&parameters, &object)) {
            Err(fault) if !fault.is_already_there() => Err(fault.into()),
            _ => Ok(()),
        }
    }

    /// Deletes an object. What is mounted in a pod is detached already, so nothing is waited for.
    async fn delete<K>(&self, name: &str) -> Result<(), Trouble>
    where
        K: kube::Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
        K::DynamicType: Default,
    {
        let api: Api<K> = self.api();
        let kind = kind::<K>();
        // Not 0: the kubelet says when it is gone.
        let parameters = DeleteParams::default().grace_period(1);
        opt(ask!(&format!("deleting the {kind} {name}"), api.delete(name, &parameters)))?;
        Ok(())
    }

    async fn attach(&self, claim: &str, uid: String, volume: String, seal: Digest) -> Result<(), Trouble> {
        let (attacher, kubelet) = (Arc::clone(&self.attacher), self.settings.config.kubelet.clone());
        let name = attacher::name(claim);
        on_a_thread(move || {
            let found = place::find(&kubelet, &uid, &volume);
            let found = found.map_err(|e| Trouble {
                class: Class::Internal,
                reason: format!("looking for the mount of {volume} below {}: {e}", kubelet.display()),
            })?;
            let found = found.ok_or_else(|| Trouble {
                class: Class::Internal,
                reason: format!(
                    "{} shows no mount of {volume} for the pod {uid}: want mountPropagation HostToContainer there, \
                     and a driver that mounts",
                    kubelet.display()
                ),
            })?;
            // A driver makes its mount read-only where it runs, and the copy in this namespace stays writable (bind and remount,
            // k8s.io/mount-utils). Then a volume of another user would be refused. Before Linux 5.12 it is.
            if let Err(error) = make_read_only(&found)
                && error.kind() != io::ErrorKind::Unsupported
            {
                let reason = format!("making the mount of {volume} read-only: {error}");
                return Err(Trouble { class: Class::Internal, reason });
            }
            Ok(attacher.attach(&found, &name, &seal)?)
        })
        .await
    }

    pub(super) async fn detach(&self, name: String) -> Result<(), Trouble> {
        let attacher = Arc::clone(&self.attacher);
        on_a_thread(move || Ok(attacher.detach(&name)?)).await
    }

    pub(super) async fn attached(&self) -> Result<BTreeSet<String>, Trouble> {
        let attacher = Arc::clone(&self.attacher);
        on_a_thread(move || Ok(attacher.attached()?.into_iter().collect())).await
    }
}

async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Trouble> + Send + 'static,
) -> Result<T, Trouble> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Trouble { class: Class::Internal, reason: format!("on a thread: {e}") }))
}

fn kind<K>() -> String
where
    K: kube::Resource,
    K::DynamicType: Default,
{
    K::kind(&K::DynamicType::default()).to_lowercase()
}
