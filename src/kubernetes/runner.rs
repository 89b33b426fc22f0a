//! A build in the cluster: from an order to a snapshot that is ready.
//!
//! ```text
//! Job, suspended ──► Secret, PVC (the Job owns them) ──► Job goes on ──► its pod ends
//!                       ──► Job of the verifier (the Job owns it) ──► its pod ends ──► VolumeSnapshot ──► Job goes
//! ```
//!
//! Each step looks what is there, does the next thing, and looks again. So it can be broken off anywhere, and whoever is
//! next goes on: the Job exists for one attempt, the snapshot carries the result of the build in an annotation, and once it
//! is ready nothing else is needed. Being asked to stop leaves everything as it is: a Job goes on without us, and the sweep
//! removes what no record needs.
//!
//! The builder parsed what strangers wrote, so its word is not enough: a snapshot is taken only after a second pod, which
//! read the volume and nothing else, has verified it. The digest that it found is in another annotation of the snapshot.

mod attachments;
mod follow;
mod log;
mod objects;
mod verdict;
mod verifier;
mod waiting;
mod waits;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use k8s_openapi::api::batch::v1::Job as KubeJob;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Secret};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::attachments::Attachments;
use self::objects::Parts;
use self::waits::Waits;
use super::client::ApiServer;
use super::daemon::of_planner;
use super::fault::{Fault, ask, opt};
use super::inventory::{Changes, Inventory};
use super::names::{MANAGER, Names, RESULT, object};
use super::pull_secrets;
use super::snapshot::VolumeSnapshot;
use crate::caches::pull_secrets::{Content, Unusable};
use crate::caches::record::OrderedBy;
use crate::caches::runner::child::{ChildRunner, ChildRunnerError};
use crate::caches::runner::{BuildOrder, Ended, Runner};
use crate::caches::volumes::VolumeId;
use crate::config::Config;
use crate::config::caches::Caches;
use crate::config::cluster::Cluster;
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::escape::escape_to;
use larder_model::event::{Failure, Line, Outcome};
use larder_model::image_cache::TenantName;
use larder_model::job::{Job, LayerFormat};
use larder_model::plan_report::PlanReport;
use larder_model::pull_secret::PullSecretName;

/// Most bytes of a result in an annotation: all annotations of an object together may have 256 KiB
/// (apimachinery, pkg/api/validation, TotalAnnotationSizeLimitB).
const MAX_RESULT: usize = 64 << 10;

/// A build looks at its objects when one of them has changed, and after this many times [`Pace::look`].
const LOOKS: u32 = 30;

/// Why a pod does not go.
const STUCK: &str = "nothing is heard of its node; see that it is back, or taken out of the cluster";

/// How patient a runner is.
#[derive(Clone, Debug)]
pub struct Pace {
    /// How often it looks.
    pub look: Duration,
    /// How long a builder may not start.
    pub pending: Duration,
    /// How long a build waits before the reason is reported, and how often the reason is looked for again.
    pub report: Duration,
    /// How long the disk may stay attached to the node of a builder that has ended. The builder has synced it all the same.
    pub attached: Duration,
    /// How long a snapshot may take.
    pub snapshot: Duration,
    /// Longest pause after the API server failed.
    pub outage: Duration,
}

impl Pace {
    /// As the configuration has it.
    pub fn of(cluster: &Cluster) -> Self {
        let minutes = |minutes: u32| Duration::from_secs(u64::from(minutes) * 60);
        Pace {
            look: Duration::from_secs(1),
            pending: minutes(cluster.pending_timeout_minutes),
            report: Duration::from_secs(30),
            attached: minutes(2),
            snapshot: minutes(cluster.snapshot_timeout_minutes),
            outage: Duration::from_secs(30),
        }
    }
}

/// Starts builders as pods.
#[derive(Debug)]
pub struct KubeRunner {
    client: ApiServer,
    names: Names,
    cluster: Cluster,
    in_effect: RwLock<Arc<InEffect>>,
    pace: Pace,
    /// Plans are made here: they move no layer byte and need no disk.
    planner: ChildRunner,
    inventory: Inventory,
    /// Watched from the first build on.
    attachments: OnceLock<Attachments>,
}

/// What comes from the configuration, and is replaced when that is read again.
#[derive(Debug)]
struct InEffect {
    caches: Caches,
    layer_format: LayerFormat,
    /// What builders read of the configuration.
    config: String,
}

