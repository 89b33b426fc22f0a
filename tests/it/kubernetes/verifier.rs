//! The pod that verifies a volume before a snapshot of it is taken.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt as _;
use larder::kubernetes::crd::ImageCache;
use larder::kubernetes::names::VERIFIED;
use larder::kubernetes::snapshot::VolumeSnapshot;
use larder_model::class::Class;
use larder_model::image_cache::Status;
use larder_model::job::LayerFormat;
use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use serde_json::json;

use super::failures::{failed, scripted};
use crate::harness::cluster::{World, kill_daemon, snapshot_name};
use crate::harness::served::{Served, cache, change_times};
use crate::harness::{Need, isolated, larder, succeed};

/// Returns the number of requests that create a snapshot in Larder's namespace.
fn snapshots_made(world: &World) -> usize {
    let seen = world.fake().seen().into_iter();
    let made =
        seen.filter(|seen| seen.resource == "volumesnapshots" && ["patch", "create"].contains(&seen.verb));
    made.filter(|seen| seen.namespace == world.own()).count()
}

#[case]
fn a_cache_is_available_after_a_second_pod_has_verified_it() {
    let larder = env!("CARGO_BIN_EXE_larder");
    let Some(world) = scripted(&format!(
        "[ $1 = verify ] && while [ ! -e $0.go ]; do sleep 0.02; done; exec {larder} \"$@\""
    )) else {
        return;
    };
    let mut daemon = world.daemon();
    let record = daemon.create(&world, "web");
    let name = format!("ic-{}", record.id);
    let pod = world.until("the verifier runs", || {
        let mut pods = world.fake().peek_all("", "pods", world.own()).into_iter();
        pods.find(|pod| {
            pod["metadata"]["labels"]["app.kubernetes.io/name"] == "larder-verifier"
                && pod["status"]["phase"] == "Running"
        })
    });
    // It has the volume, read-only, and none of the other mounts of a builder.
    let spec = &pod["spec"];
    let claim = json!({"claimName": name, "readOnly": true});
    assert_eq!(spec["volumes"][0]["persistentVolumeClaim"], claim);
    let volumes: Vec<&str> =
        spec["volumes"].as_array().unwrap().iter().map(|volume| volume["name"].as_str().unwrap()).collect();
    assert_eq!(volumes, ["cache", "tmp"]);
    assert_eq!(spec["automountServiceAccountToken"], false);
    let owner: Job = world.get(world.own(), &format!("{name}-verify")).unwrap();
    assert_eq!(owner.owner_references()[0].name, name);
    // No snapshot is taken before it ends.
    assert_eq!(snapshots_made(&world), 0);
    assert_eq!(daemon.record(&world, &record).status, Status::Creating);
    // A daemon that takes over continues with the same verifier.
    kill_daemon(&world, &mut daemon, true);
    let second = world.daemon();
    world.until("the next daemon is the leader", || second.service.leads().then_some(()));
    fs::write(world.served.beside("program.go"), "").unwrap();
    let object = world.phase("web", Status::Available);
    let digest = object.status.as_ref().unwrap().content.as_ref().unwrap().digest.clone();
    let snapshot: VolumeSnapshot = world.get(world.own(), &snapshot_name(&object)).unwrap();
    assert_eq!(snapshot.annotations()[VERIFIED], digest);
    let seen = world.fake().seen().into_iter();
    let made = seen.filter(|seen| seen.name == format!("{name}-verify") && seen.verb == "patch");
    assert_eq!(made.count(), 1, "expected one verifier");
    world.wait(world.api::<ImageCache>(&world.team).delete("web", &Default::default())).unwrap();
    world.until("it is gone", || world.get::<ImageCache>(&world.team, "web").is_none().then_some(()));
    world.nothing_left();
}

