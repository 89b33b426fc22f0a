//! Refreshes image caches by their schedule.
//!
//! `status.refresh.nextTime` is written before that time comes. So a new leader finds the due refreshes, and
//! an image cache is refreshed only once, however many times passed while no daemon led.

use chrono::{DateTime, SecondsFormat, Utc};
use futures_util::future::join_all;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::evict::Room;
use super::schedule::{self, Schedule};
use super::{CacheState, Upkeep};
use crate::caches::error::Error;
use crate::caches::record::{Content, Record};
use crate::caches::service::MAX_PREVIOUS;
use crate::kubernetes::crd::{Refresh, RefreshState, When};
use larder_model::class::Class;
use larder_model::image_cache::{CacheId, Status};
use larder_model::plan_report::PlanReport;

/// Maximum length of a message in `status.refresh`, characters.
const MAX_MESSAGE: usize = 500;

/// The next step for the schedule of one image cache.
#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    /// The schedule was removed.
    Clear,
    /// The schedule is new or has changed since the next time was computed.
    Begin,
    /// The refresh that was started has ended.
    End,
    /// The next refresh is due at this time.
    At(DateTime<Utc>),
}

/// The result of one scheduled time.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// A refresh was started or was already in progress. Contains the number of its volume.
    Started(u32),
    Unchanged,
    Skipped(String),
    Failed(String),
    /// The refresh cannot start now. The time stays due.
    Later(String),
}

impl CacheState {
    fn step(&self) -> Step {
        let state = self.object.status.as_ref().and_then(|status| status.refresh.as_ref());
        let Some(wanted) = &self.object.spec.refresh else {
            return if state.is_some() { Step::Clear } else { Step::Nothing };
        };
        if matches!(self.record.status, Status::Failed | Status::Deleting) {
            return Step::Nothing;
        }
        let Some(state) = state.filter(|state| state.schedule == schedule::text(wanted)) else {
            return Step::Begin;
        };
        let is_in_progress =
            self.record.work.as_ref().is_some_and(|work| Some(work.generation) == state.generation);
        if state.last_result.as_deref() == Some("Started") && !is_in_progress {
            return Step::End;
        }
        let next = state.next_time.as_deref().and_then(|time| DateTime::parse_from_rfc3339(time).ok());
        next.map_or(Step::Nothing, |next| Step::At(next.to_utc()))
    }

    fn state(&self) -> RefreshState {
        self.object.status.as_ref().and_then(|status| status.refresh.clone()).unwrap_or_default()
    }
}

impl Upkeep {
    /// Refreshes image caches when they are due. Does not return.
    pub(super) async fn run_refreshes(&self) {
        loop {
            if !self.service.leads() || !self.refresh_due().await {
                tokio::time::sleep(self.every).await;
            }
        }
    }

    /// Takes the due steps. Returns whether more refreshes can start at once.
    async fn refresh_due(&self) -> bool {
        let now = self.clock.now();
        let mut due: Vec<(DateTime<Utc>, CacheId, CacheState)> = Vec::new();
        let mut other: Vec<(CacheId, CacheState, Step)> = Vec::new();
        let mut running = 0;
        for (id, seen) in self.seen().iter() {
            running += usize::from(seen.record.is_refreshing());
            if seen.not_before.is_some_and(|time| time > std::time::Instant::now()) {
                continue;
            }
            match seen.step() {
                Step::Nothing => {}
                Step::At(time) if time <= now => due.push((time, *id, seen.clone())),
                Step::At(_) => {}
                step => other.push((*id, seen.clone(), step)),
            }
        }
        for (id, seen, step) in other {
            self.write_step(id, &seen, &step).await;
        }
        due.sort_by_key(|(time, id, _)| (*time, *id));
        let free = self.settings().max_refreshes.saturating_sub(running);
        let more = due.len() > free && free > 0;
        join_all(due.iter().take(free).map(|(_, id, seen)| self.refresh(*id, seen))).await;
        more
    }

    /// Writes the status change of a step that is not a refresh.
    async fn write_step(&self, id: CacheId, seen: &CacheState, step: &Step) {
        let written = match (step, &seen.object.spec.refresh) {
            (Step::Begin, Some(wanted)) => {
                let now = self.clock.now();
                let state = begin(seen.state(), wanted, now, &seen.object.uid().unwrap_or_default());
                if let (Some("Invalid"), Some(why)) = (state.last_result.as_deref(), &state.message) {
                    self.report(&seen.object, true, "InvalidSchedule", why.clone());
                }
                self.write(id, &seen.object, json!({"refresh": merge(&state)})).await
            }
            (Step::End, _) => {
                let state = end(seen.state(), &seen.record);
                self.write(id, &seen.object, json!({"refresh": merge(&state)})).await
            }
            _ => self.write(id, &seen.object, json!({"refresh": null})).await,
        };
        if let Err(fault) = written {
            tracing::warn!("{fault}");
            self.postpone(id);
        }
    }

    /// Refreshes one image cache that is due.
    async fn refresh(&self, id: CacheId, seen: &CacheState) {
        let Some(wanted) = &seen.object.spec.refresh else { return };
        let began = self.clock.now();
        let outcome = self.try_refresh(id, &seen.record, wanted.when).await;
        let (tenant, name) = (&seen.record.tenant, &seen.record.spec.name);
        match &outcome {
            Outcome::Later(why) => {
                tracing::info!(%tenant, %name, "a scheduled refresh is delayed: {why}");
                return self.postpone(id);
            }
            Outcome::Failed(why) => {
                self.report(
                    &seen.object,
                    true,
                    "RefreshFailed",
                    format!("the scheduled refresh failed: {why}"),
                );
            }
            Outcome::Skipped(why) => {
                let note = format!("the scheduled refresh was skipped: {why}");
                self.report(&seen.object, false, "RefreshSkipped", note);
            }
            Outcome::Unchanged | Outcome::Started(_) => {}
        }
        let uid = seen.object.uid().unwrap_or_default();
        let state = done(seen.state(), outcome, wanted, (began, self.clock.now()), &uid);
        if let Err(fault) = self.write(id, &seen.object, json!({"refresh": merge(&state)})).await {
            tracing::warn!(%tenant, %name, "{fault}");
            self.postpone(id);
        }
    }