impl InEffect {
    fn of(config: &Config) -> Result<Self, ChildRunnerError> {
        let of_builders =
            Config { registry: config.registry.clone(), build: config.build.clone(), ..Config::default() };
        Ok(InEffect {
            caches: config.caches.clone(),
            layer_format: config.build.layer_format,
            config: toml::to_string(&of_builders)?,
        })
    }
}

/// A step that did not go on.
enum Halt {
    /// The cluster failed.
    Fault(Fault),
    /// The build has come to an end.
    Ended(Ended),
}

impl From<Fault> for Halt {
    fn from(fault: Fault) -> Self {
        Halt::Fault(fault)
    }
}

impl KubeRunner {
    /// A runner for the configuration in effect.
    pub fn new(
        client: Client,
        cluster: &Cluster,
        config: &Config,
        pace: Pace,
        planner: ChildRunner,
        inventory: Inventory,
    ) -> Result<Self, ChildRunnerError> {
        Ok(KubeRunner {
            client: client.into(),
            names: Names { namespace: cluster.namespace.clone() },
            cluster: cluster.clone(),
            in_effect: RwLock::new(Arc::new(InEffect::of(config)?)),
            pace,
            planner,
            inventory,
            attachments: OnceLock::new(),
        })
    }

    /// Takes up a configuration that was read again.
    pub fn reload(&self, config: &Config) -> Result<(), ChildRunnerError> {
        let new = Arc::new(InEffect::of(config)?);
        self.planner.reload(&of_planner(config))?;
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

    /// Carries an order out, whatever the API server does meanwhile.
    async fn carry_out(&self, order: &BuildOrder, lines: &mpsc::Sender<Line>) -> Ended {
        let volume = VolumeId { tenant: order.tenant.clone(), id: order.id, generation: order.generation };
        let with = self.in_effect();
        let changes = tokio::sync::Mutex::new(self.inventory.changes_of(order.id));
        let build = Build { runner: self, with, order, name: object(&volume), volume, lines, changes };
        let mut pause = self.pace.look;
        loop {
            match Box::pin(build.go_on()).await {
                Ok(ended) | Err(Halt::Ended(ended)) => return ended,
                Err(Halt::Fault(fault)) if fault.is_transient() || fault.is_conflict() => {
                    tracing::warn!(cache = %order.id, "a build waits for the cluster: {fault}");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(self.pace.outage);
                }
                // A quota, a right, a rule of admission: it does not go away by asking again.
                Err(Halt::Fault(fault)) => return exhausted(fault.class(), fault.to_string()),
            }
        }
    }
}

/// One build under way.
struct Build<'a> {
    runner: &'a KubeRunner,
    with: Arc<InEffect>,
    order: &'a BuildOrder,
    volume: VolumeId,
    /// Of Job, Secret, PVC and VolumeSnapshot.
    name: String,
    lines: &'a mpsc::Sender<Line>,
    /// Changes of what was made for the image cache.
    changes: tokio::sync::Mutex<Changes>,
}

