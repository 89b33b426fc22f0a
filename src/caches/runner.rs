//! Starts builders: as child processes on this host, or as pods of a cluster.

pub mod child;

use std::fmt;
use std::path::PathBuf;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::record::RequestOrigin;
use larder_model::event::{Failure, Line, Outcome};
use larder_model::image_cache::{CacheId, TenantName};
use larder_model::job::Job;
use larder_model::plan_report::PlanReport;

/// The order for one build.
#[derive(Clone, Debug)]
pub struct RunnerJob {
    /// The tenant that owns the cache.
    pub tenant: TenantName,
    /// The cache to build.
    pub id: CacheId,
    /// Generation number of the volume to fill.
    pub generation: u32,
    /// The interface through which the cache was ordered.
    pub ordered_by: RequestOrigin,
    /// The job. Its pull secrets are those that the tenant can use.
    pub job: Job,
    /// Pull secrets that were named and cannot be used (malformed or forbidden), as given. A failure for lack
    /// of a credential names them, together with unknown ones, in the same words.
    pub unusable_secrets: Vec<String>,
    /// Directory of the volume.
    pub volume: PathBuf,
    /// Directory that builders of the tenant share (`larder build --share`).
    pub share: PathBuf,
}

/// The end of a build.
#[derive(Debug)]
pub enum Ended {
    /// The builder returned a result: success or failure.
    Result(Outcome),
    /// The runner has retried as often as is useful. This is the result of the last try; another attempt is
    /// pointless.
    Exhausted(Outcome),
    /// The builder ended without a result: killed, crashed, out of memory. The text describes how, with the
    /// end of its output.
    Died(String),
    /// The builder stopped on request; the volume can be resumed.
    Stopped,
    /// The builder could not be started.
    NotStarted(String),
}

/// Starts builders and plans.
pub trait Runner: fmt::Debug + Send + Sync {
    /// Runs a build to its end and passes on its output in order. Cancelling `stop` makes the builder leave a
    /// volume that can be resumed. A builder that does not stop in time is killed.
    fn build<'a>(
        &'a self,
        order: RunnerJob,
        lines: mpsc::Sender<Line>,
        stop: CancellationToken,
    ) -> BoxFuture<'a, Ended>;

    /// Reports what a build would fetch, without downloading layers. `ordered_by` determines which pull
    /// secrets can be used.
    fn plan<'a>(
        &'a self,
        tenant: TenantName,
        ordered_by: RequestOrigin,
        job: Job,
        unusable_secrets: Vec<String>,
    ) -> BoxFuture<'a, Result<PlanReport, Vec<Failure>>>;
}
