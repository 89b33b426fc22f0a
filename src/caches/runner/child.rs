//! Builders as child processes of the daemon.
//!
//! ```text
//!             stdin: the job            ┌──────────────┐  stdout: events (NDJSON), at most 1 MiB a line
//! ChildRunner ────────────────────────► │ larder build │ ──────────────────────────────────────────► lines
//!             work/<id>: secrets,config └──────────────┘  stderr: logged at debug, the end is kept
//!                                         own control group, own process group, clean environment
//! ```
//!
//! A child waits for its job on standard input, so it is in its control group before it does any work.
//! SIGTERM requests a stop. It is killed with its whole process group if it does not stop, exceeds its
//! deadline, or writes invalid output.

mod command;
mod lines;
mod process;
mod stderr_tail;
mod talk;
mod verdict;
mod work;

use std::collections::HashMap;
use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use chrono::Utc;
use futures_util::future::BoxFuture;
use tokio::io::AsyncReadExt as _;
use tokio::process::ChildStdout;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

pub use lines::next_line;
pub use talk::event;
pub use work::clear_work;

use super::{Ended, Runner, RunnerJob};
use crate::caches::pull_secrets::{Content, HostSecrets, Unusable};
use crate::caches::record::RequestOrigin;
use crate::config::Config;
use crate::config::caches::{CacheVolumeKind, Caches};
use crate::config::log::Format;
use crate::keys;
use crate::volume::disk;
use larder_model::class::Class;
use larder_model::event::{Failure, Line};
use larder_model::image_cache::{CacheId, TenantName};
use larder_model::job::{Job, VolumeKind};
use larder_model::plan_report::{PlanFailed, PlanReport};
use larder_model::pull_secret::PullSecretName;
use larder_sys::cgroup::{Cgroup, Cgroups, Limits};
use process::{End, Kill, Process, Rules, Verdict};
use stderr_tail::StderrTail;
use work::Work;

/// Time that a builder has to stop.
pub const GRACE: Duration = Duration::from_secs(20);
/// Maximum duration of a plan, including the wait for its turn.
const PLAN_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum number of concurrent plans. A tenant can request many, and each is a process.
pub const PLANS: usize = 4;
/// Maximum size of a plan's output, bytes.
const MAX_PLAN: u64 = 16 << 20;
/// Maximum number of processes and threads of a builder. It has several per processor and per layer in
/// progress.
const MAX_PIDS: u32 = 2048;

/// Settings that do not come from the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The `larder` executable to start.
    pub program: PathBuf,
    /// Environment variables of the child.
    pub environment: Vec<(OsString, OsString)>,
    /// Directory of systemd's credentials, if there is one.
    pub credentials: Option<PathBuf>,
    /// Directory for temporary files of running builders ([`crate::caches::layout::Layout::work`]).
    pub work: PathBuf,
    /// Log filter of the child.
    pub log_level: String,
    /// Format of the log lines.
    pub log_format: Format,
    /// Time that a builder has to stop before it is killed.
    pub grace: Duration,
    /// Manager of the control groups for builders.
    pub cgroups: Arc<Cgroups>,
}

impl Settings {
    /// Settings to start the running executable with the environment of this process. `/proc/self/exe`
    /// remains correct when an update replaces the file.
    pub fn of_this_process(work: PathBuf, log_level: String, log_format: Format) -> Self {
        Settings {
            program: PathBuf::from("/proc/self/exe"),
            environment: command::environment(env::vars_os()),
            credentials: env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
            work,
            log_level,
            log_format,
            grace: GRACE,
            cgroups: Arc::new(Cgroups::of_this_process()),
        }
    }
}

/// The reason why the runner cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ChildRunnerError {
    /// The signing key is unusable, so builders could not sign.
    #[error("build.sign_key: {0}")]
    SigningKey(keys::Error),
    /// The configuration for builders cannot be written.
    #[error("writing the configuration for builders: {0}")]
    Config(toml::ser::Error),
    /// Disks are configured and cannot be created on this host.
    #[error("caches.volume_kind = \"disk\": {0}: fix that, or set \"auto\" or \"directory\"")]
    NoDisks(String),
}

impl ChildRunnerError {
    /// Returns the class, which determines the exit code and whether to retry.
    pub fn class(&self) -> Class {
        match self {
            ChildRunnerError::SigningKey(e) => e.class(),
            ChildRunnerError::Config(_) => Class::Internal,
            ChildRunnerError::NoDisks(_) => Class::Invalid,
        }
    }
}

/// Starts builders as child processes on this host.
#[derive(Debug)]
pub struct ChildRunner {
    settings: Settings,
    active: RwLock<Arc<ActiveConfig>>,
    plans: Semaphore,
}

/// Settings from the configuration, replaced on reload. A running builder keeps its own.
#[derive(Debug)]
struct ActiveConfig {
    caches: Caches,
    /// Kind of new volumes. A volume that was started keeps its kind.
    kind: VolumeKind,
    secrets: HostSecrets,
    /// The part of the configuration that builders read, without tenants. It is written from the active
    /// settings, because the file can be half edited.
    config: String,
}

