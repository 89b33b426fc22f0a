//! Waits for a state of the cluster. A wait that times out prints the objects of the cluster.

use std::time::{Duration, Instant};

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Secret};
use larder::kubernetes::crd::ImageCache;
use larder::kubernetes::snapshot::VolumeSnapshot;
use larder_fake_kubernetes::Seen;
use larder_model::image_cache::Status;

use super::{TIMEOUT, World};

impl World {
    /// Waits until `probe` returns a value.
    pub(crate) fn until<T>(&self, what: &str, probe: impl FnMut() -> Option<T>) -> T {
        self.until_within(if self.is_real() { TIMEOUT * 5 } else { TIMEOUT }, what, probe)
    }

    /// Does the same as [`World::until`], with another time limit.
    pub(crate) fn until_within<T>(
        &self,
        patience: Duration,
        what: &str,
        mut probe: impl FnMut() -> Option<T>,
    ) -> T {
        let start = Instant::now();
        loop {
            if let Some(found) = probe() {
                return found;
            }
            if start.elapsed() > patience {
                self.show();
                panic!("timeout after {patience:?}: {what}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until an image cache has this status, and returns it.
    pub(crate) fn phase(&self, name: &str, phase: Status) -> ImageCache {
        self.until(&format!("{name} is {phase}"), || {
            let object: ImageCache = self.get(&self.team, name)?;
            let now = object.status.as_ref()?.phase.clone();
            if now != phase.to_string()
                && ["Failed", "Available"].contains(&now.as_str())
                && phase != Status::Deleting
            {
                self.show();
                panic!("{name} is {now}: {:?}", object.status.and_then(|status| status.message));
            }
            (now == phase.to_string()).then_some(object)
        })
    }

    /// Waits until no job, claim, snapshot, copy or secret of any image cache is left, and the storage is
    /// empty.
    pub(crate) fn nothing_left(&self) {
        self.until("no object is left", || {
            let own = self.own();
            let jobs = self.wait(self.api::<Job>(own).list(&Default::default())).unwrap();
            let claims = self.wait(self.api::<PersistentVolumeClaim>(own).list(&Default::default()));
            let snapshots = self.wait(self.api::<VolumeSnapshot>(own).list(&Default::default())).unwrap();
            let copies = self.wait(self.api::<VolumeSnapshot>(&self.team).list(&Default::default())).unwrap();
            let secrets = self.wait(self.api::<Secret>(own).list(&Default::default())).unwrap();
            let left =
                jobs.items.len() + claims.unwrap().items.len() + snapshots.items.len() + copies.items.len();
            (left + secrets.items.len() == 0).then_some(())
        });
        if let Some(fake) = &self.fake {
            self.until("the storage is empty", || (fake.stored_snapshots() == 0).then_some(()));
            assert_eq!(fake.torn_snapshots(), 0, "an owner was deleted before its copies");
        }
    }

    /// Prints the objects of the cluster, to help debug a failed test.
    pub(crate) fn show(&self) {
        let Some(fake) = &self.fake else { return };
        for (group, plural) in [
            ("larder.dev", "imagecaches"),
            ("batch", "jobs"),
            ("", "pods"),
            ("", "persistentvolumeclaims"),
            ("events.k8s.io", "events"),
            ("snapshot.storage.k8s.io", "volumesnapshots"),
            ("snapshot.storage.k8s.io", "volumesnapshotcontents"),
            ("coordination.k8s.io", "leases"),
        ] {
            for object in fake.peek_all(group, plural, "") {
                let meta = &object["metadata"];
                eprintln!(
                    "{plural} {}/{} deleting {} finalizers {} status {}{}",
                    meta["namespace"],
                    meta["name"],
                    meta["deletionTimestamp"],
                    meta["finalizers"],
                    object["status"],
                    object["note"]
                );
            }
        }
        eprintln!("{} snapshots in the storage", fake.stored_snapshots());
        let writes = |seen: &Seen| {
            ["create", "update", "patch", "delete"].contains(&seen.verb) && seen.resource != "leases"
        };
        let seen: Vec<Seen> = fake.seen().into_iter().filter(writes).collect();
        for seen in &seen[seen.len().saturating_sub(200)..] {
            eprintln!("seen {} {} {}/{}", seen.verb, seen.resource, seen.namespace, seen.name);
        }
    }
}
