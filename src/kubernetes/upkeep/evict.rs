//! Evicts the least recently used image cache of a namespace when a miss or a refresh needs room.
//!
//! Only image caches that were created on a miss, or whose spec contains `evict: true`, can be evicted. An
//! image cache that is in use, was used recently or is being built is kept.

use chrono::{DateTime, TimeDelta, Utc};
use kube::ResourceExt as _;

use super::{CacheState, Upkeep};
use crate::kubernetes::names::{CREATED_BY, MISS};
use larder_model::image_cache::{CacheId, Status, TenantName};

/// Maximum number of image caches whose uses are checked for one eviction.
const MAX_CHECKED: usize = 5;

/// The result of an attempt to make room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// An image cache of the namespace is being deleted.
    Coming,
    /// No image cache can be evicted.
    None,
}

impl CacheState {
    fn is_evictable(&self) -> bool {
        let on_miss = self.object.labels().get(CREATED_BY).is_some_and(|by| by == MISS);
        on_miss || self.object.spec.evict
    }

    /// Returns the time of the last use. For an image cache that was never used, returns the time since when
    /// it is available.
    fn used_or_available(&self) -> DateTime<Utc> {
        self.last_used().map_or(self.record.status_since, |used| used.max(self.record.status_since))
    }
}

/// Returns the image caches of a tenant that can be evicted at `now`, least recently used first. `except` is
/// kept.
fn candidates<'a>(
    seen: impl Iterator<Item = (&'a CacheId, &'a CacheState)>,
    tenant: &TenantName,
    except: Option<CacheId>,
    (now, unused_for): (DateTime<Utc>, TimeDelta),
) -> Vec<(CacheId, CacheState)> {
    let may = seen.filter(|(id, seen)| {
        let record = &seen.record;
        record.tenant == *tenant
            && Some(**id) != except
            && record.status == Status::Available
            && record.work.is_none()
            && seen.is_evictable()
            && now - seen.used_or_available() >= unused_for
    });
    let mut may: Vec<(CacheId, CacheState)> = may.map(|(id, seen)| (*id, seen.clone())).collect();
    may.sort_by_key(|(id, seen)| (seen.used_or_available(), *id));
    may
}

impl Upkeep {
    /// Deletes the least recently used image cache of a tenant that can be evicted, unless one is being
    /// deleted already.
    pub(super) async fn make_room(&self, tenant: &TenantName, except: Option<CacheId>) -> Room {
        let unused_for = TimeDelta::hours(i64::from(self.settings().evict_after_hours));
        let candidates = {
            let seen = self.seen();
            // A second deletion could be one more than necessary.
            let mut own = seen.values().filter(|seen| seen.record.tenant == *tenant);
            if own.any(|seen| seen.record.status == Status::Deleting) {
                return Room::Coming;
            }
            candidates(seen.iter(), tenant, except, (self.clock.now(), unused_for))
        };
        for (id, seen) in candidates.into_iter().take(MAX_CHECKED) {
            match self.uses.of_any(id).await {
                Ok(None) => {}
                Ok(Some(_)) => continue,
                Err(fault) => {
                    tracing::warn!("{fault}");
                    return Room::None;
                }
            }
            let name = &seen.record.spec.name;
            if let Err(error) = self.service.delete(tenant, id).await {
                tracing::warn!(%tenant, %name, "cannot delete an image cache to make room: {error}");
                continue;
            }
            let used = seen.last_used().map_or("never".to_owned(), |used| used.to_rfc3339());
            tracing::info!(%tenant, %name, used, "image cache deleted to make room");
            let note = format!("deleted to make room: it was the least recently used (last use: {used})");
            self.report(&seen.object, false, "Evicted", note);
            // The watch delivers the change later, and another one must not be evicted in the meantime.
            if let Some(seen) = self.seen().get_mut(&id) {
                seen.record.status = Status::Deleting;
            }
            return Room::Coming;
        }
        Room::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::conditions::tests::record;
    use crate::kubernetes::crd::{ImageCache, ImageCacheStatus};

    fn at(hours: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::hours(hours)
    }

    /// Returns an image cache that is available since hour 0.
    fn seen(last_used: Option<i64>, change: impl FnOnce(&mut CacheState)) -> (CacheId, CacheState) {
        let spec = serde_json::json!({"images": ["nginx"]});
        let mut object = ImageCache::new("web", serde_json::from_value(spec).unwrap());
        object.labels_mut().insert(CREATED_BY.into(), MISS.into());
        let last_used = last_used.map(|hours| at(hours).to_rfc3339());
        object.status = Some(ImageCacheStatus { last_used, ..ImageCacheStatus::default() });
        let mut record = record();
        record.work = None;
        record.set_status(Status::Available, at(0), "sealed");
        let mut seen = CacheState { object, record, not_before: None };
        change(&mut seen);
        (seen.record.id, seen)
    }

    #[test]
    fn only_the_least_recently_used_is_evicted() {
        let old = seen(Some(1), |_| {});
        let never = seen(None, |_| {});
        let lately = seen(Some(90), |_| {});
        let ordered = seen(None, |seen| drop(seen.object.labels_mut().remove(CREATED_BY)));
        let allowed = seen(Some(2), |seen| {
            seen.object.labels_mut().remove(CREATED_BY);
            seen.object.spec.evict = true;
        });
        let busy = seen(None, |seen| seen.record.work = Some(crate::caches::record::Work::new(2)));
        let failed = seen(None, |seen| seen.record.status = Status::Failed);
        let foreign = seen(None, |seen| seen.record.tenant = "team-b".parse().unwrap());
        let refreshed = seen(Some(1), |seen| seen.record.status_since = at(95));
        let all = [&old, &never, &lately, &ordered, &allowed, &busy, &failed, &foreign, &refreshed];
        let of = |except, now| -> Vec<CacheId> {
            let seen = all.iter().map(|(id, seen)| (id, seen));
            let found = candidates(seen, &"team-a".parse().unwrap(), except, (at(now), TimeDelta::hours(24)));
            found.into_iter().map(|(id, _)| id).collect()
        };
        assert_eq!(of(None, 100), [never.0, old.0, allowed.0]);
        assert_eq!(of(Some(never.0), 100), [old.0, allowed.0]);
        assert_eq!(of(None, 25), [never.0, old.0], "others were used within a day");
        assert!(of(None, 23).is_empty());
    }
}
