//! Tests of the locks of a volume.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;
use std::{io, thread};

use super::job::Identity;
use super::*;
use larder_model::platform::Platform;
use larder_model::seal::{Compression, Settled};
use larder_model::size::ByteSize;

fn volume(dir: &Path) -> Volume {
    let identity = Identity {
        images: vec!["example.com/image:1".into()],
        platform: Platform::new("linux", "amd64", ""),
        layer_format: LayerFormat::Overlay,
        verity: false,
        tar_split: true,
        rootless: false,
    };
    let (size, cap, trust) = (ByteSize(64 << 20), CapEnforcement::Counted, Trust::ThisBoot);
    match open(dir, &VolumeOptions { identity: &identity, size, cap, trust }).unwrap() {
        Opened::Filling(volume) => *volume,
        Opened::Sealed(_) => panic!("a new volume is sealed"),
    }
}

fn layer(name: &str, parent: Option<&Layer>) -> Layer {
    let diff_id = Digest::sha256(name.as_bytes());
    let chain_id = parent.map_or_else(|| ChainId::base(&diff_id), |parent| parent.chain_id.child(&diff_id));
    Layer {
        chain_id,
        parent: parent.map(|parent| parent.chain_id.clone()),
        blob: diff_id.clone(),
        diff_id,
        media_type: "application/vnd.oci.image.layer.v1.tar".into(),
        compression: Compression::None,
        compressed_size: 1,
        size: 1,
        entries: 1,
        tar_split_size: None,
        image: None,
        settled: Settled::default(),
        lost: Vec::new(),
    }
}

/// Runs `work` on a thread, and fails if it does not end.
fn ends<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let (sender, result) = mpsc::channel();
        scope.spawn(move || sender.send(work()));
        // Without an abort the scope would wait for the thread that is blocked.
        result.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|_| {
            eprintln!("a reader of the volume waits for a write to the disk");
            std::process::abort()
        })
    })
}

/// A pipe takes the place of the journal. It is full, so the commit blocks in the middle of its write.
#[test]
fn readers_do_not_wait_for_a_slow_commit() {
    let dir = tempfile::tempdir().unwrap();
    let volume = volume(dir.path());
    let base = layer("base", None);
    volume.commit(volume.stage().unwrap(), base.clone()).unwrap();

    let (mut reader, writer) = io::pipe().unwrap();
    let mut pipe = File::from(OwnedFd::from(writer));
    rustix::fs::fcntl_setfl(&pipe, rustix::fs::OFlags::NONBLOCK).unwrap();
    let mut fill = 0;
    while let Ok(written) = pipe.write(&[b'.'; 4096]) {
        fill += written;
    }
    rustix::fs::fcntl_setfl(&pipe, rustix::fs::OFlags::empty()).unwrap();
    let journal = std::mem::replace(&mut volume.journal().file, pipe);

    let child = layer("child", Some(&base));
    let staging = volume.stage().unwrap();
    thread::scope(|scope| {
        let commit = scope.spawn(|| volume.commit(staging, child.clone()));
        // After this rename, only the journal is left to be written.
        while !dir.path().join("overlay").join(child.chain_id.hex()).exists() {
            thread::yield_now();
        }
        ends(|| {
            assert!(volume.has(&base.chain_id) && !volume.has(&child.chain_id));
            assert!(volume.layer(&base.chain_id).is_some() && volume.parent(&base.chain_id).is_none());
            assert!(volume.with_diff_id(&base.diff_id).is_none());
            assert_eq!(volume.layers(), std::slice::from_ref(&base));
            assert_eq!(volume.unsynced(), std::slice::from_ref(&base.chain_id));
            drop(volume.stage().unwrap());
        });
        assert!(!commit.is_finished());
        reader.read_exact(&mut vec![0; fill]).unwrap();
        commit.join().unwrap().unwrap();
    });
    assert!(volume.has(&child.chain_id));
    volume.journal().file = journal;
}

#[test]
fn layers_that_depend_on_a_lost_one_are_lost() {
    let base = layer("base", None);
    let child = layer("child", Some(&base));
    let other = layer("other", None);
    let index = |layers: &[&Layer]| Index {
        committed: layers.iter().map(|layer| (layer.chain_id.clone(), (*layer).clone())).collect(),
        unsynced: Vec::new(),
    };
    // A second layer with the image of the child.
    let same = Layer { diff_id: child.diff_id.clone(), ..layer("same", None) };
    let all = index(&[&base, &child, &other, &same]);
    let lost = |shared| {
        let mut lost = vec![base.chain_id.clone()];
        all.add_dependents(&mut lost, shared);
        lost
    };
    assert_eq!(lost(false), [base.chain_id.clone(), child.chain_id.clone()]);
    assert_eq!(lost(true), [base.chain_id.clone(), child.chain_id.clone(), same.chain_id.clone()]);
}
