//! The tests that every store must pass.
//!
//! Each case gets a function that creates empty stores. `all` runs the cases in sequence, in a multi-threaded
//! runtime.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};

use super::AdmissionDecision::Open;
use super::{
    AdmissionDecision, Created, IdempotencyKey, Limits, MAX_KEYS_PER_TENANT, Store, StoreError, Stored,
    TenantSpace,
};
use crate::caches::record::Record;
use larder_model::image_cache::{CacheId, Spec, Status, TenantName};
use larder_sys::clock::guard::SavedClock;

/// Creates an empty store.
pub type Fresh<'a> = &'a (dyn Fn() -> Arc<dyn Store> + Sync);

/// Limits that admit every record.
pub const ROOM: Limits = Limits {
    max_per_tenant: 10_000,
    tenant_space: TenantSpace::UNLIMITED,
    capacity_gib: 1_000_000,
    promised_gib: 0,
};
/// Admission with these limits.
pub const OPEN: AdmissionDecision = Open(ROOM);

/// Returns a record of 20 GiB that was ordered `second` seconds after 1970.
pub fn record(tenant: &str, name: &str, second: i64) -> Record {
    let spec = Spec {
        name: name.parse().unwrap(),
        images: vec!["nginx".parse().unwrap()],
        size_gib: 20,
        retention_days: 1,
        cluster: "c".into(),
        pull_secrets: vec!["team:registry".into()],
    };
    Record::new(CacheId::random(), tenant.parse().unwrap(), spec, at(second))
}

/// Returns the time `second` seconds after 1970.
pub fn at(second: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::seconds(second)
}

/// Returns a key with a request hash in which every byte is `request`.
pub fn key(text: &str, request: u8) -> Option<IdempotencyKey> {
    Some(IdempotencyKey { key: text.into(), request: [request; 32] })
}

/// Creates a record that must be new.
pub async fn create(store: &dyn Store, record: Record) -> Stored {
    match store.create(record.clone(), OPEN, None).await.unwrap() {
        Created::New(stored) => {
            // The store can replace the identity.
            assert_eq!(stored.record, Record { id: stored.record.id, ..record });
            stored
        }
        Created::Before(before) => panic!("{before:?}"),
    }
}

/// Runs every case of the suite.
pub async fn all(fresh: Fresh<'_>) {
    lists(&*fresh()).await;
    versions(&*fresh()).await;
    names(&*fresh()).await;
    order_of_refusals(&*fresh()).await;
    reservations(&*fresh()).await;
    shared_lists_are_fresh(&*fresh()).await;
    keys(&*fresh()).await;
    keys_are_bounded(&*fresh()).await;
    time(&*fresh()).await;
    one_replaces(fresh()).await;
    quota_is_exact(fresh()).await;
    capacity_is_exact(fresh()).await;
    one_gets_the_name(fresh()).await;
    one_key_one_record(fresh()).await;
}

/// Records are returned as they were written, oldest first.
pub async fn lists(store: &dyn Store) {
    assert_eq!(store.list(None).await.unwrap(), []);
    assert_eq!(store.get(CacheId::random()).await.unwrap(), None);
    let third = create(store, record("a", "third", 30)).await;
    let first = create(store, record("b", "first", 10)).await;
    let mut fourth = record("a", "fourth", 30);
    fourth.created_at += TimeDelta::nanoseconds(1);
    let fourth = create(store, fourth).await;
    let second = create(store, record("a", "second", 20)).await;
    let team = |name: &str| Some(name.parse().unwrap());
    assert_eq!(store.list(team("a")).await.unwrap(), [second.clone(), third.clone(), fourth.clone()]);
    assert_eq!(store.list(team("b")).await.unwrap(), std::slice::from_ref(&first));
    assert_eq!(store.list(team("c")).await.unwrap(), []);
    // A change does not affect the order.
    let first = store.replace(first).await.unwrap();
    assert_eq!(store.list(None).await.unwrap(), [first.clone(), second, third, fourth]);
    assert_eq!(store.get(first.record.id).await.unwrap(), Some(first));

    let mut twins: Vec<_> = (0..8).map(|i| record("d", &format!("twin-{i}"), 50)).collect();
    for twin in &mut twins {
        *twin = create(store, twin.clone()).await.record;
    }
    twins.sort_by_key(|twin| twin.id);
    let listed = store.list(team("d")).await.unwrap();
    assert_eq!(listed.into_iter().map(|stored| stored.record).collect::<Vec<_>>(), twins);
}