impl Build<'_> {
    /// Waits until there is something new to look at. A watch can miss a change, so this ends after a while in any case.
    async fn pause(&self) {
        let look = self.runner.pace.look;
        self.changes.lock().await.wait(look * LOOKS).await;
        // What changes together is seen together.
        tokio::time::sleep(look / 20).await;
    }

    /// Goes on from whatever is there.
    async fn go_on(&self) -> Result<Ended, Halt> {
        // One that was given up is on its way out, and its name not free before it is gone.
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
            self.furnish(&job, &secrets).await?;
            self.resume().await?;
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
            // The next attempt begins anew.
            self.delete_job().await?;
        }
        Ok(ended)
    }

    fn parts<'b>(&'b self, job: &'b Job) -> Parts<'b> {
        let KubeRunner { names, cluster, .. } = self.runner;
        let InEffect { caches, layer_format, .. } = &*self.with;
        Parts { names, cluster, caches, layer_format: *layer_format, volume: &self.volume, job }
    }

    /// The job that the builder gets: its secrets are those that there are.
    fn build_job(&self, secrets: &[(PullSecretName, Content)]) -> Job {
        Job { pull_secrets: secrets.iter().map(|(name, _)| name.clone()).collect(), ..self.order.job.clone() }
    }

    /// The Job of this build, made if need be.
    async fn job(&self, secrets: &[(PullSecretName, Content)]) -> Result<KubeJob, Halt> {
        loop {
            match self.find_job(&self.name).await? {
                Some(job) if job.metadata.deletion_timestamp.is_none() => return Ok(job),
                // One of an earlier attempt: its name is not free before it is gone.
                Some(_) => self.pause().await,
                None => {
                    self.check_storage_class().await?;
                    let deadline = self.order.job.deadline.map(|deadline| deadline - chrono::Utc::now());
                    let longest = self.longest();
                    let seconds = deadline.map_or(longest, |left| left.num_seconds().clamp(1, longest));
                    let job = self.build_job(secrets);
                    let object = self.parts(&job).job(secrets, seconds);
                    return self.apply("the job", &self.name, &object).await;
                }
            }
        }
    }

    async fn find_job(&self, name: &str) -> Result<Option<KubeJob>, Fault> {
        let jobs: Api<KubeJob> = self.runner.own();
        opt(ask!(&format!("reading the job {name}"), jobs.get(name)))
    }

    /// How long a builder or verifier may take, seconds.
    fn longest(&self) -> i64 {
        i64::from(self.with.caches.build_timeout_minutes) * 60
    }

    async fn check_storage_class(&self) -> Result<(), Halt> {
        let class = &self.runner.cluster.storage_class;
        if class.is_empty() {
            return Ok(());
        }
        let classes: Api<StorageClass> = Api::all(self.runner.client.clone());
        match opt(ask!("reading the storage class", classes.get(class)))? {
            Some(_) => Ok(()),
            None => Err(Halt::Ended(exhausted(
                Class::Internal,
                format!("there is no StorageClass {class:?} in the cluster: see cluster.storage_class"),
            ))),
        }
    }

    /// Makes Secret and PVC, owned by the Job. What is left of an earlier Job goes first.
    async fn furnish(&self, job: &KubeJob, secrets: &[(PullSecretName, Content)]) -> Result<(), Halt> {
        let build_job = self.build_job(secrets);
        let parts = self.parts(&build_job);
        let secret = parts.secret(job, &self.with.config, secrets);
        let secret = secret.map_err(|e| Halt::Ended(Ended::NotStarted(format!("writing its job: {e}"))))?;
        self.apply::<Secret>("the secret", &self.name, &secret).await?;
        let size_gib = self.order.job.size.map_or(0, |size| size.0 >> 30);
        self.apply::<PersistentVolumeClaim>("the volume claim", &self.name, &parts.claim(job, size_gib))
            .await?;
        Ok(())
    }

    /// Applies an object that belongs to the Job. One that cannot become what it shall be is of an earlier Job or attempt
    /// (immutable content, another controller): it is removed, and made when it is gone.
    async fn apply<K>(&self, what: &str, name: &str, object: &Value) -> Result<K, Halt>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
        K::DynamicType: Default,
    {
        let api: Api<K> = self.runner.own();
        let parameters = PatchParams::apply(MANAGER).force().validation_strict();
        let doing = format!("making {what} {name}");
        loop {
            match ask!(&doing, api.patch(name, &parameters, &Patch::Apply(object))) {
                Ok(made) if made.meta().deletion_timestamp.is_none() => return Ok(made),
                Ok(_) => {}
                Err(fault) if fault.code() == 422 => {
                    let why = fault.to_string();
                    let removing = format!("removing an earlier {name}");
                    let removed = opt(ask!(&removing, api.delete(name, &DeleteParams::default())))?;
                    if removed.is_none() {
                        // Nothing was in the way: the object itself is refused.
                        return Err(fault.into());
                    }
                    tracing::debug!("{why}");
                }
                Err(fault) => return Err(fault.into()),
            }
            self.pause().await;
        }
    }

    async fn resume(&self) -> Result<(), Fault> {
        let jobs: Api<KubeJob> = self.runner.own();
        let doing = format!("starting the job {}", self.name);
        let patch = json!({"spec": {"suspend": false}});
        let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        ask!(&doing, jobs.patch(&self.name, &parameters, &Patch::Merge(&patch)))?;
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

    async fn snapshot(&self) -> Result<Option<VolumeSnapshot>, Fault> {
        let api: Api<VolumeSnapshot> = self.runner.own();
        let doing = format!("reading the snapshot {}", self.name);
        opt(ask!(&doing, api.get(&self.name)))
    }

    /// Takes the snapshot of a volume whose verifier found the digest `verified`.
    async fn take_snapshot(&self, outcome: &Outcome, verified: &Digest) -> Result<VolumeSnapshot, Halt> {
        self.wait_until_detached().await?;
        let result = outcome.to_short_line(MAX_RESULT);
        let result = result.map_err(|e| Halt::Ended(Ended::Died(format!("writing its result: {e}"))))?;
        let snapshot = self.parts(&self.order.job).snapshot(&result, verified);
        let made: VolumeSnapshot = self.apply("the snapshot", &self.name, &snapshot).await?;
        let of = made.spec.source.persistent_volume_claim_name.as_deref();
        if of != Some(&self.name) {
            let message = format!("the snapshot {} is of {of:?}: somebody else made it", self.name);
            return Err(Halt::Ended(exhausted(Class::Conflict, message)));
        }
        Ok(made)
    }

    /// A disk that is still mounted has a journal to replay.
    async fn wait_until_detached(&self) -> Result<(), Fault> {
        let claims: Api<PersistentVolumeClaim> = self.runner.own();
        let doing = format!("reading the volume claim {}", self.name);
        let claim = opt(ask!(&doing, claims.get(&self.name)))?;
        let Some(disk) = claim.and_then(|claim| claim.spec?.volume_name) else { return Ok(()) };
        let attachments = self.runner.attachments.get_or_init(|| Attachments::new(&self.runner.client));
        let mut waits = self.waits();
        let most = self.runner.pace.attached;
        while let Some(left) = most.checked_sub(waits.elapsed()) {
            let pause = left.min(self.runner.pace.report);
            if tokio::time::timeout(pause, attachments.detached(&disk)).await.is_ok() {
                waits.end();
                return Ok(());
            }
            if waits.is_due() {
                waits.report(format!("the disk {disk} is still attached to the node of its builder"));
            }
        }
        tracing::warn!(cache = %self.order.id, disk, "a snapshot is taken of a disk that is still attached");
        Ok(())
    }

    /// Waits until a snapshot is ready, and lets go what it was made from.
    async fn finish(&self, mut snapshot: VolumeSnapshot) -> Result<Ended, Halt> {
        let mut waits = self.waits();
        while !snapshot.is_ready() {
            let why = || escape_to(snapshot.error().unwrap_or("its driver gives no reason"), 400);
            if waits.elapsed() >= self.runner.pace.snapshot {
                let limit = self.runner.pace.snapshot.as_secs();
                let message = format!("the snapshot was not ready within {limit} s: {}", why());
                return Ok(exhausted(Class::Transient, message));
            }
            if waits.is_due() {
                waits.report(format!("the snapshot is not ready: {}", why()));
            }
            self.pause().await;
            snapshot = match self.snapshot().await? {
                Some(snapshot) if snapshot.metadata.deletion_timestamp.is_none() => snapshot,
                _ => return Ok(Ended::Died("its snapshot was deleted by somebody else".to_owned())),
            };
        }
        self.delete_job().await?;
        let result = snapshot.annotations().get(RESULT).and_then(|text| serde_json::from_str(text).ok());
        Ok(match result {
            Some(outcome) => Ended::Result(outcome),
            None => exhausted(Class::Corrupt, format!("the snapshot {} tells no result", self.name)),
        })
    }

    fn waits(&self) -> Waits<'_> {
        Waits::new(self.lines, self.runner.pace.report)
    }

    /// Deletes the Job; the cluster collects pods, Secret and PVC with it.
    async fn delete_job(&self) -> Result<(), Fault> {
        let jobs: Api<KubeJob> = self.runner.own();
        let doing = format!("deleting the job {}", self.name);
        opt(ask!(&doing, jobs.delete(&self.name, &DeleteParams::foreground())))?;
        Ok(())
    }
}

fn exhausted(class: Class, message: String) -> Ended {
    Ended::Exhausted(verdict::outcome(class, message))
}

impl Runner for KubeRunner {
    fn build<'a>(
        &'a self,
        order: BuildOrder,
        lines: mpsc::Sender<Line>,
        stop: CancellationToken,
    ) -> BoxFuture<'a, Ended> {
        Box::pin(async move {
            tokio::select! {
                ended = self.carry_out(&order, &lines) => ended,
                () = stop.cancelled() => Ended::Stopped,
            }
        })
    }

    fn plan<'a>(
        &'a self,
        tenant: TenantName,
        ordered_by: OrderedBy,
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
                    tracing::warn!(%tenant, "a plan cannot be made: {fault}");
                    let message = "the cluster cannot be reached for now".to_owned();
                    return Err(verdict::outcome(Class::Transient, message).failures);
                }
            };
            self.planner.plan_with(job, unusable_secrets, found).await
        })
    }
}
