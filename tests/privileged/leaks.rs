//! Failed builds leave no resources on the machine, however often they fail.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use larder_testing::registry::Fault;
use nix::sys::signal::Signal;

use crate::harness::served::{Running, Served};
use crate::harness::{exits, larder, succeed};
use crate::served::{Filling, SIZE, build, image, loops, wait_for_release, with_disks};

fn in_use() -> (usize, usize) {
    let loops = loops(std::path::Path::new("/")).len();
    (loops, fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count())
}

#[case]
fn fifty_failing_builds_leave_nothing() {
    with_disks(|| {
        let served = Served::new([image(3, 200)]);
        let large = Served::new([image(3, 4000)]);
        let volume = served.volume();
        let before = in_use().1;
        let last = served.images[0].layers.last().unwrap().digest.clone();
        for round in 0..50 {
            match round % 5 {
                // The size is too small.
                0 => {
                    let other = large.volume();
                    let _ = fs::remove_dir_all(&other);
                    exits(73, &mut build(&large, &other, 8 << 20));
                }
                // The registry does not answer.
                1 => {
                    served.registry.fault(Fault::DropAt { digest: last.clone(), offsets: vec![100; 50] });
                    let output = build(&served, &volume, SIZE).output().unwrap();
                    assert_eq!(output.status.code(), Some(69));
                    served.registry.heal();
                }
                // Interrupted, killed, and without a reader of the output.
                2 | 3 => {
                    served.registry.fault(Fault::StallAt { digest: last.clone(), offsets: vec![1000] });
                    let mut filling =
                        Filling::start(&mut build(&served, &volume, SIZE), served.beside("events"));
                    assert!(filling.told("layer_started", 1));
                    if round % 5 == 2 {
                        filling.supervisor.signal(Signal::SIGTERM);
                        assert_eq!(filling.supervisor.code_within(Duration::from_secs(20)), Some(143));
                    } else {
                        filling.supervisor.kill();
                    }
                    served.registry.heal();
                }
                _ => {
                    served.registry.fault(Fault::StallAt { digest: last.clone(), offsets: vec![1000] });
                    let mut command = build(&served, &volume, SIZE);
                    let (reader, writer) = std::io::pipe().unwrap();
                    drop(reader);
                    command.args(["--output", "json"]).stdout(writer).stderr(Stdio::null());
                    let mut running = Running::of(command.spawn().unwrap());
                    assert_eq!(running.code_within(Duration::from_secs(20)), Some(130));
                    served.registry.heal();
                }
            }
        }
        wait_for_release(served.volume().parent().unwrap());
        wait_for_release(large.volume().parent().unwrap());
        assert_eq!(in_use().1, before);
        succeed(&mut build(&served, &volume, SIZE));
        succeed(larder().arg("verify").arg(&volume));
        wait_for_release(&volume);
    });
}
