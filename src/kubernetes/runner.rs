//! A build in the cluster, from a build order to a ready snapshot.
//!
//! ```text
//! Job, suspended ──► Secret, PVC (owned by the Job) ──► Job resumes ──► its pod ends
//!     ──► Job of the verifier (owned by the Job) ──► its pod ends ──► VolumeSnapshot ──► Job deleted
//! ```
//!
//! Each step reads the current state, does the next thing, and reads the state again. So a build can be
//! interrupted anywhere, and the next daemon continues it. The Job exists for one attempt. The snapshot has
//! the result of the build in an annotation, and once it is ready nothing else is needed. A request to stop
//! leaves all objects in place: a Job continues without the daemon, and the sweep deletes objects that no
//! record needs.
//!
//! The builder parses untrusted data, so its result alone is not trusted. A snapshot is taken only after a
//! second pod, which reads only the volume, has verified it. The digest that it found is stored in another
//! annotation of the snapshot.

mod attachments;
mod follow;
mod log;
mod objects;
mod snapshot;
mod timing;
mod verdict;
mod verifier;
mod waiting;
mod waits;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
pub use timing::BuildTiming;

use futures_util::future::BoxFuture;
use k8s_openapi::api::batch::v1::Job as KubeJob;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Secret};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::attachments::Attachments;
use self::objects::Parts;
use self::waits::Waits;
use super::client::ApiServer;
use super::fault::{Fault, opt, request};
use super::inventory::{Changes, Inventory};
use super::names::{MANAGER, Names, object};
use super::pull_secrets;
use crate::caches::pull_secrets::{Content, Unusable};
use crate::caches::record::RequestOrigin;
use crate::caches::runner::child::{ChildRunner, ChildRunnerError};
use crate::caches::runner::{Ended, Runner, RunnerJob};
use crate::caches::volumes::VolumeId;
use crate::config::Config;
use crate::config::caches::{CacheVolumeKind, Caches};
use crate::config::cluster::Cluster;
use larder_model::class::Class;
use larder_model::event::{Failure, Line};
use larder_model::image_cache::TenantName;
use larder_model::job::{Job, LayerFormat};
use larder_model::plan_report::PlanReport;
use larder_model::pull_secret::PullSecretName;
use larder_model::size::VolumeSize;

/// Maximum size of a result in an annotation, bytes. All annotations of an object together are limited to 256
/// KiB (apimachinery, pkg/api/validation, TotalAnnotationSizeLimitB).
const MAX_RESULT: usize = 64 << 10;

/// A build reads its objects when one of them has changed, and after this many times [`BuildTiming::look`].
const MAX_LOOKS: u32 = 30;

/// Explanation for a pod that does not terminate, with a hint.
const NODE_GONE: &str = "its node does not respond; bring the node back or remove it from the cluster";

/// Runs builders as pods.
#[derive(Debug)]
pub struct KubeRunner {
    client: ApiServer,
    names: Names,
    cluster: Cluster,
    in_effect: RwLock<Arc<InEffect>>,
    timing: BuildTiming,
    /// Makes plans on this host: they download no layers and need no disk.
    planner: ChildRunner,
    inventory: Inventory,
    /// The attachments of disks, watched from the first build on.
    attachments: OnceLock<Attachments>,
}

/// The settings that a reload of the configuration replaces.
#[derive(Debug)]
struct InEffect {
    caches: Caches,
    layer_format: LayerFormat,
    /// The part of the configuration that builders read, as TOML.
    config: String,
}

impl InEffect {
    fn of(config: &Config) -> Result<Self, ChildRunnerError> {
        Ok(InEffect {
            caches: config.caches.clone(),
            layer_format: config.build.layer_format,
            config: toml::to_string(&config.of_builders()).map_err(ChildRunnerError::Config)?,
        })
    }
}

/// The reason why a step did not complete.
enum StepFailure {
    /// A request to the cluster failed.
    Fault(Fault),
    /// The build has ended.
    Ended(Ended),
}

