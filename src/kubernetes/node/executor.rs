//! Executes the steps of an agent: creates and deletes objects, attaches and detaches volumes.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Node as NodeObject, PersistentVolumeClaim, Pod};
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, PostParams};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::attacher::{self, AttachFault, Attacher};
use super::desired::DesiredVolume;
use super::mount_point;
use super::objects::Objects;
use super::observed::{ObservedVolume, Step};
use super::settings::Settings;
use crate::kubernetes::client::ApiServer;
use crate::kubernetes::fault::{Fault, opt, request};
use crate::kubernetes::names::MANAGER;
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_sys::mount::make_read_only;

/// A failed step. It is retried with growing delays.
#[derive(Debug)]
pub(super) struct StepError {
    pub(super) class: Class,
    pub(super) reason: String,
}

impl From<Fault> for StepError {
    fn from(fault: Fault) -> Self {
        StepError { class: fault.class(), reason: fault.to_string() }
    }
}

impl From<AttachFault> for StepError {
    fn from(fault: AttachFault) -> Self {
        StepError { class: fault.class, reason: fault.reason }
    }
}

/// Executes the steps of an agent.
#[derive(Debug)]
pub(super) struct StepExecutor {
    pub(super) client: ApiServer,
    pub(super) settings: Settings,
    pub(super) attacher: Arc<dyn Attacher>,
}

impl StepExecutor {
    /// Executes a step. Every step is idempotent.
    pub(super) async fn execute(
        &self,
        claim: &str,
        observed: &ObservedVolume,
        desired: Option<&DesiredVolume>,
        step: &Step,
    ) -> Result<(), StepError> {
        match (step, desired) {
            (Step::MakeClaim, Some(desired)) => {
                self.create::<PersistentVolumeClaim>(|objects| objects.claim(desired)).await
            }
            (Step::MakeHolder, Some(desired)) => {
                let before: Vec<&Pod> = observed.pods.iter().map(AsRef::as_ref).collect();
                self.create::<Pod>(|objects| objects.holder(desired, &before)).await
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

    /// Returns the API of the namespace of volumes.
    pub(super) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.settings.config.namespace)
    }

    /// Creates an object. An object that already exists, because the response to an earlier attempt was lost,
    /// is delivered by a watch.
    async fn create<K>(&self, object: impl FnOnce(&Objects<'_>) -> Value) -> Result<(), StepError>
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
        // Read each time: a node that registers again is another object.
        let uid = request!(&format!("reading the node {node}"), nodes.get_metadata(node))?
            .uid()
            .unwrap_or_default();
        let value = object(&Objects { settings: &self.settings.config, node: (node, &uid) });
        let kind = kind::<K>();
        let doing = format!("creating the {kind} {}", value["metadata"]["name"]);
        let object: K = serde_json::from_value(value)
            .map_err(|e| StepError { class: Class::Internal, reason: format!("{doing}: {e}") })?;
        let parameters = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let api: Api<K> = self.api();
        match request!(&doing, api.create(&parameters, &object)) {
            Err(fault) if !fault.already_exists() => Err(fault.into()),
            _ => Ok(()),
        }
    }

    /// Deletes an object. A volume that is mounted in a pod was detached before, so a short grace period is
    /// enough.
    async fn delete<K>(&self, name: &str) -> Result<(), StepError>
    where
        K: kube::Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
        K::DynamicType: Default,
    {
        let api: Api<K> = self.api();
        let kind = kind::<K>();
        // Not 0, so that the object exists until the kubelet confirms the end of the pod.
        let parameters = DeleteParams::default().grace_period(1);
        opt(request!(&format!("deleting the {kind} {name}"), api.delete(name, &parameters)))?;
        Ok(())
    }

    async fn attach(&self, claim: &str, uid: String, volume: String, seal: Digest) -> Result<(), StepError> {
        let (attacher, kubelet) = (Arc::clone(&self.attacher), self.settings.config.kubelet.clone());
        let name = attacher::name(claim);
        spawn_blocking(move || {
            let found = mount_point::find(&kubelet, &uid, &volume);
            let found = found.map_err(|e| StepError {
                class: Class::Internal,
                reason: format!("looking for the mount of {volume} below {}: {e}", kubelet.display()),
            })?;
            let found = found.ok_or_else(|| StepError {
                class: Class::Internal,
                reason: format!(
                    "{} contains no mount of {volume} for the pod {uid}: check mountPropagation HostToContainer, \
                     and that the CSI driver mounts volumes",
                    kubelet.display()
                ),
            })?;
            // A driver makes its mount read-only in its own mount namespace, and the copy in this namespace
            // stays writable (bind and remount, k8s.io/mount-utils). A writable volume of another user would
            // be refused. Before Linux 5.12 the mount cannot be changed, and such a volume is refused.
            if let Err(error) = make_read_only(&found)
                && error.kind() != io::ErrorKind::Unsupported
            {
                let reason = format!("remounting {volume} read-only: {error}");
                return Err(StepError { class: Class::Internal, reason });
            }
            Ok(attacher.attach(&found, &name, &seal)?)
        })
        .await
    }

    pub(super) async fn detach(&self, name: String) -> Result<(), StepError> {
        let attacher = Arc::clone(&self.attacher);
        spawn_blocking(move || Ok(attacher.detach(&name)?)).await
    }

    pub(super) async fn attached(&self) -> Result<BTreeSet<String>, StepError> {
        let attacher = Arc::clone(&self.attacher);
        spawn_blocking(move || Ok(attacher.attached()?.into_iter().collect())).await
    }
}

async fn spawn_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StepError> + Send + 'static,
) -> Result<T, StepError> {
    let done = crate::blocking::spawn(work).await;
    done.unwrap_or_else(|e| {
        Err(StepError { class: Class::Internal, reason: format!("a blocking task failed: {e}") })
    })
}

fn kind<K>() -> String
where
    K: kube::Resource,
    K::DynamicType: Default,
{
    K::kind(&K::DynamicType::default()).to_lowercase()
}
