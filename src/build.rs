//! Joins registry, layer and volume: plan, admission, pipeline.

pub mod cancel;
pub mod events;
pub mod order;
pub mod progress;

use crate::config::Config;
use crate::model::class::Class;
use crate::model::event::{Failure, Outcome, Status};
use crate::model::plan_report::PlanReport;
use cancel::Cancel;
use events::Events;
use order::Order;

/// Carries out an order. Whatever happens is in the outcome.
pub async fn run(_order: Order, _config: Config, _events: Events, _cancel: Cancel) -> Outcome {
    let failure = not_wired();
    Outcome {
        status: Status::Failed,
        exit_code: failure.class.exit_code(),
        message: failure.message.clone(),
        class: Some(failure.class),
        failures: vec![failure],
        images: Vec::new(),
        digest: None,
        totals: None,
        elapsed_ms: 0,
        truncated: false,
    }
}

/// Resolves the images of an order and applies the 3x rule; no layer byte moves.
pub async fn plan(_order: Order, _config: Config, _cancel: Cancel) -> Result<PlanReport, Vec<Failure>> {
    Err(vec![not_wired()])
}

fn not_wired() -> Failure {
    Failure { class: Class::Internal, images: Vec::new(), layer: None, message: "the pipeline is not wired".into() }
}