/// Only a caller that has read the current version can change or delete a record.
pub async fn versions(store: &dyn Store) {
    let old = create(store, record("a", "web", 0)).await;
    let mut changed = old.clone();
    changed.record.set_status(Status::Available, at(1), "sealed");
    changed.record.message = Some("ä \u{0} \" \n".into());
    let new = store.replace(changed.clone()).await.unwrap();
    assert_eq!(new.record, changed.record);
    assert_ne!(new.version, old.version);
    assert_eq!(store.get(old.record.id).await.unwrap(), Some(new.clone()));

    let id = old.record.id;
    assert!(matches!(store.replace(old.clone()).await, Err(StoreError::Changed(which)) if which == id));
    assert!(matches!(store.remove(id, old.version).await, Err(StoreError::Changed(which)) if which == id));
    let mut renamed = new.clone();
    renamed.record.spec.name = "other".parse().unwrap();
    assert!(matches!(store.replace(renamed).await, Err(StoreError::Failed { full: false, .. })));
    let mut moved = new.clone();
    moved.record.tenant = "b".parse().unwrap();
    assert!(matches!(store.replace(moved).await, Err(StoreError::Failed { full: false, .. })));
    assert_eq!(store.list(None).await.unwrap(), std::slice::from_ref(&new));

    store.remove(id, new.version).await.unwrap();
    assert_eq!(store.get(id).await.unwrap(), None);
    assert!(matches!(store.remove(id, new.version).await, Err(StoreError::Gone(which)) if which == id));
    assert!(matches!(store.replace(new).await, Err(StoreError::Gone(which)) if which == id));
}

/// A name is unique in its tenant until its record is deleted.
pub async fn names(store: &dyn Store) {
    let first = create(store, record("a", "web", 0)).await;
    create(store, record("b", "web", 0)).await;
    create(store, record("a", "web-2", 0)).await;
    let again = store.create(record("a", "web", 1), OPEN, None).await;
    assert!(matches!(again, Err(StoreError::NameTaken(name)) if name.as_str() == "web"));
    let mut going = first;
    going.record.set_status(Status::Deleting, at(1), "requested");
    let going = store.replace(going).await.unwrap();
    let again = store.create(record("a", "web", 1), OPEN, None).await;
    assert!(matches!(again, Err(StoreError::NameTaken(_))));
    store.remove(going.record.id, going.version).await.unwrap();
    create(store, record("a", "web", 1)).await;
}

/// A decision without limits, and the check of the error that every new record gets.
type Closed = (AdmissionDecision, fn(&StoreError) -> bool);

fn closed() -> [Closed; 2] {
    [
        (AdmissionDecision::QueueFull, |error| matches!(error, StoreError::QueueFull)),
        (AdmissionDecision::Replayed, |error| matches!(error, StoreError::Replayed)),
    ]
}

