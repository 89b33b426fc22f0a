//! The real binary with a registry that injects faults: the exit code and the message of each fault.

use std::path::Path;
use std::process::Command;

use larder_model::digest::Digest;
use larder_testing::image::{Document, Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use larder_testing::registry::{Auth, Fault, Registry};
use serde_json::json;

use crate::harness::served::random;
use crate::harness::{exits, isolated, larder, succeed};

fn image() -> Image {
    let base = LayerBuilder::new().dir("etc").file("etc/base", random(1, 300_000)).gzip();
    let top = LayerBuilder::new().file("etc/top", random(1, 50_000)).zstd();
    Image::builder(Format::Oci).layers([Layer::from(base), Layer::from(top)]).build()
}

struct Bench {
    registry: Registry,
    image: Image,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Bench::of(image())
    }

    fn of(image: Image) -> Self {
        let mut registry = Registry::spawn();
        image.push(&mut registry, "team/app", "1").unwrap();
        Bench { registry, image, dir: tempfile::tempdir().unwrap() }
    }

    fn reference(&self) -> String {
        format!("{}/team/app:1", self.registry.host())
    }

    fn volume(&self) -> std::path::PathBuf {
        self.dir.path().join("volume")
    }

    fn build(&self) -> Command {
        build(&self.volume(), &[&self.reference()])
    }
}

fn build(volume: &Path, references: &[&str]) -> Command {
    let mut larder = larder();
    larder.env("LARDER_REGISTRY__RETRIES", "2").env("LARDER_REGISTRY__STALL_TIMEOUT_SECONDS", "1");
    larder.env("LARDER_REGISTRY__BACKOFF_MAX_SECONDS", "1");
    larder.arg("build").arg("--volume").arg(volume).args(["--size", "64MiB"]).args(references);
    larder
}

#[case]
fn a_connection_cut_two_hundred_times_costs_less_than_one_percent() {
    isolated(&[], || {
        let bench = Bench::of(
            Image::builder(Format::Oci)
                .layer(Layer::from(LayerBuilder::new().file("big", random(1, 4 << 20)).gzip()))
                .build(),
        );
        let layer = &bench.image.layers[0];
        let size = layer.blob.len() as u64;
        let offsets: Vec<u64> = (1..=200).map(|n| n * size / 201).collect();
        bench.registry.fault(Fault::DropAt { digest: layer.digest.clone(), offsets });
        succeed(&mut bench.build());
        succeed(larder().arg("verify").arg(bench.volume()));
        let served = bench.registry.served(&layer.digest);
        assert!(served * 100 < size * 101, "{served} bytes were served for a blob of {size}");
    });
}

#[case]
fn faults_that_a_retry_heals() {
    isolated(&[], || {
        let layer = |bench: &Bench| bench.image.layers[0].digest.clone();
        type Make = fn(&Bench, Digest) -> Vec<Fault>;
        let cases: [(&str, Make); 6] = [
            ("busy", |_, _| {
                let status = |status, times| Fault::Status {
                    path: "/blobs/".into(),
                    status,
                    times,
                    retry_after: Some("0".into()),
                };
                vec![status(429, 1), status(503, 1)]
            }),
            ("stall", |_, digest| vec![Fault::StallAt { digest, offsets: vec![100_000] }]),
            ("range ignored", |_, digest| {
                vec![Fault::IgnoreRange, Fault::DropAt { digest, offsets: vec![70_000] }]
            }),
            ("range refused once", |_, digest| {
                vec![Fault::RangeRefused { times: 1 }, Fault::DropAt { digest, offsets: vec![70_000] }]
            }),
            ("wrong content-range once", |_, digest| {
                let value = "bytes 0-9/10".into();
                vec![
                    Fault::WrongContentRange { value, times: 1 },
                    Fault::DropAt { digest, offsets: vec![70_000] },
                ]
            }),
            ("manifest unavailable", |_, _| {
                vec![Fault::Status { path: "/manifests/".into(), status: 502, times: 1, retry_after: None }]
            }),
        ];
        for (name, make) in cases {
            let bench = Bench::new();
            for fault in make(&bench, layer(&bench)) {
                bench.registry.fault(fault);
            }
            succeed(&mut bench.build());
            succeed(larder().arg("verify").arg(bench.volume()));
            println!("{name}: healed");
        }
    });
}

