//! The result of an attempt: a sealed volume, another attempt, or a failure.

use std::time::Duration;

use super::super::volumes_failed;
use super::{Builds, Uses};
use crate::caches::record::{Content, Record, cut};
use crate::caches::runner::Ended;
use crate::caches::store::StoreError;
use crate::caches::volumes::{Sealed, VolumeId};
use crate::telemetry::List;
use crate::telemetry::metrics::BuildResult;
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::escape::escape_to;
use larder_model::event::{Outcome, Status as BuildStatus};

/// Maximum pause between two attempts.
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(300);
/// Maximum length of a failure message in the log, characters.
const MAX_LOGGED: usize = 4096;

/// The consequence of a builder's end for its record.
#[derive(Debug)]
enum Verdict {
    /// The volume is sealed.
    Sealed(Digest, Outcome),
    /// The builder stopped on request.
    Stopped,
    /// The attempt failed.
    Failed(Failed),
}

/// A failed attempt.
#[derive(Debug)]
struct Failed {
    class: Class,
    message: String,
    images: Vec<String>,
    /// `true` if another attempt can succeed.
    heals: bool,
}

impl Verdict {
    fn of(ended: Ended) -> Self {
        let exhausted = matches!(ended, Ended::Exhausted(_));
        let failed = |class: Class, message: String, images: Vec<String>| {
            let heals = !exhausted && matches!(class, Class::Transient | Class::Internal | Class::Busy);
            Verdict::Failed(Failed { class, message, images, heals })
        };
        match ended {
            Ended::Result(outcome) if outcome.status == BuildStatus::Ok => match outcome.digest.clone() {
                Some(digest) => Verdict::Sealed(digest, outcome),
                None => {
                    let message = "the builder reported no digest of the sealed volume".to_owned();
                    failed(Class::Internal, message, Vec::new())
                }
            },
            Ended::Result(outcome) | Ended::Exhausted(outcome) => {
                let images = outcome.failures.iter().flat_map(|failure| failure.images.clone()).collect();
                failed(outcome.class.unwrap_or(Class::Internal), explain(&outcome), images)
            }
            Ended::Stopped => Verdict::Stopped,
            Ended::Died(how) => failed(Class::Internal, how, Vec::new()),
            Ended::NotStarted(why) => {
                failed(Class::Internal, format!("cannot start the builder: {why}"), Vec::new())
            }
        }
    }
}

impl Builds {
    /// Records how an attempt ended. Returns the pause before the next one, if there is one.
    pub(super) async fn record_result(
        &self,
        record: &Record,
        volume: VolumeId,
        attempts: u32,
        ended: Ended,
    ) -> Result<(Option<Duration>, BuildResult), StoreError> {
        match Verdict::of(ended) {
            Verdict::Sealed(digest, outcome) => {
                self.record_seal(volume, digest, outcome).await?;
                Ok((None, BuildResult::Sealed))
            }
            // The initiator of the stop has recorded the reason. The stop request can be spurious: the record
            // might still want a build.
            Verdict::Stopped => {
                let again = !self.0.uses.tasks.is_stopping() && self.is_wanted(record.id).await?;
                Ok((again.then_some(Duration::ZERO), BuildResult::Stopped))
            }
            Verdict::Failed(failed) => {
                let class = failed.class;
                let (pause, result) = self.record_failure(record, &volume, attempts, failed).await?;
                self.0.uses.metrics.build_failure(class, result);
                Ok((pause, result))
            }
        }
    }

    async fn record_failure(
        &self,
        record: &Record,
        volume: &VolumeId,
        attempts: u32,
        failed: Failed,
    ) -> Result<(Option<Duration>, BuildResult), StoreError> {
        let Failed { class, message, images, heals } = failed;
        let (id, now) = (record.id, self.now());
        let timeline = self.keep_timeline(id);
        let logged = escape_to(&message, MAX_LOGGED);
        tracing::warn!(images = %List(&images), class = class.word(), attempts, "attempt failed: {logged}");
        let (retries, seconds) = self
            .0
            .uses
            .settings
            .read(|values| (values.caches.build_retries, values.caches.build_retry_pause_seconds));
        if !heals || attempts > retries {
            let fail = |record: &mut Record| {
                record.fail_build(now, class, &message);
                record.timeline.clone_from(&timeline);
            };
            self.change(id, volume.generation, fail).await?;
            return Ok((None, BuildResult::Failed));
        }
        let pause = pause(Duration::from_secs(seconds), attempts);
        let seconds = pause.as_secs();
        let event = format!("attempt {attempts} failed, the next is in {seconds} s: {}", cut(&message, 512));
        // If it was cancelled or deleted while it failed, that is reported instead, and there is no retry.
        match self.change(id, volume.generation, |record| record.retry_build(now, &event, &message)).await? {
            true => Ok((Some(pause), BuildResult::Retried)),
            false => Ok((None, BuildResult::Stopped)),
        }
    }

