//! Locks and files of shared layers, without builds.

use std::fs;
use std::path::Path;

use super::*;
use larder_model::chain::ChainId;
use larder_model::seal::{Compression, Layer, Settled};

fn name(name: &str) -> VolumeName {
    name.to_owned().try_into().unwrap()
}

fn shares() -> (tempfile::TempDir, Share, Share) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("volumes/a")).unwrap();
    fs::create_dir_all(dir.path().join("volumes/b")).unwrap();
    let open = |own| Share::open(dir.path(), &name(own), None).unwrap();
    let (a, b) = (open("a"), open("b"));
    (dir, a, b)
}

fn layer(diff_id: &Digest) -> Layer {
    Layer {
        chain_id: ChainId::base(diff_id),
        parent: None,
        blob: diff_id.clone(),
        diff_id: diff_id.clone(),
        media_type: "application/vnd.oci.image.layer.v1.tar".into(),
        compression: Compression::None,
        compressed_size: 1,
        size: 1,
        entries: 1,
        tar_split_size: Some(1),
        image: None,
        settled: Settled::default(),
        lost: Vec::new(),
    }
}

fn file(dir: &Path, diff_id: &Digest) -> std::path::PathBuf {
    dir.join("layers").join(file_name(diff_id))
}

#[test]
fn one_fetches_and_the_other_waits() {
    let (_dir, a, b) = shares();
    let id = Digest::sha256(b"layer");
    let Claim::Fetch(lock) = a.claim(&id, &[], true).unwrap() else { panic!("no builder has it") };
    assert!(matches!(b.claim(&id, &[], true).unwrap(), Claim::Locked));
    assert!(!b.publish(&id, &layer(&id)).unwrap());
    a.ready(lock).unwrap();
    assert!(matches!(b.claim(&id, &[], true).unwrap(), Claim::Ready));
    assert!(matches!(b.claim(&id, &[], false).unwrap(), Claim::Fetch(_)), "the wait limit is reached");
    assert!(
        matches!(a.claim(&id, &[], true).unwrap(), Claim::Fetch(_)),
        "a builder does not wait for itself"
    );
    assert!(a.publish(&id, &layer(&id)).unwrap());
    let Claim::Available(at) = b.claim(&id, &[], true).unwrap() else { panic!("it was published") };
    assert_eq!((at.volume.as_str(), at.size), ("a", 1));
    assert!(matches!(b.claim(&id, &[name("a")], true).unwrap(), Claim::Fetch(_)), "refused before");
    assert!(b.copy(at, &id).is_err(), "there is nothing in the volume");
}

#[test]
fn false_and_odd_files_are_harmless() {
    let (dir, a, _b) = shares();
    let id = Digest::sha256(b"layer");
    let path = file(dir.path(), &id);
    for content in [b"".to_vec(), b"{".to_vec(), vec![b' '; 1 << 20], vec![b'['; SIZE]] {
        fs::write(&path, &content).unwrap();
        assert!(matches!(a.claim(&id, &[], true).unwrap(), Claim::Fetch(_)));
    }
    fs::remove_file(&path).unwrap();
    let outside = dir.path().join("outside");
    fs::write(&outside, "precious").unwrap();
    std::os::unix::fs::symlink(&outside, &path).unwrap();
    assert!(a.claim(&id, &[], true).is_err(), "a link is not followed");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(a.claim(&id, &[], true).is_err());
    fs::remove_dir(&path).unwrap();
    let layers = Dir::open(&dir.path().join("layers")).unwrap();
    layers.make_node(file_name(&id).as_bytes(), larder_sys::FileType::Fifo, 0o600, (0, 0)).unwrap();
    assert!(a.claim(&id, &[], true).is_err(), "a pipe does not block");
    assert_eq!(fs::read(&outside).unwrap(), b"precious");
}

#[test]
fn an_oversized_file_is_readable_after_a_write() {
    let (dir, a, b) = shares();
    let id = Digest::sha256(b"layer");
    fs::write(file(dir.path(), &id), vec![b'x'; 4 * SIZE]).unwrap();
    assert!(a.publish(&id, &layer(&id)).unwrap());
    assert!(matches!(b.claim(&id, &[], true).unwrap(), Claim::Available(_)));
}

#[test]
fn sweep_removes_unlocked_files_without_a_volume() {
    let (dir, a, b) = shares();
    let ids: Vec<Digest> = ["kept", "gone", "torn", "held"].map(|n| Digest::sha256(n.as_bytes())).into();
    a.publish(&ids[0], &layer(&ids[0])).unwrap();
    b.publish(&ids[1], &layer(&ids[1])).unwrap();
    fs::write(file(dir.path(), &ids[2]), "{").unwrap();
    b.publish(&ids[3], &layer(&ids[3])).unwrap();
    let Claim::Fetch(lock) = b.claim(&ids[3], &[], true).unwrap() else { panic!("its own") };
    fs::write(dir.path().join("layers/notes"), "").unwrap();
    fs::remove_dir_all(dir.path().join("volumes/b")).unwrap();
    assert_eq!(sweep(dir.path()).unwrap(), 2);
    let left = |id: &Digest| file(dir.path(), id).exists();
    assert_eq!(ids.iter().map(left).collect::<Vec<_>>(), [true, false, false, true]);
    assert!(dir.path().join("layers/notes").exists());
    drop(lock);
    assert_eq!(sweep(dir.path()).unwrap(), 1);
    assert_eq!(sweep(&dir.path().join("volumes")).unwrap(), 0, "a missing layers/ is not an error");
}