#[case]
fn faults_that_fail_the_build_by_class() {
    isolated(&[], || {
        let always = |path: &str, status| Fault::Status {
            path: path.into(),
            status,
            times: u32::MAX,
            retry_after: None,
        };
        for (fault, code, words) in [
            (always("/blobs/", 500), 69, "500"),
            (always("/manifests/", 503), 69, "503"),
            (always("/blobs/", 404), 64, "404"),
            (always("/blobs/", 403), 77, "403"),
            (Fault::ContentEncoding("gzip".into()), 65, "coded as gzip"),
            (Fault::Length(1), 65, ""),
            (Fault::EndlessManifest, 65, ""),
            (Fault::WrongManifest, 65, ""),
            (Fault::ContentType("application/vnd.oci.image.index.v1+json".into()), 65, ""),
        ] {
            let bench = Bench::new();
            bench.registry.fault(fault.clone());
            let said = exits(code, &mut bench.build());
            assert!(said.contains(words) && said.contains("team/app:1"), "{fault:?}: {said}");
            let staging = bench.volume().join(".larder/staging");
            assert!(!staging.exists() || staging.read_dir().unwrap().next().is_none(), "{fault:?}");
            // After the fault is removed, the same command succeeds.
            bench.registry.heal();
            succeed(&mut bench.build());
        }
    });
}

#[case]
fn all_images_that_fail_are_named() {
    isolated(&[], || {
        let bench = Bench::new();
        let host = bench.registry.host();
        let (gone, other) = (format!("{host}/team/gone:1"), format!("{host}/team/app:9"));
        let said = exits(64, &mut build(&bench.volume(), &[&bench.reference(), &gone, &other]));
        assert!(said.contains(&gone) && said.contains(&other), "{said}");
        assert_eq!(
            bench.registry.requests("/blobs/"),
            1,
            "only the config of the existing image must be fetched"
        );
    });
}

#[case]
fn a_token_that_expires_in_mid_pull_is_renewed() {
    isolated(&[], || {
        let bench = Bench::new();
        bench.registry.require(Auth::Bearer { users: Vec::new(), anonymous: true, uses: 2 });
        succeed(&mut bench.build());
    });
}

#[case]
fn credentials_stay_with_their_host() {
    isolated(&[], || {
        let bench = Bench::new();
        let mut storage = Registry::spawn();
        bench.image.push(&mut storage, "team/app", "1").unwrap();
        bench.registry.require(Auth::Basic(vec![("user".into(), "p4ss".into())]));
        let to = format!("http://{}", storage.host());
        bench.registry.fault(Fault::RedirectBlobs { to, exact: false });
        let config = json!({"auths": {bench.registry.host(): {"username": "user", "password": "p4ss"}}});
        std::fs::write(bench.dir.path().join("config.json"), config.to_string()).unwrap();
        let said = succeed(
            bench.build().arg("--docker-config").arg(bench.dir.path()).args(["--log-level", "trace"]),
        );
        assert!(!storage.seen().is_empty(), "blobs must come from the other host");
        assert!(storage.seen().iter().all(|seen| seen.authorization.is_none()));
        assert!(!said.contains("p4ss"));
    });
}

