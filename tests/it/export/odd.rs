//! Archives that are unusual but intact: created by common tools, or by editing exports of Larder.

use std::path::Path;

use larder_testing::image::Layer;
use larder_testing::layer::LayerBuilder;
use serde_json::{Value, json};

use super::*;
use crate::harness::podman::Podman;

/// Builds a sealed volume of two images, one of which has a layer of zeros, and unpacks an archive of them.
fn unpacked(format: &str, compression: &str) -> (Served, PathBuf, PathBuf) {
    let zeros = Layer::from(LayerBuilder::new().file("zeros", vec![0; 1 << 20]).gzip());
    let with_zeros = Image::builder(Format::Oci).layer(image::busybox().unwrap()).layer(zeros).build();
    let served = Served::new([three_layers(Packing::Gzip), with_zeros]);
    let volume = served.volume();
    succeed(&mut served.build(&volume, 64 << 20));
    let (archive, files) = (served.beside("archive"), served.beside("files"));
    succeed(&mut export(&volume, &archive, format, compression));
    fs::create_dir(&files).unwrap();
    succeed(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&files));
    (served, volume, files)
}

/// Packs the files again with GNU tar and these options.
fn pack(files: &Path, archive: &Path, options: &[&str]) {
    succeed(Command::new("tar").args(options).arg("-cf").arg(archive).arg("-C").arg(files).arg("."));
}

fn edit(files: &Path, change: impl Fn(&mut Value)) {
    let path = files.join("index.json");
    let mut index = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut index);
    fs::write(&path, index.to_string()).unwrap();
}

/// Docker since 25 writes both lists. Its own reader uses manifest.json, and the other list can have fewer
/// images, or none.
#[case]
fn an_index_with_fewer_images_than_dockers_list() {
    isolated(&[Need::Program("busybox")], || {
        let (served, volume, files) = unpacked("oci-archive", "none");
        let all = identities(&volume);
        let whole = fs::read_to_string(files.join("index.json")).unwrap();
        for (name, manifests) in [
            ("null", Value::Null),
            ("none", json!([])),
            ("one", json!([serde_json::from_str::<Value>(&whole).unwrap()["manifests"][0]])),
        ] {
            edit(&files, |index| index["manifests"] = manifests.clone());
            let (archive, back) = (served.beside("again"), served.beside(name));
            pack(&files, &archive, &[]);
            succeed(&mut import(&archive, &back));
            succeed(larder().arg("verify").arg(&back));
            let (mut found, mut want) = (identities(&back), all.clone());
            found.sort();
            want.sort();
            assert_eq!(found, want, "{name}");
        }
        // The option of the user selects the list.
        let archive = served.beside("again");
        succeed(import(&archive, &served.beside("oci-only")).args(["--format", "oci-archive"]));
        assert_eq!(identities(&served.beside("oci-only")), all[..1]);
    });
}

#[case]
fn one_malformed_entry_of_an_index() {
    isolated(&[Need::Program("busybox")], || {
        let (served, volume, files) = unpacked("oci-archive", "none");
        fs::remove_file(files.join("manifest.json")).unwrap();
        edit(&files, |index| {
            let entries = index["manifests"].as_array_mut().unwrap();
            entries.push(json!({"mediaType": "a/b", "digest": "sha256:../x", "size": 1, "platform": {}}));
            entries.push(json!({"mediaType": "a/b", "digest": "sha256:00", "size": -1}));
        });
        let (archive, back) = (served.beside("again"), served.beside("back"));
        pack(&files, &archive, &[]);
        succeed(&mut import(&archive, &back));
        assert_eq!(identities(&back), identities(&volume));
    });
}

#[case]
fn sparse_members() {
    isolated(&[Need::Program("busybox")], || {
        for format in ["oci-archive", "docker-archive"] {
            let compression = if format == "oci-archive" { "none" } else { "" };
            let (served, volume, files) = unpacked(format, compression);
            let sparse = served.beside("sparse");
            succeed(Command::new("cp").args(["-r", "--sparse=always"]).arg(&files).arg(&sparse));
            for (name, options) in [("gnu", ["-S", "--format=gnu"]), ("posix", ["-S", "--format=posix"])] {
                let (archive, back) = (served.beside(name), served.beside(&format!("{name}-back")));
                pack(&sparse, &archive, &options);
                let plain = fs::metadata(served.beside("archive")).unwrap().len();
                let packed = fs::metadata(&archive).unwrap().len();
                assert!(
                    packed + (512 << 10) < plain,
                    "{packed} of {plain}: no file in the archive is sparse"
                );
                succeed(&mut import(&archive, &back));
                succeed(larder().arg("verify").arg(&back));
                assert_eq!(identities(&back), identities(&volume), "{format} {name}");
            }
        }
    });
}

/// Readers differ in which of two members with one name they use, so both must be identical.
#[case]
fn members_that_are_there_twice() {
    isolated(&[Need::Program("busybox")], || {
        let (served, volume, files) = unpacked("oci-archive", "none");
        let archive = served.beside("twice");
        pack(&files, &archive, &[]);
        let append = || {
            let mut tar = Command::new("tar");
            succeed(tar.arg("-rf").arg(&archive).arg("-C").arg(&files).args(["./index.json", "./blobs"]));
        };
        append();
        succeed(&mut import(&archive, &served.beside("back")));
        assert_eq!(identities(&served.beside("back")), identities(&volume));
        edit(&files, |index| index["manifests"] = json!([]));
        append();
        let said = exits(65, &mut import(&archive, &served.beside("no")));
        assert!(said.contains("index.json") && said.contains("twice"), "{said}");
    });
}

#[case]
fn compression_that_is_not_read_is_named() {
    isolated(&["busybox", "xz", "bzip2"].map(Need::Program), || {
        let (served, _, files) = unpacked("oci-archive", "none");
        let archive = served.beside("again");
        pack(&files, &archive, &[]);
        for (program, suffix) in [("xz", "xz"), ("bzip2", "bz2")] {
            succeed(Command::new(program).arg("-k").arg(&archive));
            let packed = archive.with_extension(suffix);
            let said = exits(64, &mut import(&packed, &served.beside("no")));
            assert!(said.contains(&format!("{program} -dc")), "{said}");
        }
    });
}

#[case]
fn directories_of_skopeo_and_podman() {
    isolated(&["busybox", "skopeo", "podman"].map(Need::Program), || {
        let (served, volume) = sealed();
        let layout = served.beside("archive");
        succeed(&mut export(&volume, &layout, "docker-archive", ""));
        let (name, id) = identities(&volume)[0].clone();
        let podman = Podman::new();
        podman.load(&layout);
        podman.save("docker-dir", &[&name], &served.beside("podman-dir"));
        let from = format!("docker-archive:{}:{name}", layout.display());
        skopeo::copy(&from, &format!("dir:{}", served.beside("skopeo-dir").display()));
        for made in ["podman-dir", "skopeo-dir"] {
            let back = served.beside(&format!("{made}-back"));
            let said = exits(64, &mut import(&served.beside(made), &back));
            assert!(said.contains("--image"), "{said}");
            succeed(import(&served.beside(made), &back).args(["--image", &name]));
            succeed(larder().arg("verify").arg(&back));
            assert_eq!(identities(&back), [(name.clone(), id.clone())], "{made}");
            assert_eq!(Podman::new().run(&back, &name, &["/bin/sh", "-c", SCRIPT]), PRINTED, "{made}");
        }
        let said = exits(64, import(&served.beside("no"), &served.beside("x")).args(["--format", "dir"]));
        assert!(said.contains("no"), "{said}");
    });
}
