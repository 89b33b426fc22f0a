//! `larder export` and `larder import`: round trips, and imports by the tools that read archives.

mod atomic;
mod consumers;
mod erofs;
mod hostile;
mod import;
mod odd;
mod raw;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use larder_testing::image::{self, Format, Image};

use crate::build::three_layers;
use crate::harness::layers::{Member, Packing, layer};
use crate::harness::served::{Served, cache};
use crate::harness::{Need, exits, isolated, larder, skopeo, succeed};

/// Every archive format, and how its layers are compressed.
const ARCHIVES: [(&str, &str); 4] =
    [("oci-archive", "none"), ("oci-archive", "gzip"), ("oci-archive", "zstd"), ("docker-archive", "")];

const SCRIPT: &str = "cat /etc/greeting; /usr/bin/tool; stat -c %a:%h /usr/bin/tool2; stat -c %u:%g /data/owned; \
                      test -e /etc/group || echo no group";
const PRINTED: &str = "hello from the cache\n0\n4755:2\n1000:1001\nno group\n";

/// Builds a sealed volume of two images that share a base: one with every kind of change, one with a label.
fn sealed() -> (Served, PathBuf) {
    let plain = Image::builder(Format::Docker).layer(image::busybox().unwrap()).label("n", "2").build();
    let served = Served::new([three_layers(Packing::Gzip), plain]);
    let volume = served.volume();
    succeed(&mut served.build(&volume, 64 << 20));
    (served, volume)
}

fn export(volume: &Path, out: &Path, format: &str, compression: &str) -> Command {
    let mut larder = larder();
    larder.arg("export").arg(volume).arg(out).args(["--format", format]);
    if !compression.is_empty() {
        larder.args(["--compression", compression]);
    }
    larder
}

fn import(archive: &Path, volume: &Path) -> Command {
    let mut larder = larder();
    larder.arg("import").arg(archive).arg("--volume").arg(volume);
    larder
}

/// Returns the properties that every copy of an image must preserve: its name and its ID, which covers its
/// diff IDs.
fn identities(volume: &Path) -> Vec<(String, String)> {
    let images = cache(volume).content.images;
    images.into_iter().map(|image| (image.name, image.config.to_string())).collect()
}

#[case]
fn every_archive_comes_back() {
    isolated(&[Need::Program("busybox")], || {
        let (served, volume) = sealed();
        let layers: Vec<_> = cache(&volume).content.layers.into_iter().map(|layer| layer.chain_id).collect();
        for (format, compression) in ARCHIVES.into_iter().chain([("oci-layout", "gzip")]) {
            let archive = served.beside(&format!("{format}-{compression}"));
            let back = served.beside(&format!("{format}-{compression}-back"));
            succeed(&mut export(&volume, &archive, format, compression));
            succeed(&mut import(&archive, &back));
            succeed(larder().arg("verify").arg(&back));
            assert_eq!(identities(&back), identities(&volume), "{format} {compression}");
            let found = cache(&back).content.layers.into_iter().map(|layer| layer.chain_id);
            assert_eq!(found.collect::<Vec<_>>(), layers, "{format} {compression}");
            // Content from these tools is exported again byte for byte, including the manifests.
            if format == "oci-archive" {
                let again = served.beside(&format!("{format}-{compression}-again"));
                succeed(&mut export(&back, &again, format, compression));
                assert!(fs::read(&again).unwrap() == fs::read(&archive).unwrap(), "{format} {compression}");
            }
        }
    });
}

