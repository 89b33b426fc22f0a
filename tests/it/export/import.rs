//! Archives of other tools, and the rules that apply to archives as to registries.

use std::io::Write as _;
use std::process::Stdio;

use larder_model::platform::Platform;
use larder_testing::image;
use serde_json::Value;

use super::*;
use crate::harness::podman::Podman;
use crate::harness::registry::Registry;
use crate::harness::served::{Running, random};

/// Parses one event per line.
fn events(output: &str) -> Vec<Value> {
    output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn count(events: &[Value], kind: &str) -> usize {
    events.iter().filter(|event| event["event"] == kind).count()
}

#[case]
fn archives_of_skopeo_and_podman() {
    isolated(&["docker-registry", "busybox", "skopeo", "podman"].map(Need::Program), || {
        let registry = Registry::open();
        let image = three_layers(Packing::Gzip);
        let reference = registry.push(&image, "team/app", "1");
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let podman = Podman::new();
        podman.pull(&reference);
        podman.save("docker-archive", &[&reference], &at("podman-docker"));
        podman.save("oci-archive", &[&reference], &at("podman-oci"));
        for (transport, name) in
            [("docker-archive", "skopeo-docker"), ("oci-archive", "skopeo-oci"), ("oci", "skopeo-layout")]
        {
            let to = format!("{transport}:{}:{reference}", at(name).display());
            skopeo::copy(&format!("docker://{reference}"), &to);
        }
        registry.stop();
        for name in ["podman-docker", "podman-oci", "skopeo-docker", "skopeo-oci", "skopeo-layout"] {
            let volume = at(&format!("{name}-volume"));
            succeed(&mut import(&at(name), &volume));
            succeed(larder().arg("verify").arg(&volume));
            assert_eq!(identities(&volume), [(reference.clone(), image.config.digest.to_string())], "{name}");
            let printed = Podman::new().run(&volume, &reference, &["/bin/sh", "-c", SCRIPT]);
            assert_eq!(printed, PRINTED, "{name}");
        }
    });
}

#[case]
fn a_stream_and_compressed_archives() {
    isolated(&["busybox", "gzip"].map(Need::Program), || {
        let (served, volume) = sealed();
        let archive = served.beside("archive.tar");
        succeed(&mut export(&volume, &archive, "docker-archive", ""));
        succeed(Command::new("gzip").arg("-k").arg(&archive));
        let bytes = fs::read(&archive).unwrap();
        fs::write(served.beside("archive.zst"), zstd::encode_all(&bytes[..], 1).unwrap()).unwrap();
        for (number, name) in ["archive.tar.gz", "archive.zst"].into_iter().enumerate() {
            let back = served.beside(&format!("back-{number}"));
            succeed(&mut import(&served.beside(name), &back));
            assert_eq!(identities(&back), identities(&volume));
        }
        for (number, bytes) in [bytes, fs::read(served.beside("archive.tar.gz")).unwrap()].iter().enumerate()
        {
            let back = served.beside(&format!("stream-{number}"));
            let mut import = import(Path::new("-"), &back);
            let mut child = import.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
            child.stdin.take().unwrap().write_all(bytes).unwrap();
            assert!(child.wait().unwrap().success());
            assert_eq!(identities(&back), identities(&volume));
        }
    });
}

#[case]
fn an_image_without_a_name_is_called_what_the_user_says() {
    isolated(&["docker-registry", "skopeo"].map(Need::Program), || {
        let registry = Registry::open();
        let image =
            Image::builder(Format::Oci).layer(layer(&[Member::file("a", "b")], Packing::Gzip)).build();
        let reference = registry.push(&image, "app", "1");
        let dir = tempfile::tempdir().unwrap();
        let (layout, volume) = (dir.path().join("layout"), dir.path().join("volume"));
        skopeo::copy(&format!("docker://{reference}"), &format!("oci:{}:latest", layout.display()));
        let said = exits(64, &mut import(&layout, &volume));
        assert!(said.contains("--image"), "{said}");
        succeed(import(&layout, &volume).args(["--image", "r.example.com/app:7"]));
        assert_eq!(identities(&volume)[0].0, "r.example.com/app:7");
        succeed(larder().arg("verify").arg(&volume));
    });
}

/// The same rules apply: the 3x rule, the cap, and a volume that is sealed or belongs to another job.
#[case]
fn sizes_and_owners() {
    isolated(&[Need::Program("busybox")], || {
        let big = |seed| Member::new("big", crate::harness::layers::Node::File(random(seed, 3 << 20)));
        let image = |seed| {
            let layers =
                [layer(&[Member::file("small", "x")], Packing::Gzip), layer(&[big(seed)], Packing::Gzip)];
            Image::builder(Format::Oci).layers(layers).build()
        };
        let (one, two) = (Served::new([image(1)]), Served::new([image(2)]));
        for served in [&one, &two] {
            succeed(&mut served.build(&served.volume(), 32 << 20));
            succeed(&mut export(&served.volume(), &served.beside("archive"), "oci-archive", "gzip"));
        }
        let (archive, back) = (one.beside("archive"), one.beside("back"));
        let name = ["--image", "r.example.com/app:1"];
        let said = exits(73, import(&archive, &back).args(["--size", "8MiB"]));
        assert!(said.contains("three times"), "{said}");
        let said = exits(73, import(&archive, &back).args(["--size", "2MiB", "--sizing", "warn"]));
        assert!(said.contains("--size"), "{said}");
        assert!(!back.join("cache.json").exists());
        succeed(import(&archive, &back).args(["--size", "32MiB"]));
        succeed(larder().arg("verify").arg(&back));
        // A repeated import is done already. The names alone do not make it the same.
        let said = succeed(import(&archive, &back).args(["--output", "json"]));
        assert_eq!(count(&events(&said), "planned"), 0, "{said}");
        exits(64, import(&archive, &one.beside("other")).args(name));

        let renamed = |served: &Served, to: &str| {
            let layout = served.beside(to);
            succeed(&mut export(&served.volume(), &layout, "oci-layout", "gzip"));
            let index = fs::read_to_string(layout.join("index.json")).unwrap();
            fs::write(layout.join("index.json"), index.replace(&served.references()[0], name[1])).unwrap();
            layout
        };
        let volume = one.beside("renamed-volume");
        succeed(&mut import(&renamed(&one, "renamed"), &volume));
        let said = exits(73, &mut import(&renamed(&two, "renamed"), &volume));
        assert!(said.contains("sealed with another image"), "{said}");
        let said = exits(73, &mut import(&archive, &volume));
        assert!(said.contains("another job"), "{said}");
    });
}

#[case]
fn a_killed_import_resumes() {
    isolated(&[], || {
        let layers = (0..6).map(|seed| {
            let big = Member::new("big", crate::harness::layers::Node::File(random(seed, 6 << 20)));
            layer(&[big], Packing::Gzip)
        });
        let served = Served::new([Image::builder(Format::Oci).layers(layers).build()]);
        let volume = served.volume();
        succeed(&mut served.build(&volume, 128 << 20));
        let (archive, back) = (served.beside("archive"), served.beside("back"));
        succeed(&mut export(&volume, &archive, "oci-archive", "zstd"));
        let mut running = Running::start(import(&archive, &back).args(["--concurrency", "1"]));
        let committed = || fs::read_dir(back.join("overlay")).is_ok_and(|names| names.count() > 2);
        assert!(running.until(committed), "it ended before the kill");
        running.kill();
        assert!(!back.join("cache.json").exists());
        let said = succeed(import(&archive, &back).args(["--output", "json"]));
        let found = events(&said);
        let (present, committed) = (count(&found, "layer_present"), count(&found, "layer_committed"));
        assert!(present >= 1 && present + committed == 6, "{said}");
        succeed(larder().arg("verify").arg(&back));
    });
}

#[case]
fn layers_of_other_volumes_are_reused() {
    isolated(&[Need::Program("busybox")], || {
        let (served, volume) = sealed();
        let archive = served.beside("archive");
        succeed(&mut export(&volume, &archive, "oci-archive", "gzip"));
        let share = served.beside("share");
        fs::create_dir_all(share.join("volumes")).unwrap();
        let shared = |name: &str| {
            let mut import = import(&archive, &share.join("volumes").join(name));
            import.arg("--share").arg(&share).args(["--output", "json"]);
            events(&succeed(&mut import))
        };
        assert_eq!(count(&shared("one"), "layer_reused"), 0);
        assert_eq!(count(&shared("two"), "layer_reused"), 3);
        succeed(larder().arg("verify").arg(share.join("volumes/two")));
    });
}

/// The job names the archive. The builder is confined, so the archive is opened before.
#[case]
fn a_confined_job() {
    isolated(&[Need::Program("busybox")], || {
        let (served, volume) = sealed();
        let references = served.references();
        for (format, images) in
            [("oci-layout", &references[..]), ("oci-archive", &[]), ("docker-archive", &[])]
        {
            let (archive, back) = (served.beside(format), served.beside(&format!("{format}-back")));
            succeed(&mut export(&volume, &archive, format, ""));
            let job = serde_json::json!({"images": images, "size": "256MiB", "source": {format: &archive}});
            let file = served.beside("job.json");
            fs::write(&file, job.to_string()).unwrap();
            let mut build = larder();
            build.arg("build").arg("--volume").arg(&back).arg("--job").arg(&file);
            succeed(&mut build);
            assert_eq!(identities(&back), identities(&volume), "{format}");
        }
    });
}

#[case]
fn the_platform_is_chosen() {
    isolated(&[Need::Program("skopeo"), Need::Program("docker-registry")], || {
        let one = |platform: &str| {
            let files = [Member::file("platform", platform)];
            let platform: Platform = platform.parse().unwrap();
            Image::builder(Format::Oci).layer(layer(&files, Packing::Gzip)).platform(platform).build()
        };
        let images = ["linux/amd64", "linux/arm64", "linux/arm/v7"].map(one);
        let registry = Registry::open();
        let list: Vec<&Image> = images.iter().collect();
        image::push_index(&mut registry.client("app"), Format::Oci, &list, "app", "1").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("archive");
        let mut copy = Command::new("skopeo");
        copy.args(["copy", "--all", "--quiet", "--insecure-policy", "--src-tls-verify=false"]);
        copy.arg(format!("docker://{}", registry.reference("app:1")));
        succeed(copy.arg(format!("oci-archive:{}:r.example.com/app:1", archive.display())));
        for (number, platform) in ["linux/amd64", "linux/arm64", "linux/arm/v7"].into_iter().enumerate() {
            let volume = dir.path().join(number.to_string());
            succeed(import(&archive, &volume).args(["--platform", platform]));
            assert_eq!(identities(&volume)[0].1, images[number].config.digest.to_string());
        }
        let said = exits(64, import(&archive, &dir.path().join("no")).args(["--platform", "linux/s390x"]));
        assert!(said.contains("linux/arm/v7"), "{said}");
    });
}
