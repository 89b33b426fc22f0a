//! `status.lastUsed`: when a pod of any node, or a claim of a tenant, last used an image cache.
//!
//! Agents annotate their claims at most every ten minutes, and this writes at most that often for each image cache, however many
//! nodes use it. All image caches together get a bounded number of writes, those that waited longest first.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::json;

use super::{Seen, Upkeep};
use larder_model::image_cache::{CacheId, Status};

/// How much newer a use must be than the one that is written.
const STEP: TimeDelta = TimeDelta::minutes(10);
/// Maximum number of image caches whose status is written in one step.
const MAX_WRITES: usize = 5;
/// Maximum number of namespaces that are listed in one step.
const MAX_LISTS: usize = 5;

impl Seen {
    /// The last use that the status has.
    pub(super) fn last_used(&self) -> Option<DateTime<Utc>> {
        let text = self.object.status.as_ref()?.last_used.as_deref()?;
        DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc())
    }
}

impl Upkeep {
    /// Writes when image caches were used. Does not return.
    pub(super) async fn keep_uses(&self) {
        loop {
            tokio::time::sleep(self.every).await;
            if self.service.leads() {
                self.uses.look_around(MAX_LISTS).await;
                self.note_uses().await;
            }
        }
    }

    async fn note_uses(&self) {
        let mut due: Vec<(CacheId, Seen, DateTime<Utc>)> = {
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
    written.is_none_or(|written| used - written >= STEP)
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