    async fn try_refresh(&self, id: CacheId, record: &Record, when: When) -> Outcome {
        let tenant = &record.tenant;
        let record = match self.service.get(tenant, id).await {
            Ok(record) => record,
            Err(error) => return failed(&error),
        };
        match (&record.work, record.status) {
            (Some(work), Status::Available) => return Outcome::Started(work.generation),
            (None, Status::Available) => {}
            (_, status) => return Outcome::Skipped(format!("the image cache is {status}")),
        }
        if self.uses.previous(id) >= MAX_PREVIOUS {
            return Outcome::Skipped(format!("{MAX_PREVIOUS} replaced volumes are still in use"));
        }
        if when == When::DigestChanged
            && let Some(content) = &record.content
        {
            match self.service.resolve(tenant, id).await {
                Ok(report) if !has_moved(content, &report) => return Outcome::Unchanged,
                Ok(_) => {}
                Err(error) => return failed(&error),
            }
        }
        match self.service.refresh(tenant, id).await {
            Ok(record) => Outcome::Started(record.generation),
            Err(error) if error.class() == Class::NoSpace => match self.make_room(tenant, Some(id)).await {
                Room::Coming => Outcome::Later(format!("making room: {error}")),
                Room::None => failed(&error),
            },
            Err(error) => failed(&error),
        }
    }
}

fn failed(error: &Error) -> Outcome {
    let text: String = match error {
        Error::Plan(failures) => {
            let texts: Vec<&str> = failures.iter().map(|failure| failure.message.as_str()).collect();
            texts.join("; ")
        }
        error => error.to_string(),
    };
    let later = matches!(error, Error::QueueFull { .. } | Error::Stopping)
        || (!matches!(error, Error::Plan(_)) && matches!(error.class(), Class::Transient | Class::Busy));
    if later { Outcome::Later(text) } else { Outcome::Failed(text) }
}

/// Reports whether a tag points to another image than the one on the snapshot. If both have an index, the
/// indexes are compared, because the manifest selected from an index depends on the platform of the client.
fn has_moved(content: &Content, report: &PlanReport) -> bool {
    !report.images.iter().all(|now| {
        let before = content.images.iter().find(|image| image.reference == now.reference);
        before.is_some_and(|before| match (&before.index, &now.index) {
            (Some(before), Some(now)) => before == now,
            _ => before.manifest == now.manifest,
        })
    })
}

/// Returns the state of a schedule that was not seen before. Earlier scheduled times do not count.
fn begin(before: RefreshState, wanted: &Refresh, now: DateTime<Utc>, uid: &str) -> RefreshState {
    let state = RefreshState { schedule: schedule::text(wanted), message: None, ..before };
    match Schedule::parse(wanted).and_then(|schedule| schedule.next(now, uid)) {
        Ok(next) => {
            let last_result = state.last_result.filter(|result| result != "Invalid");
            RefreshState { next_time: Some(text(next)), last_result, ..state }
        }
        Err(why) => RefreshState {
            next_time: None,
            last_result: Some("Invalid".to_owned()),
            message: Some(truncate(&format!("spec.refresh.{why}"))),
            ..state
        },
    }
}

/// Returns the state after a scheduled time whose processing began and ended at the times in `took`.
fn done(
    before: RefreshState,
    outcome: Outcome,
    wanted: &Refresh,
    took: (DateTime<Utc>, DateTime<Utc>),
    uid: &str,
) -> RefreshState {
    let generation = before.generation;
    let (result, message, generation) = match outcome {
        Outcome::Started(generation) => ("Started", None, Some(generation)),
        Outcome::Unchanged => ("Unchanged", None, generation),
        Outcome::Skipped(why) | Outcome::Later(why) => ("Skipped", Some(truncate(&why)), generation),
        Outcome::Failed(why) => ("Failed", Some(truncate(&why)), generation),
    };
    let next = Schedule::parse(wanted).and_then(|schedule| schedule.next(took.1, uid)).ok();
    RefreshState {
        schedule: before.schedule,
        next_time: next.map(text),
        last_time: Some(text(took.0)),
        last_result: Some(result.to_owned()),
        message,
        generation,
    }
}

/// Returns the state after a refresh has ended.
fn end(before: RefreshState, record: &Record) -> RefreshState {
    let served = record.content.as_ref().map(|content| content.generation);
    let (result, message) = match served >= before.generation {
        true => ("Refreshed", None),
        false => ("Failed", record.message.as_deref().map(truncate)),
    };
    RefreshState { last_result: Some(result.to_owned()), message, ..before }
}

/// Returns a merge patch that replaces the whole state (RFC 7396: null removes).
fn merge(state: &RefreshState) -> Value {
    json!({
        "schedule": state.schedule,
        "nextTime": state.next_time,
        "lastTime": state.last_time,
        "lastResult": state.last_result,
        "message": state.message,
        "generation": state.generation,
    })
}

fn text(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn truncate(text: &str) -> String {
    text.chars().take(MAX_MESSAGE).collect()
}

#[cfg(test)]
mod tests;
