//! How a builder is started: as a child process of this host, or as a pod of a cluster.

pub mod child;

use std::fmt;
use std::path::PathBuf;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::record::OrderedBy;
use larder_model::event::{Failure, Line, Outcome};
use larder_model::image_cache::{CacheId, TenantName};
use larder_model::job::Job;
use larder_model::plan_report::PlanReport;

/// One build to run.
#[derive(Clone, Debug)]
pub struct BuildOrder {
    /// Whose it is.
    pub tenant: TenantName,
    /// For which cache.
    pub id: CacheId,
    /// Number of the volume that is filled.
    pub generation: u32,
    /// Who ordered it.
    pub ordered_by: OrderedBy,
    /// The job; its pull secrets are those that the tenant may use.
    pub job: Job,
    /// Pull secrets that were named and cannot be used (malformed, or not the tenant's), as given. A failure for want of a
    /// credential names them together with those that turn out to be unknown, in the same words.
    pub unusable_secrets: Vec<String>,
    /// Directory of the volume.
    pub volume: PathBuf,
    /// What builders of the tenant share (`larder build --share`).
    pub share: PathBuf,
}

/// How a build ended.
#[derive(Debug)]
pub enum Ended {
    /// The builder gave a result, good or bad.
    Result(Outcome),
    /// The runner tried as often as was of use, and this is how the last try went: there is no point in another.
    Exhausted(Outcome),
    /// The builder ended without a result: killed, crashed, out of memory. Says how, with its last words.
    Died(String),
    /// It was asked to stop and did; the volume can be resumed.
    Stopped,
    /// It could not be started.
    NotStarted(String),
}

/// Starts builders.
pub trait Runner: fmt::Debug + Send + Sync {
    /// Runs a build to its end and passes on what it says, in order. When `stop` is cancelled the builder is asked to
    /// leave a volume that can be resumed, and killed if it does not in time.
    fn build<'a>(
        &'a self,
        order: BuildOrder,
        lines: mpsc::Sender<Line>,
        stop: CancellationToken,
    ) -> BoxFuture<'a, Ended>;

    /// Says what a build would fetch; moves no layer byte. `ordered_by` decides which pull secrets may be used.
    fn plan<'a>(
        &'a self,
        tenant: TenantName,
        ordered_by: OrderedBy,
        job: Job,
        unusable_secrets: Vec<String>,
    ) -> BoxFuture<'a, Result<PlanReport, Vec<Failure>>>;
}
