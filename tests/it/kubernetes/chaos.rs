//! All faults at once: killed daemons, a failing API server, broken watches, and tenants that create and
//! delete caches. Afterwards every cache that is still wanted exists once, and nothing is left of the others.

use std::env;
use std::thread::sleep;
use std::time::Duration;

use kube::ResourceExt as _;
use kube::api::DeleteParams;
use larder::kubernetes::crd::ImageCache;
use larder::kubernetes::snapshot::VolumeSnapshot;
use larder_fake_kubernetes::{Effect, Fault, RequestMatcher};
use larder_model::image_cache::Status;

use crate::harness::cluster::{LARDER, World, kill_daemon};

const CACHES: u64 = 4;
const ROUNDS: usize = 60;

/// A pseudorandom number generator: the same numbers for one seed.
struct Random(u64);

impl Random {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// Returns a random fault. Reads never conflict, and only lists and watches get 410.
fn fault(dice: &mut Random) -> Fault {
    let (verb, harm) = match dice.roll(9) {
        0 => ("update", Effect::Conflict),
        1 => ("patch", Effect::Conflict),
        2 => ("watch", Effect::Gone),
        3 => ("watch", Effect::CutAfter(usize::try_from(dice.roll(4)).unwrap())),
        4 => ("", Effect::Busy(1)),
        5 => ("", Effect::Broken),
        6 => ("", Effect::NoAnswer),
        7 => ("", Effect::Refused),
        _ => ("", Effect::Slow(Duration::from_millis(dice.roll(500)))),
    };
    let meets = RequestMatcher { verb, user: LARDER.into(), ..RequestMatcher::default() };
    Fault {
        meets,
        harm,
        after: u32::try_from(dice.roll(20)).unwrap(),
        times: u32::try_from(1 + dice.roll(4)).unwrap(),
    }
}

fn run_seed(seed: u64) {
    let Some(mut world) = World::faked() else { return };
    // This test needs many attempts.
    (world.config.caches.build_retries, world.config.caches.build_retry_pause_seconds) = (1000, 1);
    let mut dice = Random(seed);
    let api = world.api::<ImageCache>(&world.team);
    let mut daemons = [world.daemon(), world.daemon()];
    for _ in 0..ROUNDS {
        let name = format!("web-{}", dice.roll(CACHES));
        match dice.roll(8) {
            0 => world.fake().cut_watches(),
            1 => world.fake().expire_watches(),
            2 => world.fake().compact(),
            3 => {
                let daemon = &mut daemons[usize::from(dice.roll(2) == 0)];
                kill_daemon(&world, daemon, false);
                *daemon = world.daemon();
            }
            4 | 5 => world.fake().fault(fault(&mut dice)),
            6 => {
                // The object exists already, or is being deleted.
                let _ = world.wait(api.create(&Default::default(), &world.object(&name)));
            }
            _ => {
                let _ = world.wait(api.delete(&name, &DeleteParams::default()));
            }
        }
        for daemon in daemons.iter_mut().filter(|daemon| daemon.has_ended()) {
            *daemon = world.daemon();
        }
        sleep(Duration::from_millis(dice.roll(150)));
    }
    world.fake().heal();
    let [mut one, mut two] = daemons;
    let mut settled = |what: &str, done: &dyn Fn(&[ImageCache]) -> bool| {
        world.until(&format!("seed {seed}: {what}"), || {
            for daemon in [&mut one, &mut two].into_iter().filter(|daemon| daemon.has_ended()) {
                *daemon = world.daemon();
            }
            let all = world.wait(api.list(&Default::default())).unwrap().items;
            done(&all).then_some(all)
        })
    };
    let all = settled("all are there or gone", &|all| {
        all.iter().all(|object| {
            let phase = object.status.as_ref().map_or("", |status| status.phase.as_str());
            assert_ne!(phase, Status::Failed.to_string(), "seed {seed}: {:?}", object.status);
            phase == Status::Available.to_string() && object.metadata.deletion_timestamp.is_none()
        })
    });
    for object in &all {
        let name = format!("ic-{}", object.uid().unwrap());
        world.until("its copy is ready", || {
            world.get::<VolumeSnapshot>(&world.team, &name).filter(VolumeSnapshot::is_ready)
        });
    }
    world.until("each cache has one snapshot", || {
        (world.fake().stored_snapshots() == all.len()).then_some(())
    });
    for object in &all {
        world.wait(api.delete(&object.name_any(), &DeleteParams::default())).unwrap();
    }
    settled("all are gone", &<[ImageCache]>::is_empty);
    world.nothing_left();
}

#[case]
fn what_is_asked_for_is_there_once() {
    // `LARDER_TEST_SEED=7` runs only this seed.
    let told = env::var("LARDER_TEST_SEED").map(|seed| vec![seed.parse().unwrap()]);
    for seed in told.unwrap_or_else(|_| vec![1, 20, 300]) {
        run_seed(seed);
    }
}
