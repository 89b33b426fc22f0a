//! Failed builds: limits of the cluster, errors of a builder, and recovery.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams};
use larder::caches::record::Record;
use larder::kubernetes::crd::ImageCache;
use larder::kubernetes::snapshot::VolumeSnapshot;
use larder_fake_kubernetes::{SnapshotOutcome, Timing};
use larder_model::class::Class;
use larder_model::image_cache::Status;
use larder_testing::image::{Format as ImageFormat, Image, Layer};
use larder_testing::layer::LayerBuilder;
use larder_testing::registry::Auth;
use serde_json::json;

use crate::harness::cluster::{Running, World, image, snapshot_name};
use crate::harness::filesystem::{FileSystem, Kind};
use crate::harness::served::random;
use crate::harness::{Need, isolated};

/// Waits until a cache has failed, and returns its class and its message.
pub(super) fn failed(world: &World, daemon: &Running, record: &Record) -> (Class, String) {
    let record = world.until("the cache has failed", || {
        let record = daemon.record(world, record);
        assert_ne!(record.status, Status::Available);
        (record.status == Status::Failed).then_some(record)
    });
    (record.class.unwrap(), record.message.unwrap())
}

/// Creates a world whose only node runs a script instead of `larder`, with the same arguments.
pub(super) fn scripted(script: &str) -> Option<World> {
    scripted_with(script, Timing::default())
}

fn scripted_with(script: &str, timing: Timing) -> Option<World> {
    let world = World::faked_with(image(), timing)?;
    world.fake().remove_node("node-a");
    let program = world.served.beside("program");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    world.add_node_with("node-b", program);
    Some(world)
}

/// Waits until a builder is running.
fn runs(world: &World) {
    world.until("it is running", || {
        let pods = world.fake().peek_all("", "pods", world.own());
        pods.iter().any(|pod| pod["status"]["phase"] == "Running").then_some(())
    });
}

#[case]
fn what_no_retry_heals_fails_at_once() {
    let world = World::new();
    let daemon = world.daemon();
    let mut spec = world.spec("web");
    let absent = format!("{}/absent:1", world.served.registry.host());
    spec.images = vec![absent.parse().unwrap()];
    let record = daemon.wait(daemon.service.create(&world.tenant(), spec, None)).unwrap();
    let (class, message) = failed(&world, &daemon, &record);
    assert_eq!(class, Class::NotFound);
    assert!(message.contains(&absent), "{message}");
    // Only the record is left.
    world.nothing_left();
    assert_eq!(daemon.record(&world, &record).status, Status::Failed);
}

#[case]
fn a_builder_that_dies_is_started_again() {
    // The kernel kills the first pod, the second fails with a transient error, the third seals.
    let larder = env!("CARGO_BIN_EXE_larder");
    let Some(world) = scripted(&format!(
        "[ $1 = verify ] && exec {larder} \"$@\"; n=$(cat $0.n 2>/dev/null || echo 0); echo $((n+1)) > $0.n; \
         [ $n = 0 ] && kill -9 $$; [ $n = 1 ] && exit 69; exec {larder} \"$@\""
    )) else {
        return;
    };
    let daemon = world.daemon();
    let record = daemon.create(&world, "web");
    world.phase("web", Status::Available);
    assert_eq!(daemon.record(&world, &record).content.unwrap().images.len(), 1);
    assert_eq!(fs::read_to_string(world.served.beside("program.n")).unwrap().trim(), "3");
}

#[case]
fn a_builder_that_never_succeeds_fails_the_cache() {
    let Some(world) = scripted("echo 'no such luck' >&2; exit 69") else { return };
    let daemon = world.daemon();
    let record = daemon.create(&world, "web");
    let (class, message) = failed(&world, &daemon, &record);
    assert_eq!(class, Class::Transient);
    assert!(message.contains("exit code 69") && message.contains("no such luck"), "{message}");
    assert_eq!(daemon.record(&world, &record).generation, 1);
}

/// A short timeout for things that never happen.
const SHORT_TIMEOUT: Duration = Duration::from_secs(3);

/// Sets a quota of 0 for this resource in Larder's namespace.
fn quota(world: &World, resource: &str) {
    world.fake().install(&json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "tight", "namespace": "larder"},
        "spec": {"hard": {resource: "0"}},
    }));
}

