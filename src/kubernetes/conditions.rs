//! Conditions of an image cache (Kubernetes API conventions, "Typical status properties"), and the progress
//! of its build.

use chrono::SecondsFormat;

use super::crd::{Condition, ImageCacheStatus, Progress};
use crate::caches::record::Record;
use larder_model::image_cache::Status;
use larder_model::size::ByteSize;

/// The current state of one condition.
struct Now {
    type_: &'static str,
    holds: bool,
    reason: String,
    message: String,
}

/// Returns the conditions of a record. A condition that has not changed keeps its transition time from
/// `before`.
pub(super) fn of(
    record: &Record,
    before: Option<&ImageCacheStatus>,
    generation: Option<i64>,
) -> Vec<Condition> {
    let before = before.map(|status| status.conditions.as_slice()).unwrap_or_default();
    // Every change of a condition is recorded as an event.
    let since = record.events.back().map_or(record.status_since, |event| event.time);
    let since = since.to_rfc3339_opts(SecondsFormat::AutoSi, true);
    let condition = |now: Now| {
        let status = if now.holds { "True" } else { "False" };
        let same = before.iter().find(|old| old.type_ == now.type_ && old.status == status);
        Condition {
            type_: now.type_.to_owned(),
            status: status.to_owned(),
            reason: now.reason,
            message: now.message,
            last_transition_time: same.map_or_else(|| since.clone(), |old| old.last_transition_time.clone()),
            observed_generation: generation,
        }
    };
    [ready(record), progressing(record), degraded(record)].map(condition).into()
}

fn ready(record: &Record) -> Now {
    Now {
        type_: "Ready",
        holds: record.status == Status::Available,
        reason: record.status.to_string(),
        message: record.reason().unwrap_or_default().to_owned(),
    }
}

fn progressing(record: &Record) -> Now {
    let (reason, message) = match &record.work {
        None => ("Idle", String::new()),
        Some(work) => match (&work.waiting, progress(record)) {
            (Some(waiting), _) => ("Waiting", waiting.clone()),
            (None, Some(now)) => ("Building", describe(&now)),
            (None, None) if work.attempts > 0 => ("Resolving", format!("attempt {}", work.attempts)),
            (None, None) => ("Queued", "waiting for a free builder".to_owned()),
        },
    };
    let deleting = record.status == Status::Deleting;
    Now {
        type_: "Progressing",
        holds: record.work.is_some() && !deleting,
        reason: reason.to_owned(),
        message,
    }
}

fn degraded(record: &Record) -> Now {
    let holds = match record.status {
        Status::Failed | Status::Unavailable => true,
        // The image cache is served, and its refresh has failed.
        Status::Available => record.message.is_some(),
        Status::Creating | Status::Deleting => false,
    };
    let class = record.class.map_or_else(|| record.status.to_string(), |class| format!("{class:?}"));
    Now {
        type_: "Degraded",
        holds,
        reason: if holds { class } else { "AsExpected".to_owned() },
        message: record.message.clone().filter(|_| holds).unwrap_or_default(),
    }
}

/// Returns the progress of the build. `None` without a build, or before its images are resolved.
pub(super) fn progress(record: &Record) -> Option<Progress> {
    if record.work.is_none() || record.progress.len() < record.spec.images.len() {
        return None;
    }
    let mut sum =
        Progress { percent: String::new(), layers: 0, layers_done: 0, compressed_size: 0, received: 0 };
    for image in &record.progress {
        sum.layers += image.layers as u64;
        sum.layers_done += image.layers_done as u64;
        sum.compressed_size += image.compressed_size;
        sum.received += image.received;
    }
    sum.percent = format!("{}%", sum.layers_done * 100 / sum.layers.max(1));
    Some(sum)
}

fn describe(now: &Progress) -> String {
    let (received, size) = (ByteSize(now.received), ByteSize(now.compressed_size));
    format!("{} of {} layers are on the volume; received {received} of {size}", now.layers_done, now.layers)
}

#[cfg(test)]
pub(super) mod tests {
    use chrono::{DateTime, TimeDelta};

    use super::*;
    use crate::caches::record::ImageDetails;
    use larder_model::class::Class;
    use larder_model::digest::Digest;
    use larder_model::image_cache::{CacheId, Spec};

    /// Returns a record that was just requested.
    pub(in super::super) fn record() -> Record {
        let spec = Spec {
            name: "web".parse().unwrap(),
            images: vec!["nginx".parse().unwrap()],
            size_gib: 20,
            retention_days: 0,
            cluster: "here".into(),
            pull_secrets: Vec::new(),
        };
        Record::new(CacheId::random(), "team-a".parse().unwrap(), spec, DateTime::UNIX_EPOCH)
    }

    /// Returns status and reason of each condition.
    fn summaries(conditions: &[Condition]) -> Vec<String> {
        conditions.iter().map(|one| format!("{}={} {}", one.type_, one.status, one.reason)).collect()
    }

    #[test]
    fn from_the_queue_to_a_failed_refresh() {
        let mut record = record();
        let now = |record: &Record| summaries(&of(record, None, Some(1)));
        assert_eq!(
            now(&record),
            ["Ready=False Creating", "Progressing=True Queued", "Degraded=False AsExpected"]
        );
        record.work.as_mut().unwrap().attempts = 1;
        assert_eq!(now(&record)[1], "Progressing=True Resolving");
        record.work.as_mut().unwrap().waiting = Some("no node".into());
        assert_eq!(now(&record)[1], "Progressing=True Waiting");
        assert_eq!(of(&record, None, None)[0].message, "no node");
        record.work.as_mut().unwrap().waiting = None;
        record.progress = vec![ImageDetails {
            reference: "nginx".into(),
            manifest: Digest::sha256(b"m"),
            layers: 4,
            layers_done: 1,
            compressed_size: 4 << 20,
            received: 1 << 20,
        }];
        let building = &of(&record, None, None)[1];
        assert_eq!(building.reason, "Building");
        assert_eq!(building.message, "1 of 4 layers are on the volume; received 1 MiB of 4 MiB");
        assert_eq!(progress(&record).unwrap().percent, "25%");
        record.work = None;
        record.set_status(Status::Available, DateTime::UNIX_EPOCH, "sealed");
        assert_eq!(
            now(&record),
            ["Ready=True Available", "Progressing=False Idle", "Degraded=False AsExpected"]
        );
        record.message = Some("the refresh failed".into());
        record.class = Some(Class::NotFound);
        assert_eq!(now(&record)[2], "Degraded=True NotFound");
    }

    #[test]
    fn the_time_of_a_condition_is_that_of_its_last_change() {
        let mut record = record();
        let before = ImageCacheStatus { conditions: of(&record, None, None), ..ImageCacheStatus::default() };
        record.set_status(Status::Available, DateTime::UNIX_EPOCH + TimeDelta::seconds(5), "sealed");
        let after = of(&record, Some(&before), None);
        let times: Vec<&str> = after.iter().map(|one| one.last_transition_time.as_str()).collect();
        // A build is still queued, and nothing is degraded.
        assert_eq!(times, ["1970-01-01T00:00:05Z", "1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"]);
    }
}
