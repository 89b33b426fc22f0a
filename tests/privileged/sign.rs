//! Disks with a signed volume: the signature is on the disk, and next to it.

use std::fs;
use std::path::Path;
use std::process::Command;

use larder_testing::registry::Fault;

use crate::harness::served::Served;
use crate::harness::{exits, larder, succeed};
use crate::served::{Filling, SIZE, build, image, wait_for_release, with_disks};

fn key(served: &Served) -> String {
    succeed(larder().args(["key", "generate"]).arg(served.beside("key"))).trim().to_owned()
}

fn signed(served: &Served, volume: &Path) -> Command {
    let mut command = build(served, volume, SIZE);
    command.arg("--sign-key").arg(served.beside("key"));
    command
}

fn verify(volume: &Path, key: &str) -> Command {
    let mut verify = larder();
    verify.arg("verify").arg(volume).args(["--trust", key]);
    verify
}

#[case]
fn a_disk_is_signed_on_it_and_next_to_it() {
    with_disks(|| {
        let served = Served::new([image(2, 100)]);
        let key = key(&served);
        for flag in ["--shrink", "--sparse"] {
            let volume = served.beside(&flag[2..]);
            succeed(signed(&served, &volume).args([flag, "--verify-after"]));
            wait_for_release(&volume);
            let beside = volume.join("cache.json.sig");
            succeed(&mut verify(&volume, &key));
            succeed(&mut verify(&volume.join("disk.img"), &key));
            // The same command succeeds again. With another key it always fails.
            succeed(signed(&served, &volume).arg(flag));
            let mut other = build(&served, &volume, SIZE);
            succeed(larder().args(["key", "generate"]).arg(served.beside(&format!("other{flag}"))));
            let said = exits(73, other.arg("--sign-key").arg(served.beside(&format!("other{flag}"))));
            assert!(said.contains("sealed already"), "{said}");
            // One signature without the other.
            let sound = fs::read(&beside).unwrap();
            fs::remove_file(&beside).unwrap();
            let said = exits(65, &mut verify(&volume, &key));
            assert!(said.contains("differs from the one next to it"), "{said}");
            fs::write(&beside, &sound).unwrap();
            succeed(&mut verify(&volume, &key));
            wait_for_release(&volume);
        }
        // A signature next to an unsigned disk does not make it signed.
        let plain = served.beside("plain");
        succeed(&mut build(&served, &plain, SIZE));
        fs::copy(served.beside("shrink").join("cache.json.sig"), plain.join("cache.json.sig")).unwrap();
        exits(65, &mut verify(&plain, &key));
    });
}

#[case]
fn a_disk_that_was_killed_is_signed_when_it_is_done() {
    with_disks(|| {
        let served = Served::new([image(3, 100)]);
        let key = key(&served);
        let volume = served.volume();
        let last = served.images[0].layers.last().unwrap();
        served.registry.fault(Fault::StallAt { digest: last.digest.clone(), offsets: vec![10_000] });
        let mut filling = Filling::start(&mut signed(&served, &volume), served.beside("events"));
        assert!(filling.told("layer_committed", 2), "the build ended");
        filling.supervisor.kill();
        served.registry.heal();
        // Leftovers of an interrupted seal next to the disk.
        fs::write(volume.join("cache.json.sig"), "old").unwrap();
        fs::write(volume.join("cache.json.sig.tmp"), "half").unwrap();
        succeed(&mut signed(&served, &volume));
        succeed(&mut verify(&volume, &key));
        wait_for_release(&volume);
    });
}

#[case]
fn a_device_is_signed() {
    with_disks(|| {
        let served = Served::new([image(2, 100)]);
        let key = key(&served);
        let file = served.beside("device");
        fs::File::create(&file).unwrap().set_len(SIZE).unwrap();
        let device = succeed(Command::new("losetup").args(["--find", "--show"]).arg(&file));
        let device = device.trim();
        let mut command = served.build(Path::new(device), SIZE);
        command.args(["--volume-kind", "block", "--sign-key"]).arg(served.beside("key"));
        let built = command.output().unwrap();
        let proven = verify(Path::new(device), &key).output().unwrap();
        succeed(Command::new("losetup").args(["--detach", device]));
        assert!(built.status.success() && proven.status.success(), "{built:?} {proven:?}");
    });
}