#[case]
fn the_same_volume_gives_the_same_bytes() {
    isolated(&[Need::Program("busybox")], || {
        let (served, volume) = sealed();
        for (format, compression) in ARCHIVES {
            let (one, two) = (served.beside("one"), served.beside("two"));
            succeed(&mut export(&volume, &one, format, compression));
            succeed(export(&volume, &two, format, compression).env("TZ", "Asia/Tokyo"));
            let streamed = export(&volume, Path::new("-"), format, compression).output().unwrap();
            assert!(streamed.status.success(), "{}", String::from_utf8_lossy(&streamed.stderr));
            let bytes = fs::read(&one).unwrap();
            assert!(bytes == fs::read(&two).unwrap() && bytes == streamed.stdout, "{format} {compression}");
            fs::remove_file(one).unwrap();
            fs::remove_file(two).unwrap();
        }
    });
}

#[case]
fn some_of_the_images() {
    isolated(&[Need::Program("busybox")], || {
        let (served, volume) = sealed();
        let second = &served.references()[1];
        let archive = served.beside("archive");
        let printed = succeed(
            export(&volume, &archive, "oci-archive", "").args(["--image", second, "--output", "json"]),
        );
        let report: serde_json::Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(report["images"].as_array().unwrap().len(), 1, "{report}");
        assert_eq!(report["images"][0]["config"], served.images[1].config.digest.to_string());
        assert_eq!(report["size"], fs::metadata(&archive).unwrap().len());
        let back = served.beside("back");
        succeed(&mut import(&archive, &back));
        assert_eq!(identities(&back), identities(&volume)[1..]);

        let said =
            exits(64, export(&volume, &served.beside("no"), "oci-archive", "").args(["--image", "other:1"]));
        assert!(said.contains("is not on the volume") && said.contains(second), "{said}");
        assert!(!served.beside("no").exists());
    });
}

#[case]
fn an_impossible_export_is_refused_with_a_hint() {
    isolated(&[Need::Program("busybox")], || {
        let (served, volume) = sealed();
        let out = served.beside("out");
        let said = exits(64, &mut export(&volume, Path::new("-"), "oci-layout", ""));
        assert!(said.contains("oci-archive"), "{said}");
        exits(64, &mut export(&volume, Path::new("-"), "erofs", ""));
        let said = exits(64, &mut export(&volume, &out, "raw", ""));
        assert!(said.contains("--volume-kind disk"), "{said}");
        exits(64, &mut export(&volume, &out, "docker-archive", "gzip"));
        exits(64, &mut export(&served.beside("none"), &out, "oci-archive", ""));
        let light = served.beside("light");
        succeed(served.build(&light, 64 << 20).arg("--no-tar-split"));
        let said = exits(64, &mut export(&light, &out, "oci-archive", ""));
        assert!(said.contains("--no-tar-split"), "{said}");
        assert!(!out.exists());
    });
}

/// A reference by digest names the manifest of the registry, but the archive has another manifest.
#[case]
fn the_reference_by_digest_is_that_of_the_archive() {
    isolated(&[Need::Program("skopeo")], || {
        let image =
            Image::builder(Format::Oci).layer(layer(&[Member::file("a", "b")], Packing::Gzip)).build();
        let served = Served::new([image]);
        let pinned = format!("{}/app-0@{}", served.registry.host(), served.images[0].manifest.digest);
        let volume = served.volume();
        let mut build = larder();
        build.arg("build").arg("--volume").arg(&volume).args(["--size", "16MiB", &pinned]);
        succeed(&mut build);
        let layout = served.beside("layout");
        let printed = succeed(export(&volume, &layout, "oci-layout", "zstd").args(["--output", "json"]));
        let report: serde_json::Value = serde_json::from_str(&printed).unwrap();
        let manifest = report["images"][0]["manifest"].as_str().unwrap();
        assert_ne!(manifest, served.images[0].manifest.digest.to_string());
        assert_eq!(report["images"][0]["name"], format!("{}/app-0@{manifest}", served.registry.host()));
        assert_eq!(skopeo::diff_ids(&layout, 0), [served.images[0].layers[0].diff_id.clone()]);
        let back = served.beside("back");
        succeed(&mut import(&layout, &back));
        succeed(larder().arg("verify").arg(&back));
    });
}