impl ActiveConfig {
    fn of(settings: &Settings, config: &Config) -> Result<Self, ChildRunnerError> {
        // Each builder reads the key itself. A daemon must not start if that would fail.
        config.build.sign_key().map(keys::signing).transpose().map_err(ChildRunnerError::SigningKey)?;
        Ok(ActiveConfig {
            secrets: HostSecrets::new(settings.credentials.clone(), &config.secrets),
            kind: kind(config.caches.volume_kind)?,
            caches: config.caches.clone(),
            config: toml::to_string(&config.of_builders()).map_err(ChildRunnerError::Config)?,
        })
    }
}

fn kind(holder: CacheVolumeKind) -> Result<VolumeKind, ChildRunnerError> {
    match (holder, disk::obstacle()) {
        (CacheVolumeKind::Directory, _) => Ok(VolumeKind::Directory),
        (_, None) => Ok(VolumeKind::Disk),
        (CacheVolumeKind::Disk, Some(why)) => Err(ChildRunnerError::NoDisks(why)),
        (CacheVolumeKind::Auto, Some(why)) => {
            tracing::info!("caches are stored as directories, because disks cannot be created here: {why}");
            Ok(VolumeKind::Directory)
        }
    }
}

/// The prepared environment of a child.
struct PreparedChild {
    work: Work,
    cgroup: Option<Cgroup>,
    job: Vec<u8>,
    unusable: Unusable,
}

impl ChildRunner {
    /// Creates a runner with the active configuration.
    ///
    /// # Errors
    /// Fails if the signing key is unusable or the configured volume kind is unavailable.
    pub fn new(settings: Settings, config: &Config) -> Result<Self, ChildRunnerError> {
        let found = &settings.cgroups;
        if found.limits() {
            tracing::info!(cgroups = %found, "builders run in control groups");
        } else {
            tracing::warn!(cgroups = %found, "builders run without limits on memory and CPU");
        }
        Ok(ChildRunner {
            active: RwLock::new(Arc::new(ActiveConfig::of(&settings, config)?)),
            plans: Semaphore::new(PLANS),
            settings,
        })
    }