#[case]
fn a_builder_that_was_taken_over_gets_nothing_out() {
    let larder = env!("CARGO_BIN_EXE_larder");
    let build =
        format!("[ $1 = verify ] && exec {larder} \"$@\"; {larder} \"$@\" || exit; for a; do case $a in");
    for (what, script, class, want) in [
        (
            "a file of a layer changed after the seal",
            format!(
                "{build} --volume=*) f=$(find \"${{a#*=}}/overlay\" -name 'f-0'); echo evil >>\"$f\";; esac; done"
            ),
            Class::Corrupt,
            "the volume failed verification: ",
        ),
        (
            "a reported digest that differs from the volume's",
            format!(
                "{build} --result-file=*) t=$(sed 's/\"digest\":\"sha256:...../\"digest\":\"sha256:00000/' \"${{a#*=}}\"); \
                 echo \"$t\" >\"${{a#*=}}\";; esac; done"
            ),
            Class::Corrupt,
            "the volume failed verification: the volume contains the cache sha256:",
        ),
        (
            "a verifier that never succeeds",
            format!("[ $1 = verify ] && {{ echo >>$0.n; exit 70; }}; exec {larder} \"$@\""),
            Class::Internal,
            "the verifier ended with exit code 70",
        ),
    ] {
        let Some(world) = scripted(&script) else { return };
        let daemon = world.daemon();
        let record = daemon.create(&world, "web");
        let (failed, message) = failed(&world, &daemon, &record);
        assert_eq!(failed, class, "{what}: {message}");
        assert!(message.starts_with(want), "{what}: {message}");
        assert_eq!(snapshots_made(&world), 0, "{what}");
        world.nothing_left();
        // As many attempts as for a builder.
        if class == Class::Internal {
            let begun = fs::read_to_string(world.served.beside("program.n")).unwrap().lines().count();
            assert_eq!(begun, 3);
        }
    }
}

/// A build that a version without verifiers began, and whose snapshot still waits for its storage.
#[case]
fn an_unverified_snapshot_does_not_count() {
    let Some(world) = World::faked() else { return };
    let daemon = world.daemon();
    world.until("it is the leader", || daemon.service.leads().then_some(()));
    // The build waits, because no node runs its pods.
    world.fake().remove_node("node-a");
    let record = daemon.create(&world, "web");
    let name = format!("ic-{}", record.id);
    world.until("the job exists", || world.get::<Job>(world.own(), &name));
    daemon.stop().unwrap();
    let result = json!({"status": "ok", "exit_code": 0, "message": "", "failures": [], "images": [],
        "digest": format!("sha256:{}", "0".repeat(64)), "elapsed_ms": 1});
    world.fake().install(&json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
        "metadata": {"name": name, "namespace": world.own(), "annotations": {"larder.dev/result": result.to_string()}},
        "spec": {"volumeSnapshotClassName": "csi", "source": {"persistentVolumeClaimName": name}},
    }));
    let daemon = world.daemon();
    let (class, message) = failed(&world, &daemon, &record);
    assert_eq!(class, Class::Conflict, "{message}");
    assert!(message.contains("without a verification"), "{message}");
    world.nothing_left();
}

/// A read-only mount and one capability are enough for a verifier, because without the capability root cannot
/// read the files of others. EROFS images need no capability.
#[case]
fn the_rights_of_a_verifier_are_enough() {
    isolated(&[Need::Root, Need::Program("setpriv")], || {
        let layer = LayerBuilder::new().owner(1000, 1000).mode(0o600).file("secret", "x");
        let layer = layer.mode(0o700).dir("closed").mode(0o000).file("closed/f", "y");
        let image = || Image::builder(Format::Oci).layer(Layer::from(layer.clone().gzip())).build();
        for (form, rights) in [
            (LayerFormat::Overlay, ["--bounding-set", "-all,+dac_override"].as_slice()),
            (
                LayerFormat::Erofs,
                ["--reuid", "65532", "--regid", "65532", "--clear-groups", "--bounding-set", "-all"]
                    .as_slice(),
            ),
        ] {
            let served = Served::new([image()]).with(form);
            let volume = served.volume();
            succeed(&mut served.build(&volume, 64 << 20));
            if form == LayerFormat::Erofs {
                // The builder is the same user.
                succeed(Command::new("chown").args(["-R", "65532:65532"]).arg(&volume));
            }
            let readable = fs::Permissions::from_mode(0o755);
            let dir = tempfile::Builder::new().permissions(readable).tempdir().unwrap();
            let (at, program) = (dir.path().join("cache"), dir.path().join("larder"));
            fs::create_dir(&at).unwrap();
            // `cp` writes the copy: in this process, a concurrent fork would keep it open for writing.
            succeed(Command::new("cp").arg(larder().get_program()).arg(&program));
            succeed(Command::new("mount").args(["--bind", "-o", "ro"]).args([&volume, &at]));
            let before = change_times(&at);
            let digest = format!("--digest={}", cache(&volume).digest);
            let mut verify = Command::new("setpriv");
            verify.args(rights).arg(&program).args(["verify", &digest]).arg(&at);
            let said = succeed(&mut verify);
            assert!(said.contains(": OK ("), "{said}");
            assert_eq!(change_times(&at), before);
            succeed(Command::new("umount").arg(&at));
        }
    });
}
