//! Requests wait at the socket of the service manager while the snapshotter does not run.

use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::containers::{NEEDS, Node, SIZE, image};
use crate::harness::containerd::Containerd;
use crate::harness::served::Served;
use crate::harness::snapshots::{Client, Snapshotter};
use crate::harness::{exits, isolated, larder, succeed};

/// Time for which a request is observed to wait.
const WAITS: Duration = Duration::from_millis(500);

#[case]
fn requests_wait_while_it_starts_again() {
    isolated(&[], || {
        let mut snapshotter = Snapshotter::activated_by(&[]);
        for round in ["first", "second"] {
            let (sender, answers) = mpsc::channel();
            let client = Client::new(snapshotter.socket());
            let asking = thread::spawn(move || sender.send(client.list(&[]).map(|all| all.len())));
            assert!(
                answers.recv_timeout(WAITS).is_err(),
                "{round}: a response without a running snapshotter"
            );
            snapshotter.restart();
            assert_eq!(answers.recv().unwrap().unwrap(), 0, "{round}");
            asking.join().unwrap().unwrap();
            snapshotter.kill();
        }
        assert!(snapshotter.socket().exists(), "the service manager's socket must stay");
    });
}

#[case]
fn a_containerd_that_starts_first_has_its_images() {
    isolated(&NEEDS, || {
        let served = Served::new([image("cached", 1)]);
        let (reference, volume) = (served.references().remove(0), served.volume());
        succeed(&mut served.build(&volume, SIZE));
        let mut snapshotter = Snapshotter::activated_by(&[]);
        snapshotter.restart();
        snapshotter.attach(&volume, "v");
        let containerd = Containerd::start_with_snapshotter(&snapshotter.socket(), "none");
        let mut node = Node::of(containerd, snapshotter);
        node.pull(&reference);
        node.snapshotter.kill();
        node.containerd.restart();
        thread::sleep(WAITS);
        node.snapshotter.restart();
        node.until_cri_knows(1);
        assert!(node.cri().image(&reference).is_some());
        assert_eq!(node.printed(&reference, "cat /file-0"), "cached 0\n");
    });
}

#[case]
fn what_is_no_listening_socket_is_refused() {
    isolated(&[], || {
        let dir = tempfile::tempdir().unwrap();
        let run = |redirect: &str, count: u32| {
            let program = larder().get_program().to_str().unwrap().to_owned();
            let script = format!("exec {redirect}; export LISTEN_FDS={count} LISTEN_PID=$$; exec \"$@\"");
            let mut command = Command::new("bash");
            command
                .args(["-c", &script, "activate", &program, "snapshotter", "--root"])
                .arg(dir.path().join("root"));
            command.env("LARDER_STATE__DIR", dir.path());
            exits(64, &mut command)
        };
        for (redirect, count) in [("3</dev/null", 1), ("3</dev/null 4</dev/null", 2)] {
            let said = run(redirect, count);
            assert!(said.contains("ListenStream="), "{said}");
        }
    });
}
