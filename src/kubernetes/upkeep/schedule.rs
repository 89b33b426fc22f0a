//! Computes when a refresh is due, from a schedule and a time. Pure.

use chrono::{DateTime, TimeDelta, Utc};
use cronexpr::{Crontab, MakeTimestamp};

use crate::kubernetes::crd::{ImageCacheSpec, Refresh};
use larder_model::digest::Digest;

/// Maximum offset of an image cache from its schedule, seconds. Schedules are often whole hours, and the
/// offset spreads the load on a registry.
const MAX_JITTER: i64 = 600;
/// The offset is at most this fraction (1/N) of the time between two refreshes.
const JITTER_PART: i64 = 10;

/// A parsed and valid schedule.
#[derive(Debug)]
pub(super) struct Schedule(Crontab);

/// Returns the reason why the schedule of a spec is invalid. `None` if it is valid, or if there is none.
pub(in crate::kubernetes) fn mistake(spec: &ImageCacheSpec) -> Option<String> {
    let refresh = spec.refresh.as_ref()?;
    let usable = Schedule::parse(refresh).and_then(|schedule| schedule.first_after(Utc::now()));
    usable.err().map(|why| format!("spec.refresh.{why}"))
}

/// Returns a schedule as one text, to compare it with the one that the next time was computed from.
pub(super) fn text(refresh: &Refresh) -> String {
    format!("{} {}", refresh.schedule, zone(refresh))
}

fn zone(refresh: &Refresh) -> &str {
    refresh.time_zone.as_deref().unwrap_or("UTC")
}

impl Schedule {
    /// Parses a schedule.
    ///
    /// # Errors
    /// A field is invalid. The text names it and the reason.
    pub(super) fn parse(refresh: &Refresh) -> Result<Self, String> {
        // The parser accepts a time zone as a sixth field.
        if refresh.schedule.split_whitespace().count() != 5 {
            return Err(format!("schedule: {:?} does not have five fields", refresh.schedule));
        }
        let zone = zone(refresh);
        if zone.contains(char::is_whitespace) || jiff::tz::TimeZone::get(zone).is_err() {
            return Err(format!("timeZone: there is no time zone {zone:?}"));
        }
        let parsed = cronexpr::parse_crontab(&text(refresh));
        parsed.map(Schedule).map_err(|error| {
            let text = error.to_string();
            // The parser prints the text with a mark below it; the reason follows the mark.
            let reason = text.rsplit_once("^ ").map_or(text.as_str(), |(_, reason)| reason);
            format!("schedule: {reason}")
        })
    }

    /// Returns the first time of the schedule after `time`.
    fn first_after(&self, time: DateTime<Utc>) -> Result<DateTime<Utc>, String> {
        let found = MakeTimestamp::from_second(time.timestamp()).and_then(|time| self.0.find_next(time));
        let found = found.map_err(|_| "schedule: it has no time within four years".to_owned())?;
        DateTime::from_timestamp(found.timestamp().as_second(), 0)
            .ok_or_else(|| "schedule: its next time is out of range".to_owned())
    }

    /// Returns the time of the next refresh of the image cache with this UID, after `time`. Scheduled times
    /// before `time` are not repeated.
    ///
    /// # Errors
    /// The schedule has no next time.
    pub(super) fn next(&self, time: DateTime<Utc>, uid: &str) -> Result<DateTime<Utc>, String> {
        let next = self.first_after(time)?;
        let gap = self.first_after(next).map_or(i64::MAX, |second| (second - next).num_seconds());
        let max = (gap / JITTER_PART).clamp(0, MAX_JITTER);
        let hash = u64::from_str_radix(&Digest::sha256(uid.as_bytes()).hex()[..8], 16).unwrap_or(0);
        let offset = i64::try_from(hash).unwrap_or(0) % (max + 1);
        Ok(next + TimeDelta::seconds(offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::crd::When;

    fn refresh(schedule: &str, zone: Option<&str>) -> Refresh {
        Refresh {
            schedule: schedule.to_owned(),
            time_zone: zone.map(str::to_owned),
            when: When::DigestChanged,
        }
    }

    fn time(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn times_follow_the_schedule_in_its_zone() {
        for (schedule, zone, after, next) in [
            ("0 3 * * *", None, "2026-11-30T02:59:59Z", "2026-11-30T03:00:00Z"),
            ("0 3 * * *", None, "2026-11-30T03:00:00Z", "2026-12-01T03:00:00Z"),
            ("0 3 * * *", Some("Asia/Tokyo"), "2026-11-30T03:00:00Z", "2026-11-30T18:00:00Z"),
            // Friday, and the last day of February in a leap year.
            ("30 6 * * FRI", None, "2026-11-30T00:00:00Z", "2026-12-04T06:30:00Z"),
            ("0 0 29 2 *", None, "2026-11-30T00:00:00Z", "2028-02-29T00:00:00Z"),
            // The night when clocks go forward has no 2:30, and is skipped.
            ("30 2 * * *", Some("Europe/Berlin"), "2027-03-27T12:00:00Z", "2027-03-29T00:30:00Z"),
        ] {
            let schedule = Schedule::parse(&refresh(schedule, zone)).unwrap();
            assert_eq!(schedule.first_after(time(after)), Ok(time(next)), "{schedule:?}");
        }
    }

    #[test]
    fn image_caches_are_spread_and_keep_their_offset() {
        let offsets = |text: &str| -> Vec<i64> {
            let schedule = Schedule::parse(&refresh(text, None)).unwrap();
            let of = |uid: u32| {
                let uid = uid.to_string();
                let first = schedule.next(time("2026-11-30T12:00:00Z"), &uid).unwrap();
                let base = schedule.first_after(time("2026-11-30T12:00:00Z")).unwrap();
                // The second time is a whole period after the first: an offset must not cause two refreshes.
                let second = schedule.next(first, &uid).unwrap();
                assert_eq!(second - first, schedule.first_after(base).unwrap() - base);
                (first - base).num_seconds()
            };
            (0..50).map(of).collect()
        };
        let daily = offsets("0 3 * * *");
        assert!(daily.iter().all(|offset| (0..=600).contains(offset)));
        assert!(daily.iter().max() > Some(&450) && daily.iter().min() < Some(&150), "{daily:?}");
        assert!(offsets("* * * * *").iter().all(|offset| (0..=6).contains(offset)));
    }

    #[test]
    fn invalid_schedules_have_a_reason() {
        for (schedule, zone, why) in [
            ("0 3 * *", None, "schedule: \"0 3 * *\" does not have five fields"),
            ("0 3 * * * UTC", None, "does not have five fields"),
            ("60 3 * * *", None, "schedule: value must be in range 0..=59; found 60"),
            ("0 3 * * *", Some("Mars/Olympus"), "timeZone: there is no time zone \"Mars/Olympus\""),
            ("0 0 30 2 *", None, "schedule: it has no time within four years"),
        ] {
            let spec = serde_json::json!({"images": ["a"], "refresh": refresh(schedule, zone)});
            let found = mistake(&serde_json::from_value(spec).unwrap()).unwrap();
            assert!(found.starts_with("spec.refresh.") && found.contains(why), "{found}");
            assert!(!found.contains('\n'), "{found}");
        }
    }
}