    async fn record_seal(
        &self,
        volume: VolumeId,
        digest: Digest,
        outcome: Outcome,
    ) -> Result<(), StoreError> {
        let Uses { volumes, .. } = &self.0.uses;
        let (id, generation) = (volume.id, volume.generation);
        let timeline = self.keep_timeline(id);
        let progress = self.live().get(&id).map(|live| live.progress.clone()).unwrap_or_default();
        let (layers, snapshot) = match volumes.sealed(volume).await {
            Ok(Sealed { content, snapshot }) => {
                let layers =
                    content.map_or_else(|| progress.committed_layers(), |sealed| progress.history(&sealed));
                (layers, snapshot)
            }
            Err(error) if error.class() == Class::Transient => return Err(volumes_failed(&error)),
            Err(error) => {
                tracing::warn!(%error, "cannot read the layers of a sealed volume");
                (Vec::new(), None)
            }
        };
        let now = self.now();
        let content = Content {
            generation,
            sealed_at: now,
            digest,
            images: outcome.images,
            totals: outcome.totals.unwrap_or_default(),
            layers,
            snapshot,
        };
        let mut refreshed = false;
        let edit = |record: &mut Record| {
            refreshed = record.finish_build(now, content.clone());
            record.timeline.clone_from(&timeline);
        };
        // Deleted, cancelled or restarted in the meantime: no record needs the volume, and the sweep deletes
        // it.
        if self.change(id, generation, edit).await? {
            let bytes = content.totals.compressed_size;
            let what = if refreshed { "refreshed" } else { "sealed" };
            tracing::info!(digest = %content.digest, bytes, "{what}");
        }
        Ok(())
    }
}

/// Returns the pause after a number of failed attempts. It doubles each time, up to [`MAX_PAUSE`].
fn pause(first: Duration, attempts: u32) -> Duration {
    first.saturating_mul(1 << (attempts.clamp(1, 16) - 1)).min(MAX_PAUSE)
}

/// Combines the failures of an outcome into one message that names the images.
fn explain(outcome: &Outcome) -> String {
    let mut parts = Vec::new();
    for failure in &outcome.failures {
        let unnamed: Vec<&str> = failure
            .images
            .iter()
            .map(String::as_str)
            .filter(|image| !failure.message.contains(image))
            .collect();
        let part = match unnamed.as_slice() {
            [] => failure.message.clone(),
            images => format!("{}: {}", images.join(", "), failure.message),
        };
        if !parts.contains(&part) {
            parts.push(part);
        }
    }
    if parts.is_empty() { outcome.message.clone() } else { parts.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::event::Failure;

    #[test]
    fn a_failure_names_its_images() {
        let failure = |images: &[&str], message: &str| Failure {
            class: Class::NotFound,
            images: images.iter().map(|image| (*image).to_owned()).collect(),
            layer: None,
            message: message.to_owned(),
            explanation: None,
        };
        let outcome = Outcome {
            message: "first".into(),
            failures: vec![
                failure(&["a:1", "b:1"], "no such tag"),
                failure(&["c:1"], "c:1 is not there"),
                failure(&["c:1"], "c:1 is not there"),
            ],
            ..failed(Some(Class::NotFound))
        };
        assert_eq!(explain(&outcome), "a:1, b:1: no such tag; c:1 is not there");
        assert_eq!(explain(&Outcome { failures: Vec::new(), ..outcome }), "first");
    }

    fn failed(class: Option<Class>) -> Outcome {
        Outcome { status: BuildStatus::Failed, exit_code: 1, class, ..Outcome::succeeded("why") }
    }

    #[test]
    fn only_failures_that_can_heal_are_retried() {
        let died = Ended::Died("killed".into());
        for (ended, class, heals) in [
            (Ended::Result(failed(Some(Class::Transient))), Class::Transient, true),
            (Ended::Exhausted(failed(Some(Class::Transient))), Class::Transient, false),
            (Ended::Result(failed(Some(Class::NotFound))), Class::NotFound, false),
            (Ended::Result(failed(None)), Class::Internal, true),
            (Ended::Result(Outcome { status: BuildStatus::Ok, ..failed(None) }), Class::Internal, true),
            (died, Class::Internal, true),
        ] {
            let Verdict::Failed(failed) = Verdict::of(ended) else { panic!("not a failure") };
            assert_eq!((failed.class, failed.heals), (class, heals), "{}", failed.message);
        }
    }

    #[test]
    fn the_pause_doubles_up_to_a_limit() {
        let first = Duration::from_secs(10);
        let pauses = [1, 2, 3, 5, 6, 100].map(|attempts| pause(first, attempts).as_secs());
        assert_eq!(pauses, [10, 20, 40, 160, 300, 300]);
        assert_eq!(pause(Duration::ZERO, 3), Duration::ZERO);
    }
}