#[case]
fn a_pod_that_never_starts_is_reported() {
    // Each case is one thing that the cluster cannot do.
    type Break = fn(&mut World);
    let cases: [(&str, Break); 6] = [
        ("there is no StorageClass", |world| world.config.cluster[0].storage_class = "absent".into()),
        ("no storage class is set", |world| world.config.cluster[0].storage_class.clear()),
        ("ImagePullBackOff", |world| world.config.cluster[0].builder_image = "absent:1".into()),
        ("nodes", |world| world.fake().remove_node("node-a")),
        ("exceeded quota", |world| quota(world, "persistentvolumeclaims")),
        ("exceeded quota", |world| quota(world, "pods")),
    ];
    for (what, break_it) in cases {
        let Some(mut world) = World::faked() else { return };
        world.tuning.builds.pending = SHORT_TIMEOUT;
        break_it(&mut world);
        let daemon = world.daemon();
        let record = daemon.create(&world, "web");
        let (_, message) = failed(&world, &daemon, &record);
        assert!(message.contains(what), "want {what}: {message}");
        world.nothing_left();
    }
}

#[case]
fn a_waiting_build_reports_the_reason() {
    let Some(mut world) = World::faked() else { return };
    world.tuning.builds.report = Duration::from_millis(200);
    world.fake().remove_node("node-a");
    let daemon = world.daemon();
    daemon.create(&world, "web");
    let ready = || {
        let status = world.get::<ImageCache>(&world.team, "web")?.status?;
        Some((
            status.phase,
            status.conditions.into_iter().find(|condition| condition.type_ == "Ready")?.message,
        ))
    };
    let waits = world.until("the status shows the reason for the wait", || {
        ready().filter(|(_, message)| !message.is_empty())
    });
    assert_eq!(waits.0, "Creating");
    assert!(waits.1.contains("the builder does not start") && waits.1.contains("nodes"), "{}", waits.1);
    world.until("an event exists", || {
        let told = events_of(&world, "web");
        told.iter().any(|(reason, note)| reason == "Creating" && note.starts_with("waiting: ")).then_some(())
    });
    world.add_node("node-b");
    world.phase("web", Status::Available);
    assert_eq!(ready().unwrap(), ("Available".into(), String::new()));
    let told = events_of(&world, "web");
    for (reason, note) in
        [("Creating", "ordered"), ("Creating", "attempt 1 began"), ("Available", "sealed: ")]
    {
        let told = told.iter().filter(|(a, b)| a == reason && b.starts_with(note)).count();
        assert_eq!(told, 1, "{reason} {note}");
    }
}

#[case]
fn a_snapshot_that_is_waited_for_says_why() {
    let Some(mut world) = World::faked() else { return };
    world.tuning.builds.report = Duration::from_millis(200);
    let busy = SnapshotOutcome::Fails { message: "the array is busy".into(), times: u32::MAX };
    world.fake().decide_snapshot(busy);
    let daemon = world.daemon();
    daemon.create(&world, "web");
    world.until("the status shows the reason for the wait", || {
        let status = world.get::<ImageCache>(&world.team, "web")?.status?;
        let waiting = status.work?.waiting?;
        (waiting.starts_with("the snapshot is not ready: ") && waiting.contains("the array is busy"))
            .then_some(())
    });
}

/// Returns the reasons and messages of the events about an image cache.
fn events_of(world: &World, name: &str) -> Vec<(String, String)> {
    let events = world.wait(world.api::<Event>(&world.team).list(&ListParams::default())).unwrap();
    let about =
        |event: &&Event| event.regarding.as_ref().and_then(|about| about.name.as_deref()) == Some(name);
    let told = events.items.iter().filter(about);
    told.map(|event| (event.reason.clone().unwrap(), event.note.clone().unwrap())).collect()
}