impl From<Fault> for StepFailure {
    fn from(fault: Fault) -> Self {
        StepFailure::Fault(fault)
    }
}

impl KubeRunner {
    /// Creates a runner for a configuration.
    ///
    /// # Errors
    /// The configuration cannot be passed to builders.
    pub fn new(
        client: Client,
        cluster: &Cluster,
        config: &Config,
        timing: BuildTiming,
        planner: ChildRunner,
        inventory: Inventory,
    ) -> Result<Self, ChildRunnerError> {
        Ok(KubeRunner {
            client: client.into(),
            names: Names { namespace: cluster.namespace.clone() },
            cluster: cluster.clone(),
            in_effect: RwLock::new(Arc::new(InEffect::of(config)?)),
            timing,
            planner,
            inventory,
            attachments: OnceLock::new(),
        })
    }

    /// Applies a reloaded configuration.
    ///
    /// # Errors
    /// The configuration cannot be passed to builders.
    pub fn reload(&self, config: &Config) -> Result<(), ChildRunnerError> {
        let new = Arc::new(InEffect::of(config)?);
        self.planner.reload(&planner_config(config))?;
        *self.in_effect.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    fn in_effect(&self) -> Arc<InEffect> {
        Arc::clone(&self.in_effect.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn own<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.names.namespace)
    }

    /// Runs a build to its end and retries while the API server fails.
    async fn run_build(&self, order: &RunnerJob, lines: &mpsc::Sender<Line>) -> Ended {
        let volume = VolumeId { tenant: order.tenant.clone(), id: order.id, generation: order.generation };
        let with = self.in_effect();
        let changes = tokio::sync::Mutex::new(self.inventory.changes_of(order.id));
        let build = Build { runner: self, with, order, name: object(&volume), volume, lines, changes };
        let mut pause = self.timing.look;
        loop {
            match Box::pin(build.advance()).await {
                Ok(ended) | Err(StepFailure::Ended(ended)) => return ended,
                Err(StepFailure::Fault(fault)) if fault.is_transient() || fault.is_conflict() => {
                    tracing::warn!("a step of a build failed, retrying: {fault}");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(self.timing.outage);
                }
                // A quota, a permission or an admission rule: a retry does not help.
                Err(StepFailure::Fault(fault)) => return exhausted(fault.class(), fault.to_string()),
            }
        }
    }
}

/// A build in progress.
struct Build<'a> {
    runner: &'a KubeRunner,
    with: Arc<InEffect>,
    order: &'a RunnerJob,
    volume: VolumeId,
    /// Name of the Job, Secret, PVC and VolumeSnapshot.
    name: String,
    lines: &'a mpsc::Sender<Line>,
    /// Changes of the objects of the image cache.
    changes: tokio::sync::Mutex<Changes>,
}

