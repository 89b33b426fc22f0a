//! Records when pods of the node last used an image cache, in an annotation of the claim that the leading
//! daemon reads.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt as _;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::kubernetes::fault::{Fault, opt, request};
use crate::kubernetes::names::{LAST_USED, MANAGER};

/// Interval between two writes for a claim. A thousand nodes with three image caches each cause five writes
/// per second.
pub(super) const WRITE_INTERVAL: Duration = Duration::from_secs(600);

/// Reports whether the use of a claim must be written at `now`. The claim must exist and not be deleted.
pub(super) fn is_due(claim: Option<&PersistentVolumeClaim>, now: DateTime<Utc>) -> bool {
    let Some(claim) = claim.filter(|claim| claim.metadata.deletion_timestamp.is_none()) else { return false };
    let written = claim.annotations().get(LAST_USED).and_then(|text| DateTime::parse_from_rfc3339(text).ok());
    let every = TimeDelta::from_std(WRITE_INTERVAL).unwrap_or(TimeDelta::MAX);
    written.is_none_or(|written| now - written.to_utc() >= every)
}

/// Writes that a claim is in use at `now`.
pub(super) async fn write(
    api: &Api<PersistentVolumeClaim>,
    claim: &str,
    now: DateTime<Utc>,
) -> Result<(), Fault> {
    let used = now.to_rfc3339_opts(SecondsFormat::Secs, true);
    let patch = json!({"metadata": {"annotations": {LAST_USED: used}}});
    let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let doing = format!("writing the last use of the claim {claim}");
    opt(request!(&doing, api.patch_metadata(claim, &parameters, &Patch::Merge(&patch))))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_is_written_every_ten_minutes() {
        let now: DateTime<Utc> = "2026-11-30T01:00:00Z".parse().unwrap();
        let of = |used: &str| {
            let mut claim = PersistentVolumeClaim::default();
            claim.annotations_mut().insert(LAST_USED.to_owned(), used.to_owned());
            claim
        };
        assert!(!is_due(None, now), "there is nothing to write to");
        assert!(is_due(Some(&PersistentVolumeClaim::default()), now));
        assert!(!is_due(Some(&of("2026-11-30T00:51:00Z")), now));
        assert!(is_due(Some(&of("2026-11-30T00:50:00Z")), now) && is_due(Some(&of("nonsense")), now));
    }
}