    /// Applies a reloaded configuration to builders that are started from now on.
    ///
    /// # Errors
    /// Fails like [`new`](ChildRunner::new), and keeps the previous settings.
    pub fn reload(&self, config: &Config) -> Result<(), ChildRunnerError> {
        let new = Arc::new(ActiveConfig::of(&self.settings, config)?);
        *self.active.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    fn active(&self) -> Arc<ActiveConfig> {
        Arc::clone(&self.active.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Creates the work directory, the secrets and the control group, outside the runtime's threads. The
    /// secrets come from `found` if it is given, otherwise from this host.
    async fn prepare(
        &self,
        name: String,
        mut job: Job,
        unusable: &[String],
        with: Arc<ActiveConfig>,
        found: Option<HashMap<PullSecretName, Content>>,
    ) -> Result<PreparedChild, String> {
        let mut unusable: Unusable = unusable.iter().collect();
        let (parent, cgroups) = (self.settings.work.clone(), Arc::clone(&self.settings.cgroups));
        let limits = Limits {
            memory: with.caches.build_memory.0,
            cpu_weight: with.caches.build_cpu_weight,
            pids: MAX_PIDS,
        };
        let prepare = move || {
            let context = |what: &'static str| move |e: std::io::Error| format!("{what}: {e}");
            let work =
                Work::new(&parent, &name, &with.config).map_err(context("creating its work directory"))?;
            let find = |name: &PullSecretName| match &found {
                Some(found) => found.get(name).cloned(),
                None => with.secrets.find(name),
            };
            let usable = work.lay_secrets(&job.pull_secrets, find, &mut unusable);
            job.pull_secrets = usable.map_err(context("writing its pull secrets"))?;
            let job = serde_json::to_vec(&job).map_err(|e| format!("writing its job: {e}"))?;
            let cgroup = cgroups.create(&name, &limits).map_err(context("creating its control group"))?;
            Ok(PreparedChild { work, cgroup, job, unusable })
        };
        crate::blocking::spawn(prepare).await.map_err(|e| e.to_string())?
    }

    async fn run_build(&self, order: RunnerJob, lines: mpsc::Sender<Line>, stop: CancellationToken) -> Ended {
        if stop.is_cancelled() {
            return Ended::Stopped;
        }
        let of = order.id.to_string();
        let with = self.active();
        let (memory, caches) = (with.caches.build_memory.0, with.caches.clone());
        let kind = disk::begun(&order.volume).unwrap_or(with.kind);
        let overdue = self.overdue(&order.job, &with.caches);
        let prepared =
            match self.prepare(of.clone(), order.job.clone(), &order.unusable_secrets, with, None).await {
                Ok(prepared) => prepared,
                Err(why) => return Ended::NotStarted(why),
            };
        let command = command::build(&self.settings, &prepared.work, &caches, kind, &order);
        let (process, stdout) = match Process::start(command, prepared.cgroup).await {
            Ok(started) => started,
            Err(why) => return Ended::NotStarted(why),
        };
        let (verdict, stderr) = (Verdict::default(), StderrTail::default());
        let rules = Rules { stop: &stop, grace: self.settings.grace, overdue };
        let reading = talk::listen(stdout, &prepared.unusable, &lines, &verdict);
        let (end, output) = process.supervise(&prepared.job, rules, &verdict, &stderr, &of, reading).await;
        let ended = match end {
            Ok(end) => verdict::of(&end, output, memory, &stderr.last()),
            Err(e) => Ended::Died(format!("waiting for the builder: {e}")),
        };
        if let Ended::Died(how) = &ended {
            tracing::warn!("builder died: {how}");
        }
        ended
    }

    /// Returns the time at which a builder is killed. It is later than the deadline of its job, which the
    /// builder enforces itself.
    fn overdue(&self, job: &Job, caches: &Caches) -> Instant {
        let longest = Duration::from_secs(u64::from(caches.build_timeout_minutes) * 60);
        let left =
            job.deadline.map_or(longest, |deadline| (deadline - Utc::now()).to_std().unwrap_or_default());
        Instant::now() + left.min(longest) + self.settings.grace
    }

    /// Plans with secrets that were found elsewhere. Other secrets that the job names give no credential.
    ///
    /// # Errors
    /// Returns the failures if the images cannot be resolved or the plan process fails.
    pub async fn plan_with(
        &self,
        job: Job,
        unusable_secrets: Vec<String>,
        found: HashMap<PullSecretName, Content>,
    ) -> Result<PlanReport, Vec<Failure>> {
        self.run_plan(job, unusable_secrets, Some(found)).await
    }

    async fn run_plan(
        &self,
        job: Job,
        unusable_secrets: Vec<String>,
        found: Option<HashMap<PullSecretName, Content>>,
    ) -> Result<PlanReport, Vec<Failure>> {
        let overdue = Instant::now() + PLAN_TIMEOUT;
        let late = || failed(Class::Busy, "planning took more than a minute: try again later");
        let Ok(Ok(_turn)) = timeout(PLAN_TIMEOUT, self.plans.acquire()).await else {
            return Err(late());
        };
        let not_started = |why: String| failed(Class::Internal, &format!("cannot start the plan: {why}"));
        let of = format!("plan-{}", CacheId::random());
        let with = self.active();
        let (memory, nice) = (with.caches.build_memory.0, with.caches.build_nice);
        let prepared =
            self.prepare(of.clone(), job, &unusable_secrets, with, found).await.map_err(not_started)?;
        let command = command::plan(&self.settings, &prepared.work, nice);
        let (process, stdout) = Process::start(command, prepared.cgroup).await.map_err(not_started)?;
        let (verdict, stderr, stop) = (Verdict::default(), StderrTail::default(), CancellationToken::new());
        let rules = Rules { stop: &stop, grace: self.settings.grace, overdue };
        let reading = document(stdout, &verdict);
        let (end, output) = process.supervise(&prepared.job, rules, &verdict, &stderr, &of, reading).await;
        let end = end.map_err(|e| failed(Class::Internal, &format!("waiting for the plan: {e}")))?;
        if end.killed == Some(Kill::Overdue) {
            return Err(late());
        }
        match answer(&end, &output.unwrap_or_default()) {
            Some(Ok(report)) => Ok(report),
            Some(Err(mut failures)) => {
                prepared.unusable.name_in(&mut failures);
                Err(failures)
            }
            None => {
                let how = end.describe(memory, &stderr.last());
                tracing::warn!("plan died: {how}");
                Err(failed(Class::Internal, &format!("the plan returned no result: {how}")))
            }
        }
    }
}

/// Reads the complete output of a plan.
async fn document(stdout: ChildStdout, verdict: &Verdict) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = stdout.take(MAX_PLAN + 1).read_to_end(&mut bytes).await;
    if read.is_err() || bytes.len() as u64 > MAX_PLAN {
        verdict.distrusted.cancel();
    }
    bytes
}

/// Parses the output of a plan. `None` if the plan was killed or the output is not valid.
fn answer(end: &End, bytes: &[u8]) -> Option<Result<PlanReport, Vec<Failure>>> {
    if end.killed.is_some() || end.status.code().is_none() {
        return None;
    }
    if let Ok(report) = serde_json::from_slice(bytes) {
        return Some(Ok(report));
    }
    let failed: PlanFailed = serde_json::from_slice(bytes).ok()?;
    (!failed.failures.is_empty()).then_some(Err(failed.failures))
}

fn failed(class: Class, message: &str) -> Vec<Failure> {
    vec![Failure::job(class, message)]
}

impl Runner for ChildRunner {
    fn build<'a>(
        &'a self,
        order: RunnerJob,
        lines: mpsc::Sender<Line>,
        stop: CancellationToken,
    ) -> BoxFuture<'a, Ended> {
        Box::pin(self.run_build(order, lines, stop))
    }

    fn plan<'a>(
        &'a self,
        _: TenantName,
        _: RequestOrigin,
        job: Job,
        unusable_secrets: Vec<String>,
    ) -> BoxFuture<'a, Result<PlanReport, Vec<Failure>>> {
        Box::pin(self.run_plan(job, unusable_secrets, None))
    }
}