#[case]
fn the_secret_of_a_job_is_missed() {
    let Some(mut world) = World::faked() else { return };
    world.tuning.builds.pending = SHORT_TIMEOUT;
    let daemon = world.daemon();
    // The Secret is deleted before the pod mounts it.
    world.fake().remove_node("node-a");
    let record = daemon.create(&world, "web");
    let name = format!("ic-{}", record.id);
    let secrets = world.api::<k8s_openapi::api::core::v1::Secret>(world.own());
    world.until("the secret exists", || world.wait(secrets.get_opt(&name)).unwrap());
    world.wait(secrets.delete(&name, &Default::default())).unwrap();
    world.add_node("node-b");
    let (_, message) = failed(&world, &daemon, &record);
    assert!(message.contains("FailedMount") && message.contains("secret"), "{message}");
}

#[case]
fn a_snapshot_that_heals_and_one_that_does_not() {
    let Some(mut world) = World::faked() else { return };
    let daemon = world.daemon();
    let refused = |times| SnapshotOutcome::Fails { message: "the array is busy".into(), times };
    world.fake().decide_snapshot(refused(3));
    daemon.create(&world, "heals");
    world.phase("heals", Status::Available);
    assert_eq!(daemon.stop(), Ok(()));
    world.tuning.builds.snapshot = SHORT_TIMEOUT;
    let daemon = world.daemon();
    world.fake().decide_snapshot(refused(u32::MAX));
    let record = daemon.create(&world, "web");
    let (class, message) = failed(&world, &daemon, &record);
    assert_eq!(class, Class::Transient);
    assert!(message.contains("the array is busy"), "{message}");
    world.until("its snapshot is deleted", || {
        let left = world.fake().peek_all("snapshot.storage.k8s.io", "volumesnapshots", world.own());
        (left.len() == 1).then_some(())
    });
}

#[case]
fn a_storage_that_does_not_answer() {
    let Some(mut world) = World::faked() else { return };
    world.tuning.builds.snapshot = SHORT_TIMEOUT;
    let daemon = world.daemon();
    world.fake().decide_snapshot(SnapshotOutcome::Hangs);
    let record = daemon.create(&world, "web");
    let (class, message) = failed(&world, &daemon, &record);
    assert_eq!(class, Class::Transient);
    assert!(message.contains("the snapshot was not ready within"), "{message}");
    // It is not known whether the storage has a snapshot, so the record stays until the storage answers.
    let api = world.api::<ImageCache>(&world.team);
    world.wait(api.delete("web", &Default::default())).unwrap();
    world.until("its snapshot is being deleted", || {
        let left = world.fake().peek_all("snapshot.storage.k8s.io", "volumesnapshots", world.own());
        left.iter().all(|one| one["metadata"]["deletionTimestamp"].is_string()).then_some(())
    });
    assert!(world.get::<ImageCache>(&world.team, "web").is_some());
    world.fake().heal_snapshots();
    world.until("it is gone", || world.get::<ImageCache>(&world.team, "web").is_none().then_some(()));
    world.nothing_left();
}

#[case]
fn what_the_storage_takes_its_time_for() {
    let Some(world) = World::faked() else { return };
    let daemon = world.daemon();
    // The snapshot is taken at once, but not ready before it is uploaded.
    world.fake().decide_snapshot(SnapshotOutcome::Uploads(Duration::from_secs(2)));
    daemon.create(&world, "web");
    let object = world.phase("web", Status::Available);
    let snapshot: VolumeSnapshot = world.get(world.own(), &snapshot_name(&object)).unwrap();
    assert!(snapshot.is_ready());
}

#[case]
fn a_node_is_lost_while_it_builds() {
    let Some(world) = scripted("exec sleep 600") else { return };
    let daemon = world.daemon();
    daemon.create(&world, "web");
    runs(&world);
    world.add_node("node-c");
    // The cloud provider reports the removal: the pods are disrupted, which does not count as an attempt.
    world.fake().remove_node("node-b");
    world.phase("web", Status::Available);
}

#[case]
fn a_builder_pod_that_is_deleted_while_it_runs() {
    // The first pod runs until it is stopped.
    let larder = env!("CARGO_BIN_EXE_larder");
    let script = format!("mkdir $0.first 2>/dev/null && exec sleep 600; exec {larder} \"$@\"");
    let Some(world) = scripted(&script) else { return };
    let daemon = world.daemon();
    daemon.create(&world, "web");
    runs(&world);
    let pods = world.api::<Pod>(world.own());
    let running = world.wait(pods.list(&ListParams::default())).unwrap().items.remove(0);
    world.wait(pods.delete(&running.name_any(), &DeleteParams::default())).unwrap();
    world.phase("web", Status::Available);
    let left = world.wait(pods.list(&ListParams::default())).unwrap().items;
    assert!(left.iter().all(|pod| pod.metadata.uid != running.metadata.uid));
}

