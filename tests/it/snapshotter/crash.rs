//! A snapshotter that is killed, started twice, or given invalid records.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

use larder_containerd_api::services::snapshots::v1::Kind;
use nix::sys::signal::Signal;

use crate::harness::served::random;
use crate::harness::snapshots::{Client, Mounted, Snapshotter};
use crate::harness::{exits, isolated, larder};

#[case]
fn confirmed_snapshots_survive_a_kill() {
    isolated(&[], || {
        let mut snapshotter = Snapshotter::start();
        let mut kept: Vec<String> = Vec::new();
        for round in 0..5u64 {
            let socket = snapshotter.socket();
            let stop = AtomicBool::new(false);
            let answered = thread::scope(|scope| {
                let workers: Vec<_> = (0..2)
                    .map(|worker| {
                        let (socket, stop) = (socket.clone(), &stop);
                        scope.spawn(move || work(&Client::new(socket), &format!("{round}-{worker}"), stop))
                    })
                    .collect();
                let pause = u64::from(random(round, 1)[0]);
                sleep(Duration::from_millis(100 + pause));
                snapshotter.kill();
                stop.store(true, Ordering::Relaxed);
                workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
            });
            kept.extend(answered);
            // A crash between the creation of a directory and of its row leaves this.
            fs::create_dir_all(snapshotter.root().join("snapshots/100000/fs")).unwrap();
            snapshotter.restart();
            let found = snapshotter.client.list(&[]).unwrap();
            for name in &kept {
                let info = found.iter().find(|info| info.name == *name);
                let info = info.unwrap_or_else(|| panic!("{name} was confirmed and is gone"));
                assert_eq!(info.kind(), Kind::Committed);
            }
            // Each snapshot has a directory, and there are no other directories.
            let directories = fs::read_dir(snapshotter.root().join("snapshots")).unwrap().count();
            assert_eq!(directories, found.len());
        }
        assert!(kept.len() > 10, "{kept:?}");
        let client = &snapshotter.client;
        for name in &kept {
            let view = Mounted::new(&client.view("look", name).unwrap());
            assert!(view.path().is_dir());
            drop(view);
            client.remove("look").unwrap();
        }
        // Numbers increase, and snapshots without children can be removed.
        while let Some(info) = client.list(&[]).unwrap().pop() {
            let all = client.list(&[]).unwrap();
            let leaves = all.iter().filter(|info| all.iter().all(|other| other.parent != info.name));
            for leaf in leaves {
                client.remove(&leaf.name).unwrap();
            }
            drop(info);
        }
        assert_eq!(fs::read_dir(snapshotter.root().join("snapshots")).unwrap().count(), 0);
        // A leftover while the snapshotter runs.
        fs::create_dir_all(snapshotter.root().join("snapshots/200000/fs")).unwrap();
        client.cleanup().unwrap();
        assert_eq!(fs::read_dir(snapshotter.root().join("snapshots")).unwrap().count(), 0);
    });
}

/// Creates a chain of snapshots until the snapshotter stops answering. Returns those whose commit was
/// confirmed.
fn work(client: &Client, name: &str, stop: &AtomicBool) -> Vec<String> {
    let mut committed: Vec<String> = Vec::new();
    for number in 0..400 {
        // An overlay supports 500.
        let (key, next) = (format!("{name}-active-{number}"), format!("{name}-{number}"));
        let parent = committed.last().cloned().unwrap_or_default();
        let done = client.prepare(&key, &parent, &[]).and_then(|_| client.commit(&next, &key, &[]));
        if done.is_err() {
            break;
        }
        committed.push(next);
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    committed
}

#[case]
fn it_is_alone_and_stops_when_asked() {
    isolated(&[], || {
        let mut snapshotter = Snapshotter::start();
        snapshotter.client.prepare("a", "", &[]).unwrap();
        let said = exits(73, &mut snapshotter.command());
        assert!(said.contains("another snapshotter"), "{said}");
        snapshotter.process().signal(Signal::SIGTERM);
        assert_eq!(snapshotter.process().code_within(Duration::from_secs(60)), Some(0));
        snapshotter.kill();
        // A file at the path of the socket is kept if it is no socket.
        fs::remove_file(snapshotter.socket()).unwrap();
        fs::write(snapshotter.socket(), "mine").unwrap();
        exits(64, &mut snapshotter.command());
        assert_eq!(fs::read(snapshotter.socket()).unwrap(), b"mine");
        fs::remove_file(snapshotter.socket()).unwrap();
        snapshotter.restart();
        assert_eq!(snapshotter.client.names(&[]), ["a"]);
    });
}

#[case]
fn records_that_cannot_be_trusted_are_left_alone() {
    isolated(&[], || {
        let mut snapshotter = Snapshotter::start();
        snapshotter.client.prepare("a", "", &[]).unwrap();
        snapshotter.kill();
        let root = snapshotter.root();
        let database = root.join("snapshots.db");
        let wal = root.join("snapshots.db-wal");
        let (before, log) = (fs::read(&database).unwrap(), fs::read(&wal).unwrap());
        for bytes in [b"".to_vec(), b"not a database, and longer than the header of one. ".repeat(100)] {
            fs::write(&database, &bytes).unwrap();
            let _ = fs::remove_file(&wal);
            let said = exits(65, &mut snapshotter.command());
            assert!(said.contains("snapshots.db"), "{said}");
            assert!(root.join("snapshots/1/fs").is_dir(), "nothing must be swept");
        }
        let mut odd = larder();
        odd.arg("snapshotter").arg("--socket").arg(snapshotter.socket()).arg("--root").arg(root.join("a,b"));
        let said = exits(64, &mut odd);
        assert!(said.contains("comma"), "{said}");
        fs::write(&database, before).unwrap();
        fs::write(&wal, log).unwrap();
        snapshotter.restart();
        assert_eq!(snapshotter.client.names(&[]), ["a"]);
    });
}