/// Refusals are reported in this order: name, closed admission, number of records, space of the tenant,
/// capacity.
pub async fn order_of_refusals(store: &dyn Store) {
    create(store, record("a", "web", 0)).await;
    let none = Limits { max_per_tenant: 1, capacity_gib: 20, ..ROOM };
    let taken = store.create(record("a", "web", 0), Open(none), None).await;
    assert!(matches!(taken, Err(StoreError::NameTaken(_))));
    for (closed, is_expected) in closed() {
        let taken = store.create(record("a", "web", 0), closed, None).await;
        assert!(matches!(taken, Err(StoreError::NameTaken(_))));
        let refused = store.create(record("a", "web-2", 0), closed, None).await.unwrap_err();
        assert!(is_expected(&refused), "{refused:?}");
    }
    let many = store.create(record("a", "web-2", 0), Open(none), None).await;
    assert!(matches!(many, Err(StoreError::Quota { have: 1, max: 1 })));
    let tenant_space = TenantSpace { max_gib: Some(50), promised_gib: 11 };
    let little = Limits { max_per_tenant: 2, tenant_space, capacity_gib: 20, ..ROOM };
    let large = store.create(record("a", "web-2", 0), Open(little), None).await;
    let Err(full @ StoreError::TenantFull { need_gib: 20, used_gib: 31, max_gib: 50 }) = large else {
        panic!("{large:?}")
    };
    let message = full.to_string();
    assert!(
        message.starts_with("the image cache needs 20 GiB, and this tenant uses 31 GiB of its 50 GiB"),
        "{message}"
    );
    let large = store.create(record("b", "web", 0), Open(none), None).await;
    let Err(StoreError::Full { need_gib: 20, free_gib: 0, capacity_gib: 20 }) = large else {
        panic!("{large:?}")
    };
    assert_eq!(store.list(None).await.unwrap().len(), 1);
}

/// Shared lists are as fresh as other reads, after each kind of write.
pub async fn shared_lists_are_fresh(store: &dyn Store) {
    let [a, b] = ["a", "b"].map(|name| name.parse::<TenantName>().unwrap());
    let check = async |wanted: usize| {
        for tenant in [&a, &b] {
            let listed = store.list(Some(tenant.clone())).await.unwrap();
            for _ in 0..2 {
                assert_eq!(store.list_of(tenant.clone()).await.unwrap()[..], listed[..]);
            }
            for stored in &listed {
                let id = stored.record.id;
                assert_eq!(store.get_of(tenant.clone(), id).await.unwrap().as_ref(), Some(stored));
                let other = if tenant == &a { &b } else { &a };
                assert_eq!(store.get_of(other.clone(), id).await.unwrap(), None, "another's");
            }
        }
        assert_eq!(store.list_of(a.clone()).await.unwrap().len(), wanted);
        assert_eq!(store.get_of(a.clone(), CacheId::random()).await.unwrap(), None);
    };
    check(0).await;
    let mut first = create(store, record("a", "one", 0)).await;
    check(1).await;
    create(store, record("b", "one", 0)).await;
    let second = create(store, record("a", "two", 1)).await;
    check(2).await;
    first.record.set_status(Status::Deleting, at(2), "deletion requested");
    let first = store.replace(first).await.unwrap();
    check(2).await;
    let mut changed = second.clone();
    changed.record.set_status(Status::Failed, at(2), "no such image");
    store.replace(changed).await.unwrap();
    assert!(matches!(store.replace(second).await, Err(StoreError::Changed(_))));
    check(2).await;
    store.remove(first.record.id, first.version).await.unwrap();
    check(1).await;
}

/// Reservations follow the records.
pub async fn reservations(store: &dyn Store) {
    let room = Limits { capacity_gib: 59, ..ROOM };
    let first = create(store, record("a", "one", 0)).await;
    create(store, record("b", "two", 0)).await;
    let third = || store.create(record("c", "three", 0), Open(room), None);
    assert!(matches!(third().await, Err(StoreError::Full { need_gib: 20, free_gib: 19, .. })));
    let mut failed = first;
    failed.record.set_status(Status::Failed, at(1), "no such image");
    store.replace(failed).await.unwrap();
    assert!(matches!(third().await, Ok(Created::New(_))));
    // The failed record reserves nothing, and other tenants' records do not count.
    let tenant_space = TenantSpace { max_gib: Some(20), promised_gib: 0 };
    let own = Limits { tenant_space, ..ROOM };
    assert!(matches!(store.create(record("a", "five", 0), Open(own), None).await, Ok(Created::New(_))));
    let over = store.create(record("a", "six", 0), Open(own), None).await;
    assert!(matches!(over, Err(StoreError::TenantFull { need_gib: 20, used_gib: 20, max_gib: 20 })));
    // Less capacity than is already reserved.
    let little = Limits { capacity_gib: 30, ..ROOM };
    let fourth = store.create(record("d", "four", 0), Open(little), None).await;
    assert!(matches!(fourth, Err(StoreError::Full { need_gib: 20, free_gib: 0, capacity_gib: 30 })));
}