#[case]
fn a_cancelled_build_leaves_nothing() {
    let Some(world) = scripted("exec sleep 600") else { return };
    let (one, two) = (world.daemon(), world.daemon());
    let record = one.create(&world, "web");
    runs(&world);
    // Send the request to the daemon that does not run the build.
    let other = if one.service.leads() { &two } else { &one };
    other.wait(other.service.cancel(&world.tenant(), record.id)).unwrap();
    assert_eq!(one.record(&world, &record).status, Status::Failed);
    world.nothing_left();
    assert!(world.get::<Job>(world.own(), &format!("ic-{}", record.id)).is_none());
}

#[case]
fn pull_secrets_by_name() {
    let Some(mut world) = World::faked() else { return };
    world.served.registry.require(Auth::Basic(vec![("user".into(), "swordfish".into())]));
    let host = world.served.registry.host();
    let secret = |namespace: &str, name: &str, annotations: serde_json::Value| {
        use base64::Engine as _;
        let auth = base64::prelude::BASE64_STANDARD.encode("user:swordfish");
        let config = json!({"auths": {&host: {"auth": auth}}}).to_string();
        world.fake().install(&json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
            "metadata": {"name": name, "namespace": namespace, "annotations": annotations},
            "data": {".dockerconfigjson": base64::prelude::BASE64_STANDARD.encode(config)},
        }));
    };
    secret("team-a", "registry", json!({}));
    secret("team-b", "registry", json!({}));
    secret("team-a", "hidden", json!({}));
    let tenant = larder::config::tenant::Tenant {
        name: "team-a".into(),
        pull_secrets: vec!["team-a:*".into()],
        ..Default::default()
    };
    world.config.tenant.push(tenant);
    let daemon = world.daemon();
    let order = |name: &str, secrets: &[&str]| {
        let mut spec = world.spec(name);
        spec.pull_secrets = secrets.iter().map(|text| (*text).to_owned()).collect();
        daemon.wait(daemon.service.create(&world.tenant(), spec, None)).unwrap()
    };
    // Absent, forbidden, of another tenant, or malformed: the message is the same for all.
    let bad = ["nonsense", "team-a:absent", "team-a:hidden", "team-b:registry"];
    let record = order("denied", &bad);
    let (class, message) = failed(&world, &daemon, &record);
    assert_eq!(class, Class::Denied);
    assert!(message.contains("(no credential was found in the pull secret nonsense, team-a:absent, team-a:hidden, team-b:registry)"), "{message}");
    order("allowed", &["team-a:absent", "team-a:registry"]);
    world.phase("allowed", Status::Available);

    // Orders by object can use a secret of their own namespace, or of another one that allows it.
    let apply = |name: &str, secret: &str| {
        let mut object = world.object(name);
        object.spec.image_pull_secrets = vec![secret.to_owned()];
        world.apply(&object);
    };
    apply("own", "team-a:registry");
    world.phase("own", Status::Available);
    apply("foreign", "team-b:registry");
    world.phase("foreign", Status::Failed);
    let patch = json!({"metadata": {"annotations": {"larder.dev/pull-by": "team-a"}}});
    let secrets = world.api::<k8s_openapi::api::core::v1::Secret>("team-b");
    world.wait(secrets.patch("registry", &Default::default(), &kube::api::Patch::Merge(&patch))).unwrap();
    apply("agreed", "team-b:registry");
    world.phase("agreed", Status::Available);
    // The password is only in the secrets of the tenants.
    for (group, plural) in [
        ("larder.dev", "imagecaches"),
        ("batch", "jobs"),
        ("", "configmaps"),
        ("", "events"),
        ("snapshot.storage.k8s.io", "volumesnapshots"),
    ] {
        for object in world.fake().peek_all(group, plural, "") {
            assert!(!object.to_string().contains("swordfish"), "{object}");
        }
    }
}

