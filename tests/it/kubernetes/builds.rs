//! From an order to a snapshot, and away again.

use std::fs;

use k8s_openapi::api::batch::v1::Job;
use larder::kubernetes::snapshot::VolumeSnapshot;
use larder::model::image_cache::Status;
use larder::model::seal::CacheManifest;

use crate::harness::cluster::{World, snapshot_name};

#[test]
fn ordered_by_the_api() {
    let world = World::new();
    let daemon = world.daemon();
    let record = daemon.create(&world, "web");
    assert_eq!(record.status, Status::Creating);
    let object = world.phase("web", Status::Available);
    let status = object.status.clone().unwrap();
    let content = status.content.unwrap();
    let snapshot = content.snapshot.unwrap();
    assert_eq!(
        (snapshot.namespace.as_str(), snapshot.name.as_str()),
        (world.own(), snapshot_name(&object).as_str())
    );
    assert_eq!((status.images.len(), content.layers.len(), content.totals.layers), (1, 2, 2));
    assert_eq!((status.images[0].layers, status.images[0].layers_done), (2, 2));

    // The copy in the tenant's namespace, by the same handle.
    let copy = world.until("the copy is ready", || {
        world.get::<VolumeSnapshot>(&world.team, &snapshot.name).filter(VolumeSnapshot::is_ready)
    });
    assert!(copy.spec.source.volume_snapshot_content_name.is_some());
    let object = world.until("the copy is told", || {
        let object: larder::kubernetes::crd::ImageCache = world.get(&world.team, "web")?;
        object.status.as_ref()?.copies.iter().any(|copy| copy.ready).then_some(object)
    });
    assert_eq!(object.status.unwrap().copies[0].namespace, world.team);

    // What it was made from is gone.
    world.until("the job is gone", || world.get::<Job>(world.own(), &snapshot.name).is_none().then_some(()));
    if !world.is_real() {
        // It is the sealed volume, cut when nothing was attached any more.
        let stored = world.fake().stored(&snapshot.handle).unwrap();
        let seal = CacheManifest::parse(&fs::read(stored.path.join("cache.json")).unwrap()).unwrap();
        assert_eq!(seal.digest.to_string(), content.digest);
        assert!(!stored.attached);
    }
    let seen = daemon.record(&world, &record);
    assert_eq!(seen.content.unwrap().images.len(), 1);

    daemon.wait(daemon.service.delete(&world.tenant(), record.id)).unwrap();
    world.until("the record is gone", || {
        world.get::<larder::kubernetes::crd::ImageCache>(&world.team, "web").is_none().then_some(())
    });
    world.nothing_left();
    assert_eq!(daemon.stop(), Ok(()));
}