impl Build<'_> {
    /// Waits until an object has changed. A watch can miss a change, so this also returns after a timeout.
    async fn pause(&self) {
        let look = self.runner.timing.look;
        self.changes.lock().await.wait(look * MAX_LOOKS).await;
        // Changes at the same time are handled together.
        tokio::time::sleep(look / 20).await;
    }

    /// Continues the build from the current state.
    async fn advance(&self) -> Result<Ended, StepFailure> {
        // A snapshot that was given up is being deleted, and its name is not free until it is gone.
        if let Some(snapshot) = self.snapshot().await?
            && snapshot.metadata.deletion_timestamp.is_none()
        {
            return match verifier::has_verified(&snapshot) {
                true => self.finish(snapshot).await,
                false => Ok(self.unverified()),
            };
        }
        let mut unusable: Unusable = self.order.unusable_secrets.iter().collect();
        let secrets = pull_secrets::read(
            &self.runner.client,
            &self.order.tenant,
            self.order.ordered_by,
            &self.order.job.pull_secrets,
            &mut unusable,
        );
        let secrets = secrets.await?;
        let job = self.job(&secrets).await?;
        if job.spec.as_ref().is_some_and(|spec| spec.suspend == Some(true)) && verdict::end(&job).is_none() {
            self.create_dependents(&job, &secrets).await?;
            self.unsuspend().await?;
        }
        let ended = match self.follow(unusable).await? {
            Ended::Result(outcome) => match self.verify(&job, &outcome).await? {
                Ok(digest) => {
                    let snapshot = self.take_snapshot(&outcome, &digest).await?;
                    return self.finish(snapshot).await;
                }
                Err(ended) => ended,
            },
            ended => ended,
        };
        if let Ended::Died(_) = &ended {
            // The next attempt starts from the beginning.
            self.delete_job().await?;
        }
        Ok(ended)
    }

    fn parts<'b>(&'b self, job: &'b Job) -> Parts<'b> {
        let KubeRunner { names, cluster, .. } = self.runner;
        let InEffect { caches, layer_format, .. } = &*self.with;
        Parts { names, cluster, caches, layer_format: *layer_format, volume: &self.volume, job }
    }

    /// Returns the job for the builder, with the pull secrets that exist.
    fn build_job(&self, secrets: &[(PullSecretName, Content)]) -> Job {
        Job { pull_secrets: secrets.iter().map(|(name, _)| name.clone()).collect(), ..self.order.job.clone() }
    }

    /// Returns the Job of this build. Creates it if necessary.
    async fn job(&self, secrets: &[(PullSecretName, Content)]) -> Result<KubeJob, StepFailure> {
        loop {
            match self.find_job(&self.name).await? {
                Some(job) if job.metadata.deletion_timestamp.is_none() => return Ok(job),
                // From an earlier attempt: its name is not free until it is gone.
                Some(_) => self.pause().await,
                None => {
                    self.check_storage_class().await?;
                    let deadline = self.order.job.deadline.map(|deadline| deadline - chrono::Utc::now());
                    let timeout_seconds = self.timeout_seconds();
                    let seconds =
                        deadline.map_or(timeout_seconds, |left| left.num_seconds().clamp(1, timeout_seconds));
                    let job = self.build_job(secrets);
                    let object = self.parts(&job).job(secrets, seconds);
                    return self.apply("the job", &self.name, &object).await;
                }
            }
        }
    }

    async fn find_job(&self, name: &str) -> Result<Option<KubeJob>, Fault> {
        let jobs: Api<KubeJob> = self.runner.own();
        opt(request!(&format!("reading the job {name}"), jobs.get(name)))
    }

    /// Returns the maximum duration of a builder or verifier, seconds.
    fn timeout_seconds(&self) -> i64 {
        i64::from(self.with.caches.build_timeout_minutes) * 60
    }

    async fn check_storage_class(&self) -> Result<(), StepFailure> {
        let class = &self.runner.cluster.storage_class;
        if class.is_empty() {
            return Ok(());
        }
        let classes: Api<StorageClass> = Api::all(self.runner.client.clone());
        match opt(request!("reading the storage class", classes.get(class)))? {
            Some(_) => Ok(()),
            None => Err(StepFailure::Ended(exhausted(
                Class::Internal,
                format!("there is no StorageClass {class:?} in the cluster; check cluster.storage_class"),
            ))),
        }
    }

    /// Creates Secret and PVC, owned by the Job. Leftovers of an earlier Job are deleted first.
    async fn create_dependents(
        &self,
        job: &KubeJob,
        secrets: &[(PullSecretName, Content)],
    ) -> Result<(), StepFailure> {
        let build_job = self.build_job(secrets);
        let parts = self.parts(&build_job);
        let secret = parts.secret(job, &self.with.config, secrets);
        let secret =
            secret.map_err(|e| StepFailure::Ended(Ended::NotStarted(format!("writing its job: {e}"))))?;
        self.apply::<Secret>("the secret", &self.name, &secret).await?;
        let size_gib = self.order.job.size.and_then(VolumeSize::given).map_or(0, |size| size.0 >> 30);
        self.apply::<PersistentVolumeClaim>("the volume claim", &self.name, &parts.claim(job, size_gib))
            .await?;
        Ok(())
    }

    /// Applies an object that belongs to the Job. If an object of an earlier Job or attempt cannot be updated
    /// (immutable content, another controller), it is deleted and then created again.
    async fn apply<K>(&self, what: &str, name: &str, object: &Value) -> Result<K, StepFailure>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
        K::DynamicType: Default,
    {
        let api: Api<K> = self.runner.own();
        let parameters = PatchParams::apply(MANAGER).force().validation_strict();
        let doing = format!("creating {what} {name}");
        loop {
            match request!(&doing, api.patch(name, &parameters, &Patch::Apply(object))) {
                Ok(made) if made.meta().deletion_timestamp.is_none() => return Ok(made),
                Ok(_) => {}
                Err(fault) if fault.code() == 422 => {
                    let why = fault.to_string();
                    let removing = format!("deleting an earlier {name}");
                    let removed = opt(request!(&removing, api.delete(name, &DeleteParams::default())))?;
                    if removed.is_none() {
                        // No object was in the way: the new one itself is refused.
                        return Err(fault.into());
                    }
                    tracing::debug!("{why}");
                }
                Err(fault) => return Err(fault.into()),
            }
            self.pause().await;
        }
    }

    async fn unsuspend(&self) -> Result<(), Fault> {
        let jobs: Api<KubeJob> = self.runner.own();
        let doing = format!("starting the job {}", self.name);
        let patch = json!({"spec": {"suspend": false}});
        let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        request!(&doing, jobs.patch(&self.name, &parameters, &Patch::Merge(&patch)))?;
        Ok(())
    }

    fn name_unusable(&self, ended: Ended, unusable: &Unusable) -> Ended {
        match ended {
            Ended::Exhausted(mut outcome) => {
                unusable.name_in_outcome(&mut outcome);
                Ended::Exhausted(outcome)
            }
            other => other,
        }
    }

    fn waits(&self) -> Waits<'_> {
        Waits::new(self.lines, self.runner.timing.report)
    }

    /// Deletes the Job. The cluster deletes pods, Secret and PVC with it.
    async fn delete_job(&self) -> Result<(), Fault> {
        let jobs: Api<KubeJob> = self.runner.own();
        let doing = format!("deleting the job {}", self.name);
        opt(request!(&doing, jobs.delete(&self.name, &DeleteParams::foreground())))?;
        Ok(())
    }
}

