//! Writes `status.lastUsed`: the time at which a pod of any node, or a claim of a tenant, last used an image
//! cache.
//!
//! Agents annotate their claims at most every ten minutes, and each status is written at most that often,
//! regardless of the number of nodes. The number of writes per step is bounded; image caches that waited
//! longest come first.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::json;

use super::{CacheState, Upkeep};
use larder_model::image_cache::{CacheId, Status};

/// Minimum difference between a use and the last one that was written.
const MIN_DIFFERENCE: TimeDelta = TimeDelta::minutes(10);
/// Maximum number of image caches whose status is written in one step.
const MAX_WRITES: usize = 5;
/// Maximum number of namespaces that are listed in one step.
const MAX_LISTS: usize = 5;

impl CacheState {
    /// Returns the last use in the status.
    pub(super) fn last_used(&self) -> Option<DateTime<Utc>> {
        let text = self.object.status.as_ref()?.last_used.as_deref()?;
        DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc())
    }
}

impl Upkeep {
    /// Writes the times of the last uses. Does not return.
    pub(super) async fn run_last_used(&self) {
        loop {
            tokio::time::sleep(self.every).await;
            if self.service.leads() {
                self.uses.list_stale(MAX_LISTS).await;
                self.write_uses().await;
            }
        }
    }

    async fn write_uses(&self) {
        let mut due: Vec<(CacheId, CacheState, DateTime<Utc>)> = {
            let seen = self.seen();
            let available = seen.iter().filter(|(_, seen)| seen.record.status == Status::Available);
            let due = available.filter_map(|(id, seen)| {
                let used = self.uses.last_used(*id)?;
                is_due(seen.last_used(), used).then(|| (*id, seen.clone(), used))
            });
            due.collect()
        };
        due.sort_by_key(|(id, seen, _)| (seen.last_used(), *id));
        for (id, seen, used) in due.into_iter().take(MAX_WRITES) {
            let used = used.to_rfc3339_opts(SecondsFormat::Secs, true);
            if let Err(fault) = self.write(id, &seen.object, json!({"lastUsed": used})).await {
                tracing::warn!("{fault}");
                return;
            }
        }
    }
}

fn is_due(written: Option<DateTime<Utc>>, used: DateTime<Utc>) -> bool {
    written.is_none_or(|written| used - written >= MIN_DIFFERENCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_is_written_every_ten_minutes() {
        let at = |minutes| DateTime::UNIX_EPOCH + TimeDelta::minutes(minutes);
        assert!(is_due(None, at(0)));
        assert!(!is_due(Some(at(0)), at(9)) && is_due(Some(at(0)), at(10)));
        assert!(!is_due(Some(at(10)), at(0)), "a use that is older is no news");
    }
}
