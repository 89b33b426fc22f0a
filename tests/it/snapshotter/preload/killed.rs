//! A preload that is killed after each of its requests.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{io, thread};

use larder_model::job::LayerFormat;

use super::super::containers::{NEEDS, Node, image};
use super::Sealed;
use crate::harness::served::Running;
use crate::harness::{isolated, larder, succeed};

/// A proxy between a caller and containerd. It forwards this many connections, one per request, and then
/// answers no more.
struct Gate {
    socket: PathBuf,
    came: Arc<AtomicUsize>,
}

impl Gate {
    fn new(dir: &Path, containerd: &Path, lets_through: usize) -> Self {
        let socket = dir.join(format!("gate-{lets_through}"));
        let listener = UnixListener::bind(&socket).unwrap();
        let came = Arc::new(AtomicUsize::new(0));
        let (count, containerd) = (Arc::clone(&came), containerd.to_owned());
        thread::spawn(move || {
            let mut held = Vec::new();
            for caller in listener.incoming() {
                let caller = caller.unwrap();
                if count.load(Ordering::SeqCst) < lets_through {
                    let callee = UnixStream::connect(&containerd).unwrap();
                    for (mut from, mut to) in
                        [(caller.try_clone().unwrap(), callee.try_clone().unwrap()), (callee, caller)]
                    {
                        thread::spawn(move || {
                            let _ = io::copy(&mut from, &mut to);
                            let _ = to.shutdown(std::net::Shutdown::Both);
                        });
                    }
                } else {
                    held.push(caller);
                }
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        Gate { socket, came }
    }
}

#[case]
fn a_killed_preload_resumes() {
    isolated(&NEEDS, || {
        let sealed =
            Sealed::new(LayerFormat::Overlay, [image("cached", 2), image("second", 1)], |_| Vec::new());
        let node = Node::start_with_sandbox("none");
        let at = node.snapshotter.attach(&sealed.volume, "v");
        let dir = tempfile::tempdir().unwrap();
        for forget in [false, true] {
            let mut killed = 0;
            for lets_through in 0.. {
                let gates = dir.path().join(format!("{forget}"));
                std::fs::create_dir_all(&gates).unwrap();
                let gate = Gate::new(&gates, &node.containerd.socket(), lets_through);
                let mut command = larder();
                command.arg("preload").arg(&at).arg("--containerd").arg(&gate.socket);
                if forget {
                    command.arg("--forget");
                }
                let mut running = Running::start(&mut command);
                if !running.until(|| gate.came.load(Ordering::SeqCst) > lets_through) {
                    assert_eq!(running.code_within(std::time::Duration::from_secs(10)), Some(0));
                    break;
                }
                running.kill();
                killed += 1;
            }
            // Records that are removed already need no request again.
            let least = if forget { 5 } else { 15 };
            assert!(killed >= least, "it was killed only {killed} times");
            if !forget {
                for (reference, name) in sealed.references.iter().zip(["cached", "second"]) {
                    assert_eq!(node.printed(reference, "cat /file-0"), format!("{name} 0\n"));
                }
                assert_eq!(node.images().len(), 6);
            }
        }
        assert!(node.images().is_empty());
        // Content that the killed processes kept is released when their leases expire.
        let leases = succeed(&mut node.containerd.k8s(&["leases", "ls"]));
        let (held, ending) =
            (node.leases(), leases.lines().filter(|line| line.contains("containerd.io/gc.expire=")));
        assert_eq!(ending.count(), held.len(), "{leases}");
        for lease in &held {
            succeed(&mut node.containerd.k8s(&["leases", "rm", "--sync", lease]));
        }
        assert!(node.content().is_empty(), "{:?}", node.content());
        node.until_nothing_is_left();
        node.snapshotter.detach(&at);
    });
}
