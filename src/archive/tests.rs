//! Damaged archives: for any bytes, every document and blob that is read has its digest.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use larder_layer::decode::ChunkSource as _;

/// Returns a docker-archive with one layer.
fn docker() -> Vec<u8> {
    let layer = vec![7; 1024];
    let config = json!({"os": "linux", "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [Digest::sha256(&layer)]}});
    let list = json!([{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["l/layer.tar"]}]);
    tar(&[
        ("manifest.json", list.to_string().as_bytes()),
        ("c.json", config.to_string().as_bytes()),
        ("l/layer.tar", &layer),
    ])
}

/// Returns an oci-archive of the same image with an index in the index, as `docker save` and `ctr export`
/// write it.
fn oci() -> Vec<u8> {
    let layer = vec![7; 1024];
    let config = json!({"os": "linux", "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [Digest::sha256(&layer)]}});
    let config = config.to_string().into_bytes();
    let point = |kind: &str, bytes: &[u8]| json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "size": bytes.len(), "digest": Digest::sha256(bytes)});
    let manifest = json!({"schemaVersion": 2, "config": point("config.v1+json", &config),
        "layers": [point("layer.v1.tar", &layer)]});
    let manifest = manifest.to_string().into_bytes();
    let inner = json!({"schemaVersion": 2, "manifests": [point("manifest.v1+json", &manifest)]});
    let inner = inner.to_string().into_bytes();
    let mut entry = point("index.v1+json", &inner);
    entry["annotations"] = json!({"io.containerd.image.name": "a:1"});
    let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    let path = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::sha256(bytes).hex());
    tar(&[
        ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
        ("index.json", index.as_bytes()),
        (&path(&inner), &inner),
        (&path(&manifest), &manifest),
        (&path(&config), &config),
        (&path(&layer), &layer),
    ])
}

fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = ::tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = ::tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

fn index(bytes: &[u8]) -> Result<Archive, Error> {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("archive");
    fs::write(&path, bytes).unwrap();
    Archive::index(Input::open(&path)?, None)
}

fn name() -> ImageReference {
    "a:1".parse().unwrap()
}

#[test]
fn docker_and_oci_archives_are_read() {
    for bytes in [docker(), oci()] {
        let archive = index(&bytes).unwrap();
        assert_eq!(archive.names(), [name()]);
        let entry = archive.find(&name(), &Platform::host()).unwrap();
        archive.document(&entry.digest, 4096).unwrap();
        let layer = Digest::sha256(&[7; 1024]);
        let mut blob = archive.blob(&layer).unwrap();
        assert_eq!((blob.size(), blob.next().unwrap().unwrap().len()), (1024, 1024));
        assert!(blob.next().unwrap().is_none());
        let other = archive.find(&"b:1".parse().unwrap(), &Platform::host()).unwrap_err();
        assert!(other.to_string().contains("a:1"), "{other}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn damaged_archives_do_not_panic_or_return_wrong_content(
        is_oci in any::<bool>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = if is_oci { oci() } else { docker() };
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let Ok(archive) = index(&bytes) else { return Ok(()) };
        for entry in &archive.entries {
            if let Ok(document) = archive.document(&entry.digest, 1 << 20) {
                prop_assert_eq!(Hasher::digest_of(entry.digest.algorithm(), &document), entry.digest.clone());
            }
        }
        for digest in archive.paths.keys() {
            if let Ok(mut blob) = archive.blob(digest) {
                while let Ok(Some(_)) = blob.next() {}
            }
        }
    }
}
