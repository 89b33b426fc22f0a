//! Daemons that are killed or lose the lease, and API servers that fail.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{DeleteParams, Patch, PatchParams};
use larder::kubernetes::crd::ImageCache;
use larder_fake_kubernetes::{Effect, Fault, RequestMatcher};
use larder_model::image_cache::Status;
use serde_json::json;

use crate::harness::cluster::{LARDER, World, kill_daemon};

/// A lease duration that expires soon.
const SHORT: Duration = Duration::from_secs(3);

/// Returns the number of requests of Larder that changed an object, except leases, which change all the time.
fn changes(world: &World) -> usize {
    let writes = ["create", "update", "patch", "delete"];
    let seen = world.fake().seen();
    seen.iter()
        .filter(|seen| seen.user == LARDER && writes.contains(&seen.verb) && seen.resource != "leases")
        .count()
}

/// Runs a cache from order to deletion, with a daemon that is killed after its `kill`th change. Returns false
/// if there were fewer changes.
fn killed_after(kill: usize) -> bool {
    let Some(world) = World::faked() else { return false };
    let mut first = world.daemon();
    world.apply(&world.object("web"));
    let mut died = false;
    world.until("it is built", || {
        if !died && changes(&world) >= kill {
            kill_daemon(&world, &mut first, true);
            died = true;
            return Some(());
        }
        let status = world.get::<ImageCache>(&world.team, "web")?.status?;
        (status.phase == "Available").then_some(())
    });
    let mut second = world.daemon();
    let object = world.until("it is built", || {
        let object: ImageCache = world.get(&world.team, "web")?;
        (object.status.as_ref()?.phase == Status::Available.to_string()).then_some(object)
    });
    let snapshots = world.fake().peek_all("snapshot.storage.k8s.io", "volumesnapshots", world.own());
    assert_eq!(snapshots.len(), 1, "after {kill}");
    let digest = object.status.unwrap().content.unwrap().digest;
    assert!(digest.starts_with("sha256:"));
    let mut killed_again = false;
    let before = changes(&world);
    let api = world.api::<ImageCache>(&world.team);
    world.wait(api.delete("web", &DeleteParams::default())).unwrap();
    world.until("the object is gone", || {
        // The deletion is interrupted, too.
        let kill_again = !killed_again && changes(&world) > before + kill % 5;
        if kill_again {
            kill_daemon(&world, &mut second, true);
            killed_again = true;
            second = world.daemon();
        }
        world.get::<ImageCache>(&world.team, "web").is_none().then_some(())
    });
    world.nothing_left();
    died
}

#[case]
fn a_daemon_is_killed_at_every_step() {
    let mut kill = 1;
    while killed_after(kill) {
        kill += 1;
    }
    assert!(kill > 8 || World::faked().is_none(), "there were only {kill} steps");
}

#[case]
fn the_lease_of_a_killed_daemon_expires_first() {
    let mut world = World::new();
    world.tuning.lease = SHORT;
    let mut first = world.daemon();
    world.until("it is the leader", || {
        if first.has_ended() {
            first = world.daemon();
        }
        first.service.leads().then_some(())
    });
    first.kill();
    world.tuning.lease = Duration::from_secs(20);
    let second = world.daemon();
    world.until("the next daemon is the leader", || second.service.leads().then_some(()));
    second.create(&world, "web");
    world.phase("web", Status::Available);
}

#[case]
fn a_daemon_that_loses_the_lease_stops() {
    let Some(world) = World::faked() else { return };
    let first = world.daemon();
    world.until("it is the leader", || first.service.leads().then_some(()));
    let second = world.daemon();
    let meets = RequestMatcher { resource: "leases", user: LARDER.into(), ..RequestMatcher::default() };
    world.fake().fault(Fault { meets, harm: Effect::Broken, after: 0, times: u32::MAX });
    let ended = first.ends();
    assert!(ended.unwrap_err().contains("lease"), "the daemon continued");
    world.fake().heal();
    world.until("the next daemon is the leader", || second.service.leads().then_some(()));
    second.create(&world, "web");
    world.phase("web", Status::Available);
}

#[case]
fn a_lease_that_is_taken_away() {
    let world = World::new();
    let first = world.daemon();
    world.until("it is the leader", || first.service.leads().then_some(()));
    let patch = json!({"spec": {"holderIdentity": "somebody", "leaseDurationSeconds": 3}});
    let leases = world.api::<Lease>(world.own());
    world.wait(leases.patch("larder", &PatchParams::default(), &Patch::Merge(&patch))).unwrap();
    assert!(first.ends().unwrap_err().contains("lease"), "the daemon continued");
    // Its holder never renews the lease.
    let second = world.daemon();
    world.until("the next daemon is the leader", || second.service.leads().then_some(()));
}

#[case]
fn a_stopped_daemon_releases_the_lease_at_once() {
    let mut world = World::new();
    world.tuning.lease = Duration::from_secs(600);
    let first = world.daemon();
    world.until("it is the leader", || first.service.leads().then_some(()));
    first.create(&world, "web");
    // The new daemon polls the lease often enough, but would wait long for it to expire.
    assert_eq!(first.stop(), Ok(()));
    world.tuning.lease = Duration::from_secs(20);
    let second = world.daemon();
    world.until("the next daemon is the leader", || second.service.leads().then_some(()));
    // The build that was in progress continues.
    world.phase("web", Status::Available);
}

#[case]
fn a_failing_api_server_is_retried() {
    // Reads never conflict.
    let conflicts = ["update", "patch"].map(|verb| (verb, Effect::Conflict));
    let others = [Effect::Broken, Effect::Busy(1), Effect::NoAnswer, Effect::Refused, Effect::Unauthorized];
    for (verb, harm) in conflicts.into_iter().chain(others.map(|harm| ("", harm))) {
        let Some(world) = World::faked() else { return };
        let daemon = world.daemon();
        world.until("it is the leader", || daemon.service.leads().then_some(()));
        // Every third request of any type fails.
        for after in 0..20 {
            let meets = RequestMatcher { verb, user: LARDER.into(), ..RequestMatcher::default() };
            world.fake().fault(Fault { meets, harm: harm.clone(), after: after * 3, times: 1 });
        }
        world.apply(&world.object("web"));
        world.phase("web", Status::Available);
        let api = world.api::<ImageCache>(&world.team);
        world.wait(api.delete("web", &DeleteParams::default())).unwrap();
        world.until("the object is gone", || {
            world.get::<ImageCache>(&world.team, "web").is_none().then_some(())
        });
        world.nothing_left();
    }
}

#[case]
fn watches_that_break_miss_nothing() {
    let Some(world) = World::faked() else { return };
    let daemon = world.daemon();
    world.until("it is the leader", || daemon.service.leads().then_some(()));
    for round in 0..4 {
        match round % 4 {
            0 => world.fake().cut_watches(),
            1 => world.fake().expire_watches(),
            2 => {
                world.fake().compact();
                world.fake().cut_watches();
            }
            _ => {
                world.fake().fault(Fault::once("watch", "imagecaches", Effect::CutAfter(0)).times(3));
                world.fake().cut_watches();
            }
        }
        let name = format!("web-{round}");
        world.apply(&world.object(&name));
        world.phase(&name, Status::Available);
    }
}
