//! The history of an image cache as Kubernetes events: the events of its record, the progress of its build,
//! and its copies.
//!
//! The name of each event is derived from its subject, so a new leader does not repeat the events of its
//! predecessor.

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::ResourceExt as _;

use super::conditions;
use super::crd::{CopyState, ImageCache};
use super::events::Report;
use crate::caches::record::{CacheEvent, Record};
use larder_model::digest::Digest;
use larder_model::image_cache::Status;

/// Maximum age of an event that is still reported when a daemon first sees a record.
const MAX_AGE: TimeDelta = TimeDelta::minutes(5);
/// Step in which progress is reported, percent.
const PROGRESS_STEP: u64 = 25;

/// The events of a record that were already reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reported {
    sequence: u64,
    /// Number of the volume and its reported progress, percent.
    progress: (u32, u64),
}

/// Returns the object reference of an image cache for its events.
pub(super) fn reference(object: &ImageCache) -> ObjectReference {
    ObjectReference {
        api_version: Some("larder.dev/v1".to_owned()),
        kind: Some("ImageCache".to_owned()),
        name: Some(object.name_any()),
        namespace: object.namespace(),
        uid: object.uid(),
        ..ObjectReference::default()
    }
}

/// Returns the reports that are new in a record since `before`. For a record that was not seen before, these
/// are the recent ones at `now`.
pub(super) fn news(record: &Record, before: Option<Reported>, now: DateTime<Utc>) -> (Vec<Report>, Reported) {
    let is_new = |event: &&CacheEvent| match before {
        Some(before) => event.sequence > before.sequence,
        None => now - event.time < MAX_AGE,
    };
    let mut reports: Vec<Report> =
        record.events.iter().filter(is_new).map(|event| event_report(record, event)).collect();
    let mut reported = Reported { sequence: record.sequence, ..before.unwrap_or_default() };
    if let (Some(work), Some(now)) = (&record.work, conditions::progress(record)) {
        let generation = work.generation;
        let percent = now.layers_done * 100 / now.layers.max(1) / PROGRESS_STEP * PROGRESS_STEP;
        let seen = if reported.progress.0 == generation { reported.progress.1 } else { 0 };
        if percent > seen {
            reported.progress = (generation, percent);
            reports.push(Report {
                suffix: Some(format!("{}-{generation}-{percent}", short(record))),
                warning: false,
                action: "Build",
                reason: "Progress".to_owned(),
                note: format!("{} of {} layers are on the volume", now.layers_done, now.layers),
            });
        }
    }
    (reports, reported)
}

fn event_report(record: &Record, event: &CacheEvent) -> Report {
    Report {
        suffix: Some(format!("{}-{}", short(record), event.sequence)),
        warning: matches!(event.status, Status::Failed | Status::Unavailable),
        action: "Cache",
        reason: event.status.to_string(),
        note: event.message.clone(),
    }
}

/// Returns reports about copies whose state differs from `before`.
pub(super) fn copies(record: &Record, before: &[CopyState], now: &[CopyState]) -> Vec<Report> {
    let changed =
        now.iter().filter(|state| !before.contains(state) && (state.ready || state.message.is_some()));
    let reports = changed.map(|copy| {
        let note = match &copy.message {
            None => format!("the snapshot can be used in namespace {}", copy.namespace),
            Some(message) => format!("namespace {}: {message}", copy.namespace),
        };
        let hash = Digest::sha256(note.as_bytes()).hex()[..8].to_owned();
        Report {
            suffix: Some(format!("{}-{}-{hash}", short(record), record.generation)),
            warning: copy.message.is_some(),
            action: "Share",
            reason: if copy.message.is_some() { "NotShared" } else { "Shared" }.to_owned(),
            note,
        }
    });
    reports.collect()
}

/// Returns the first characters of the UID. They distinguish the events of a deleted image cache from those
/// of a new one with the same name.
fn short(record: &Record) -> String {
    record.id.to_string().chars().take(8).collect()
}

#[cfg(test)]
mod tests {
    use super::super::conditions::tests::record;
    use super::*;
    use crate::caches::record::ImageDetails;

    fn notes(reports: &[Report]) -> Vec<&str> {
        reports.iter().map(|report| report.note.as_str()).collect()
    }

    #[test]
    fn each_event_is_reported_once_and_old_ones_are_not() {
        let mut record = record();
        let start = DateTime::UNIX_EPOCH;
        let (first, reported) = news(&record, None, start + TimeDelta::seconds(1));
        assert_eq!(notes(&first), ["ordered"]);
        assert_eq!(news(&record, Some(reported), start), (Vec::new(), reported));
        assert_eq!(notes(&news(&record, None, start + MAX_AGE).0), Vec::<&str>::new());
        record.set_status(Status::Failed, start, "no such tag");
        let (second, _) = news(&record, Some(reported), start);
        assert_eq!(notes(&second), ["no such tag"]);
        assert!(second[0].warning && second[0].reason == "Failed");
        assert_ne!(first[0].suffix, second[0].suffix);
    }

    #[test]
    fn progress_goes_by_quarters() {
        let mut record = record();
        let mut reported = news(&record, None, record.created_at).1;
        let mut seen = Vec::new();
        for done in 0..=10 {
            record.progress = vec![ImageDetails {
                reference: "nginx".into(),
                manifest: Digest::sha256(b"m"),
                layers: 10,
                layers_done: done,
                compressed_size: 10,
                received: 0,
            }];
            let (reports, next) = news(&record, Some(reported), record.created_at);
            seen.extend(reports.into_iter().map(|report| report.note));
            reported = next;
        }
        let at = |done: u32| format!("{done} of 10 layers are on the volume");
        assert_eq!(seen, [at(3), at(5), at(8), at(10)]);
    }

    #[test]
    fn copies_are_reported_when_they_change() {
        let record = record();
        let copy = |ready, message: Option<&str>| CopyState {
            namespace: "team-b".into(),
            ready,
            message: message.map(str::to_owned),
        };
        let pending = [copy(false, None)];
        assert!(copies(&record, &[], &pending).is_empty());
        let refused = copies(&record, &pending, &[copy(false, Some("no right"))]);
        assert!(refused[0].warning && refused[0].note == "namespace team-b: no right");
        let ready = [copy(true, None)];
        assert_eq!(copies(&record, &pending, &ready)[0].reason, "Shared");
        assert!(copies(&record, &ready, &ready).is_empty());
    }
}