#[case]
fn a_layer_of_another_media_type_is_taken_for_what_it_is() {
    isolated(&[], || {
        let built = LayerBuilder::new().file("x", "x").zstd();
        let mut layer = Layer::from(built);
        layer.suffix = "tar+gzip";
        let bench = Bench::of(Image::builder(Format::Oci).layer(layer).build());
        succeed(&mut bench.build());
        let cache = std::fs::read_to_string(bench.volume().join("cache.json")).unwrap();
        assert!(cache.contains(r#""compression": "zstd""#), "{cache}");
    });
}

#[case]
fn manifests_that_share_a_config_and_a_diff_id_used_twice() {
    isolated(&[], || {
        let layer = Layer::from(LayerBuilder::new().file("etc/x", random(1, 9000)).gzip());
        let again = Layer::from(LayerBuilder::new().file("etc/x", random(1, 9000)).zstd());
        assert_eq!(layer.diff_id, again.diff_id);
        let other = Layer::from(LayerBuilder::new().dir("etc").gzip());
        let twice = [layer.clone(), other.clone(), layer.clone()];
        let bench = Bench::of(Image::builder(Format::Oci).layers(twice.clone()).build());
        // The same config under another manifest, whose layers are compressed differently.
        let layers: Vec<_> = [&again, &other, &again]
            .map(|layer| {
                let media_type = Format::Oci.layer(layer.suffix);
                json!({"mediaType": media_type, "digest": layer.digest, "size": layer.blob.len()})
            })
            .into();
        let manifest = Document::new(
            Format::Oci.manifest(),
            &json!({
                "schemaVersion": 2,
                "mediaType": Format::Oci.manifest(),
                "config": bench.image.config.descriptor(),
                "layers": layers,
            }),
        );
        bench.registry.put_blob(again.blob.clone());
        bench.registry.put_manifest("team/app", "2", &manifest.media_type, manifest.bytes.clone());
        let second = format!("{}/team/app:2", bench.registry.host());
        succeed(&mut build(&bench.volume(), &[&bench.reference(), &second]));
        succeed(larder().arg("verify").arg(bench.volume()));
        let served = bench.registry.served(&layer.digest) + bench.registry.served(&again.digest);
        assert!(
            served == layer.blob.len() as u64 || served == again.blob.len() as u64,
            "must be fetched once: {served}"
        );
        let images = std::fs::read_to_string(bench.volume().join("overlay-images/images.json")).unwrap();
        let images: serde_json::Value = serde_json::from_str(&images).unwrap();
        assert_eq!(images.as_array().unwrap().len(), 1);
        assert_eq!(images[0]["names"].as_array().unwrap().len(), 2);
    });
}

#[case]
fn what_is_no_image_is_refused_by_name() {
    isolated(&[], || {
        let bench = Bench::new();
        let config = &bench.image.config;
        let layer = &bench.image.layers[0];
        let manifest = |config_type: &str, layer_type: &str| {
            json!({
                "schemaVersion": 2,
                "mediaType": Format::Oci.manifest(),
                "config": {"mediaType": config_type, "digest": config.digest, "size": config.bytes.len()},
                "layers": [{"mediaType": layer_type, "digest": layer.digest, "size": layer.blob.len()}],
            })
        };
        let image_config = Format::Oci.config();
        for (tag, media_type, document, words) in [
            (
                "chart",
                Format::Oci.manifest(),
                manifest("application/vnd.cncf.helm.config.v1+json", "a/b"),
                "helm",
            ),
            (
                "layer",
                Format::Oci.manifest(),
                manifest(image_config, "application/x-unknown"),
                "application/x-unknown",
            ),
            (
                "schema1",
                "application/vnd.docker.distribution.manifest.v1+json",
                json!({"schemaVersion": 1, "name": "a", "fsLayers": []}),
                "schema 1",
            ),
        ] {
            bench.registry.put_manifest("team/app", tag, media_type, document.to_string());
            let reference = format!("{}/team/app:{tag}", bench.registry.host());
            let volume = bench.dir.path().join(tag);
            let said = exits(64, &mut build(&volume, &[&reference]));
            assert!(said.contains(words), "{tag}: {said}");
        }
    });
}