/// The first answer is returned again, whatever happens to its record.
pub async fn keys(store: &dyn Store) {
    let create_with = |record: Record, key| store.create(record, OPEN, key);
    let first = create_with(record("a", "web", 100), key("k", 1)).await.unwrap();
    let Created::New(stored) = first else { panic!("not new") };
    let before = Created::Before(Box::new(stored.record.clone()));
    assert_eq!(create_with(record("a", "web", 101), key("k", 1)).await.unwrap(), before);
    assert!(matches!(create_with(record("a", "web-2", 101), key("k", 2)).await, Err(StoreError::KeyReused)));
    let mut changed = stored;
    changed.record.set_status(Status::Available, at(102), "sealed");
    let changed = store.replace(changed).await.unwrap();
    assert_eq!(create_with(record("a", "web", 103), key("k", 1)).await.unwrap(), before);
    store.remove(changed.record.id, changed.version).await.unwrap();
    // A quota or a disk that is full in the meantime does not matter.
    let none = Limits { max_per_tenant: 0, capacity_gib: 0, ..ROOM };
    assert_eq!(store.create(record("a", "web", 104), Open(none), key("k", 1)).await.unwrap(), before);
    for (closed, _) in closed() {
        assert_eq!(store.create(record("a", "web", 104), closed, key("k", 1)).await.unwrap(), before);
    }
    assert_eq!(store.list(None).await.unwrap(), []);

    // The same key of another tenant is a different key.
    assert!(matches!(create_with(record("b", "web", 104), key("k", 2)).await.unwrap(), Created::New(_)));
    // A refused create stores no key.
    assert!(matches!(create_with(record("b", "web", 104), key("r", 1)).await, Err(StoreError::NameTaken(_))));
    assert!(matches!(create_with(record("b", "web-2", 104), key("r", 2)).await.unwrap(), Created::New(_)));

    store.forget_keys(at(100)).await.unwrap();
    assert_eq!(create_with(record("a", "web", 105), key("k", 1)).await.unwrap(), before);
    store.forget_keys(at(101)).await.unwrap();
    assert!(matches!(create_with(record("a", "web", 106), key("k", 2)).await.unwrap(), Created::New(_)));
    assert!(matches!(create_with(record("b", "web", 106), key("k", 1)).await, Err(StoreError::KeyReused)));
}

/// The oldest of too many keys of a tenant are deleted, and no other tenant's.
pub async fn keys_are_bounded(store: &dyn Store) {
    let made = |tenant: &'static str, number: usize, request| async move {
        let name = format!("cache-{tenant}-{number}-{request}");
        let record = record(tenant, &name, i64::try_from(number).unwrap());
        let created = store.create(record, OPEN, key(&number.to_string(), request)).await;
        // Keys outlive their records.
        if let Ok(Created::New(stored)) = &created {
            store.remove(stored.record.id, stored.version).await.unwrap();
        }
        created
    };
    made("b", 0, 1).await.unwrap();
    for number in 0..=MAX_KEYS_PER_TENANT {
        assert!(matches!(made("a", number, 1).await.unwrap(), Created::New(_)));
    }
    assert!(matches!(made("a", 1, 2).await, Err(StoreError::KeyReused)));
    assert!(matches!(made("b", 0, 2).await, Err(StoreError::KeyReused)));
    assert!(matches!(made("a", 0, 2).await.unwrap(), Created::New(_)));
}

/// Returns clocks that show `time`.
pub fn noted(time: DateTime<Utc>) -> SavedClock {
    SavedClock { time, boot: "boot".into(), since_boot_ms: 1, held_until_ms: Some(2) }
}

/// The clocks saved last are returned, even if their time is earlier.
pub async fn time(store: &dyn Store) {
    assert_eq!(store.noted().await.unwrap(), None);
    for time in [at(10) + TimeDelta::nanoseconds(123_456_789), at(20), at(5), at(-5)] {
        store.note(noted(time)).await.unwrap();
        assert_eq!(store.noted().await.unwrap(), Some(noted(time)));
    }
}