fn exhausted(class: Class, message: String) -> Ended {
    Ended::Exhausted(verdict::outcome(class, message))
}

impl Runner for KubeRunner {
    fn build<'a>(
        &'a self,
        order: RunnerJob,
        lines: mpsc::Sender<Line>,
        stop: CancellationToken,
    ) -> BoxFuture<'a, Ended> {
        Box::pin(async move {
            tokio::select! {
                ended = self.run_build(&order, &lines) => ended,
                () = stop.cancelled() => Ended::Stopped,
            }
        })
    }

    fn plan<'a>(
        &'a self,
        tenant: TenantName,
        ordered_by: RequestOrigin,
        job: Job,
        unusable_secrets: Vec<String>,
    ) -> BoxFuture<'a, Result<PlanReport, Vec<Failure>>> {
        Box::pin(async move {
            let mut unusable: Unusable = unusable_secrets.iter().collect();
            let read =
                pull_secrets::read(&self.client, &tenant, ordered_by, &job.pull_secrets, &mut unusable);
            let found: HashMap<PullSecretName, Content> = match read.await {
                Ok(found) => found.into_iter().collect(),
                Err(fault) => {
                    tracing::warn!(%tenant, "planning failed: {fault}");
                    let message = "the cluster is not reachable; try again later".to_owned();
                    return Err(verdict::outcome(Class::Transient, message).failures);
                }
            };
            self.planner.plan_with(job, unusable_secrets, found).await
        })
    }
}

/// Returns the configuration for planners on the daemon's host. They write no volume, so the volume kind does
/// not matter.
pub fn planner_config(config: &Config) -> Config {
    let mut config = config.clone();
    config.caches.volume_kind = CacheVolumeKind::Directory;
    config
}