#[case]
fn a_volume_that_is_full() {
    isolated(&[Need::Root], || {
        let disk = FileSystem::new(Kind::Ext4 { inodes: 1000 }, 4 << 20);
        let big = Layer::from(LayerBuilder::new().file("big", random(1, 6 << 20)).gzip());
        let image = Image::builder(ImageFormat::Oci).layer(big).build();
        let Some(world) = World::faked_with(image, Timing::default()) else { return };
        world.fake().put_volumes(&disk.path());
        let daemon = world.daemon();
        let record = daemon.create(&world, "web");
        let (class, message) = failed(&world, &daemon, &record);
        assert_eq!(class, Class::NoSpace, "{message}");
        world.nothing_left();
    });
}

#[case]
fn an_unreachable_node() {
    let Some(world) = scripted("exec sleep 600") else { return };
    let daemon = world.daemon();
    daemon.create(&world, "web");
    runs(&world);
    world.add_node("node-c");
    // Its pods are marked for deletion but stay, because no kubelet reports their end. Then an administrator
    // removes the node.
    world.fake().lose_node("node-b");
    world.until("its pod is being deleted", || {
        let pods = world.fake().peek_all("", "pods", world.own());
        pods.iter().any(|pod| pod["metadata"]["deletionTimestamp"].is_string()).then_some(())
    });
    world.fake().remove_node("node-b");
    world.phase("web", Status::Available);
}

#[case]
fn a_node_that_never_comes_back() {
    // The Job reaches its deadline after 17 s, and waits for a pod that never reports.
    let timing = Timing { second: Duration::from_millis(4), ..Timing::default() };
    let Some(mut world) = scripted_with("exec sleep 600", timing) else { return };
    world.tuning.builds.pending = SHORT_TIMEOUT;
    world.config.caches.build_timeout_minutes = 60;
    let daemon = world.daemon();
    let record = daemon.create(&world, "web");
    runs(&world);
    world.fake().lose_node("node-b");
    let (class, message) = failed(&world, &daemon, &record);
    assert_eq!(class, Class::Busy);
    assert!(message.contains("DeadlineExceeded") && message.contains("its node"), "{message}");
    // The remaining objects are deleted when the node is removed.
    world.fake().remove_node("node-b");
    world.nothing_left();
}

#[case]
fn a_builder_that_does_not_end_in_time() {
    // The Job's own deadline, in case the builder's deadline did not work. The pod and its output are gone.
    let timing = Timing { second: Duration::from_millis(4), ..Timing::default() };
    let Some(mut world) = scripted_with("exec sleep 600", timing) else { return };
    world.config.caches.build_timeout_minutes = 60;
    let daemon = world.daemon();
    let record = daemon.create(&world, "web");
    let (class, message) = failed(&world, &daemon, &record);
    assert_eq!(class, Class::Busy);
    assert!(message.contains("did not end within its time"), "{message}");
    world.nothing_left();
}

#[case]
fn exit_codes_decide_about_retries() {
    // model::class: permanent errors end the Job at once; other errors are retried as often as configured.
    for (code, pods) in [(64, 1), (65, 1), (73, 1), (77, 1), (69, 3), (70, 3), (75, 3)] {
        let Some(world) = scripted(&format!("echo >> $0.n; exit {code}")) else { return };
        assert_eq!(world.config.caches.build_retries, 2);
        let daemon = world.daemon();
        let record = daemon.create(&world, "web");
        let (_, message) = failed(&world, &daemon, &record);
        assert!(message.contains(&format!("exit code {code}")), "{message}");
        let begun = fs::read_to_string(world.served.beside("program.n")).unwrap().lines().count();
        assert_eq!(begun, pods, "exit code {code}");
    }
}

#[case]
fn memory_that_has_run_out() {
    let Some(mut world) = scripted("exec sleep 600") else { return };
    world.config.caches.build_retries = 0;
    let daemon = world.daemon();
    let record = daemon.create(&world, "web");
    runs(&world);
    let pods = world.fake().peek_all("", "pods", world.own());
    world.fake().kill(world.own(), pods[0]["metadata"]["name"].as_str().unwrap(), true);
    let (_, message) = failed(&world, &daemon, &record);
    assert!(message.contains("137 (OOMKilled)"), "{message}");
    world.nothing_left();
}