/// One of many concurrent changes of the same version succeeds.
pub async fn one_replaces(store: Arc<dyn Store>) {
    const RACERS: usize = 16;
    const ROUNDS: usize = 5;
    let mut stored = create(&*store, record("a", "web", 0)).await;
    for round in 0..ROUNDS {
        let racers: Vec<_> = (0..RACERS)
            .map(|racer| {
                let (store, mut stored) = (Arc::clone(&store), stored.clone());
                stored.record.note(at(1), format!("{round} {racer}"));
                tokio::spawn(async move { store.replace(stored).await })
            })
            .collect();
        let mut winners = Vec::new();
        for racer in racers {
            match racer.await.unwrap() {
                Ok(winner) => winners.push(winner),
                Err(StoreError::Changed(_)) => {}
                Err(e) => panic!("{e}"),
            }
        }
        let [winner] = winners.as_slice() else { panic!("{} changed it", winners.len()) };
        stored = store.get(winner.record.id).await.unwrap().unwrap();
        assert_eq!(stored, *winner);
    }
    assert_eq!(stored.record.events.len(), 1 + ROUNDS);
}

/// Exactly 50 of 60 concurrent creates succeed, and the others are refused.
pub async fn quota_is_exact(store: Arc<dyn Store>) {
    let limits = Limits { max_per_tenant: 50, ..ROOM };
    let refused = race(&store, limits, |i| (record("a", &format!("web-{i}"), 0), None)).await;
    assert_eq!(refused.len(), 10);
    assert!(refused.iter().all(|e| matches!(e, StoreError::Quota { have: 50, max: 50 })), "{refused:?}");
    assert_eq!(store.list(None).await.unwrap().len(), 50);
    // The quota is per tenant.
    let other = store.create(record("b", "web-0", 0), Open(limits), None).await;
    assert!(matches!(other, Ok(Created::New(_))));
}

/// Records of all tenants are admitted up to the capacity of the host.
pub async fn capacity_is_exact(store: Arc<dyn Store>) {
    let limits = Limits { capacity_gib: 799, ..ROOM };
    let refused = race(&store, limits, |i| (record(&format!("team-{i}"), "web", 0), None)).await;
    assert_eq!(refused.len(), 60 - 39);
    assert!(refused.iter().all(|e| matches!(e, StoreError::Full { free_gib: 19, .. })), "{refused:?}");
    let reserved: u64 =
        store.list(None).await.unwrap().iter().map(|stored| stored.record.reserved_gib()).sum();
    assert_eq!(reserved, 780);
}

/// One of many concurrent creates with the same name succeeds.
pub async fn one_gets_the_name(store: Arc<dyn Store>) {
    let refused = race(&store, ROOM, |_| (record("a", "web", 0), None)).await;
    assert_eq!(refused.len(), 59);
    assert!(refused.iter().all(|e| matches!(e, StoreError::NameTaken(_))), "{refused:?}");
    assert_eq!(store.list(None).await.unwrap().len(), 1);
}

/// Concurrent creates with the same key create one record.
pub async fn one_key_one_record(store: Arc<dyn Store>) {
    let refused = race(&store, ROOM, |_| (record("a", "web", 0), key("k", 1))).await;
    assert!(refused.is_empty(), "{refused:?}");
    assert_eq!(store.list(None).await.unwrap().len(), 1);
}

async fn race(
    store: &Arc<dyn Store>,
    limits: Limits,
    order: impl Fn(usize) -> (Record, Option<IdempotencyKey>),
) -> Vec<StoreError> {
    let racers: Vec<_> = (0..60)
        .map(|i| {
            let (store, (record, key)) = (Arc::clone(store), order(i));
            tokio::spawn(async move { store.create(record, Open(limits), key).await })
        })
        .collect();
    let mut refused = Vec::new();
    for racer in racers {
        refused.extend(racer.await.unwrap().err());
    }
    refused
}
