use super::*;
use crate::caches::record::Work;
use crate::kubernetes::conditions::tests::record;
use crate::kubernetes::crd::ImageCache;
use larder_model::digest::Digest;
use larder_model::event::SealedImage;
use larder_model::plan_report::PlannedImage;
use larder_model::platform::Platform;
use larder_model::size::ByteSize;

fn time(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn wanted(schedule: &str) -> Refresh {
    Refresh { schedule: schedule.to_owned(), time_zone: None, when: When::Always }
}

/// Returns an available image cache with this schedule.
fn seen(schedule: Option<&str>, state: Option<RefreshState>) -> CacheState {
    let spec = serde_json::json!({"images": ["nginx"], "refresh": schedule.map(wanted)});
    let mut object = ImageCache::new("web", serde_json::from_value(spec).unwrap());
    object.status = Some(crate::kubernetes::crd::ImageCacheStatus { refresh: state, ..Default::default() });
    let mut record = record();
    record.work = None;
    record.set_status(Status::Available, DateTime::UNIX_EPOCH, "sealed");
    CacheState { object, record, not_before: None }
}

#[test]
fn a_schedule_begins_now_and_catches_up_once() {
    let now = time("2026-11-30T12:00:00Z");
    let hourly = wanted("0 * * * *");
    assert_eq!(seen(None, None).step(), Step::Nothing);
    assert_eq!(seen(Some("0 * * * *"), None).step(), Step::Begin);
    let state = begin(RefreshState::default(), &hourly, now, "uid");
    let first = match seen(Some("0 * * * *"), Some(state.clone())).step() {
        Step::At(first) => first,
        other => panic!("{other:?}"),
    };
    // The image cache can be old: times before the schedule was written do not count.
    assert!(first >= time("2026-11-30T13:00:00Z") && first < time("2026-11-30T13:10:00Z"));
    // No daemon led for two days: there is one refresh, and the next time is after it.
    let late = time("2026-12-02T12:30:00Z");
    let state = done(state, Outcome::Started(2), &hourly, (late, late), "uid");
    let next = time(state.next_time.as_deref().unwrap());
    assert!(next >= time("2026-12-02T13:00:00Z") && next < time("2026-12-02T13:10:00Z"), "{next}");
    assert_eq!((state.last_time.as_deref(), state.generation), (Some("2026-12-02T12:30:00Z"), Some(2)));
    // A changed schedule begins again, and a removed one is cleared.
    assert_eq!(seen(Some("5 * * * *"), Some(state.clone())).step(), Step::Begin);
    assert_eq!(seen(None, Some(state)).step(), Step::Clear);
}

#[test]
fn a_refresh_ends_as_its_record_says() {
    let hourly = wanted("0 * * * *");
    let now = time("2026-11-30T12:00:00Z");
    let begun = begin(RefreshState::default(), &hourly, now, "uid");
    let state = done(begun, Outcome::Started(2), &hourly, (now, now), "uid");
    let mut seen = seen(Some("0 * * * *"), Some(state.clone()));
    seen.record.work = Some(Work::new(2));
    assert!(matches!(seen.step(), Step::At(_)), "it is under way");
    seen.record.work = None;
    assert_eq!(seen.step(), Step::End);
    seen.record.message = Some("the refresh failed: no such tag".into());
    let failed = end(state.clone(), &seen.record);
    assert_eq!(failed.last_result.as_deref(), Some("Failed"));
    assert_eq!(failed.message.as_deref(), Some("the refresh failed: no such tag"));
    seen.record.content = Some(content(Digest::sha256(b"m"), None));
    let refreshed = end(state, &seen.record);
    assert_eq!((refreshed.last_result.as_deref(), refreshed.message), (Some("Refreshed"), None));
}

#[test]
fn a_schedule_that_cannot_be_used_waits_for_another() {
    let now = time("2026-11-30T12:00:00Z");
    let state = begin(RefreshState::default(), &wanted("99 * * * *"), now, "uid");
    assert_eq!((state.last_result.as_deref(), state.next_time.as_deref()), (Some("Invalid"), None));
    assert!(state.message.as_deref().unwrap().contains("spec.refresh.schedule"));
    assert_eq!(seen(Some("99 * * * *"), Some(state.clone())).step(), Step::Nothing);
    let state = begin(state, &wanted("9 * * * *"), now, "uid");
    assert_eq!((state.last_result, state.message), (None, None));
}

fn content(manifest: Digest, index: Option<Digest>) -> Content {
    Content {
        generation: 2,
        sealed_at: DateTime::UNIX_EPOCH,
        digest: Digest::sha256(b"seal"),
        images: vec![SealedImage { reference: "nginx".into(), manifest, index }],
        totals: Default::default(),
        layers: Vec::new(),
        snapshot: None,
    }
}

#[test]
fn a_moved_index_or_manifest_is_a_change() {
    let (one, two) = (Digest::sha256(b"1"), Digest::sha256(b"2"));
    for (before, now, moved) in [
        ((&one, None), (&one, None), false),
        ((&one, None), (&two, None), true),
        // The leader runs on another platform than the builder.
        ((&one, Some(&one)), (&two, Some(&one)), false),
        ((&one, Some(&one)), (&one, Some(&two)), true),
        // The tag pointed to one manifest, and now to an index that contains it.
        ((&one, None), (&one, Some(&two)), false),
    ] {
        let image = PlannedImage {
            reference: "nginx".into(),
            name: "docker.io/library/nginx:latest".into(),
            index: now.1.cloned(),
            manifest: now.0.clone(),
            platform: Platform::new("linux", "amd64", ""),
            compressed_size: 0,
            layers: Vec::new(),
        };
        let report = PlanReport::new(vec![image], ByteSize(0));
        let content = content(before.0.clone(), before.1.cloned());
        assert_eq!(has_moved(&content, &report), moved, "{before:?} {now:?}");
    }
}

#[test]
fn transient_failures_are_retried_and_others_reported() {
    use std::time::Duration;
    assert!(matches!(failed(&Error::QueueFull { retry_after: Duration::ZERO }), Outcome::Later(_)));
    let full = Error::NoRoomToRefresh { need_gib: 20, free_gib: 0, capacity_gib: 20 };
    assert!(matches!(failed(&full), Outcome::Failed(_)));
    // Null removes fields of the previous state.
    assert_eq!(merge(&RefreshState::default())["message"], serde_json::Value::Null);
}
