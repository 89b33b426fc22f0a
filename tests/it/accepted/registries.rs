//! Registries, token servers and mirrors that send unusual responses but the correct bytes.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use larder_testing::registry::{Auth, Fault, Registry};
use serde_json::json;

use super::*;
use crate::harness::served::random;
use crate::harness::{exits, isolated};

/// A registry with one image, and a build of it.
struct Bench {
    registry: Registry,
    image: Image,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let layer = LayerBuilder::new().file("etc/x", random(1, 100_000)).gzip();
        let image = Image::builder(Format::Oci).layer(Layer::from(layer)).build();
        let mut registry = Registry::spawn();
        image.push(&mut registry, "team/app", "1").unwrap();
        Bench { registry, image, dir: tempfile::tempdir().unwrap() }
    }

    /// Creates a bench with a user's password in a docker config.
    fn with_password(auth: Auth) -> Self {
        let bench = Bench::new();
        bench.registry.require(auth);
        let config = json!({"auths": {bench.registry.host(): {"username": "anna", "password": "hunter2"}}});
        fs::write(bench.dir.path().join("config.json"), config.to_string()).unwrap();
        bench
    }

    /// Configures mirrors of the registry, in order.
    fn mirrored(&self, mirrors: &[&Registry]) {
        let urls: Vec<String> = mirrors.iter().map(|mirror| format!("http://{}", mirror.host())).collect();
        let config = format!("[[registry.host]]\nname = {:?}\nmirrors = {urls:?}\n", self.registry.host());
        fs::write(self.dir.path().join("larder.toml"), config).unwrap();
    }

    fn build(&self) -> Command {
        let mut larder = larder();
        larder.env("LARDER_REGISTRY__RETRIES", "1").env("LARDER_REGISTRY__BACKOFF_MAX_SECONDS", "1");
        let config = self.dir.path().join("larder.toml");
        if config.exists() {
            larder.arg("--config").arg(config);
        }
        larder.arg("build").arg("--volume").arg(self.dir.path().join("volume")).args(["--size", "64MiB"]);
        larder.arg("--docker-config").arg(self.dir.path()).arg(self.reference());
        larder
    }

    fn reference(&self) -> String {
        format!("{}/team/app:1", self.registry.host())
    }
}

fn users() -> Vec<(String, String)> {
    vec![("anna".into(), "hunter2".into())]
}

#[case]
fn odd_words_around_the_right_bytes() {
    isolated(&[], || {
        let bearer = || Auth::Bearer { users: users(), anonymous: false, uses: 99 };
        let french = || Fault::ChallengeEnd(b",error_description=\"acc\xe8s refus\xe9\"".to_vec());
        let redirect = |status| Fault::RedirectTokens { to: "/token?again=1".into(), status, times: 1 };
        for (auth, fault) in [
            (Auth::Basic(users()), french()),
            (bearer(), french()),
            (bearer(), redirect(301)),
            (bearer(), redirect(308)),
            (bearer(), Fault::ContentEncoding("aws-chunked".into())),
            (bearer(), Fault::ContentEncoding("none".into())),
            (bearer(), Fault::ContentEncoding("binary".into())),
        ] {
            let bench = Bench::with_password(auth);
            bench.registry.fault(fault.clone());
            let said = exits(0, &mut bench.build());
            assert!(!said.contains("hunter2"), "{fault:?}");
            succeed(larder().arg("verify").arg(bench.dir.path().join("volume")));
        }
    });
}

#[case]
fn docker_configs_without_a_needed_entry() {
    isolated(&[], || {
        for (config, code) in [
            ("", 0),
            ("\n", 0),
            ("null", 0),
            (r#"{"auths":null,"credHelpers":null}"#, 0),
            (r#"{"auths":{"other.example":null,"another.example":{"auth":"%%%"}}}"#, 0),
            ("{", 64),
            (r#"{"auths":[]}"#, 64),
        ] {
            let bench = Bench::with_password(Auth::Bearer { users: users(), anonymous: true, uses: 99 });
            fs::write(bench.dir.path().join("config.json"), config).unwrap();
            let said = exits(code, &mut bench.build());
            assert!(code == 0 || said.contains("config.json"), "{config}: {said}");
        }
    });
}

/// If a mirror sends other bytes, a warning names their digest, and the next host is tried.
#[case]
fn a_mirror_that_corrupts_blobs() {
    isolated(&[], || {
        let (corrupt, truncated) = (Registry::spawn(), Registry::spawn());
        let bench = Bench::new();
        let layer = &bench.image.layers[0];
        let size = layer.blob.len();
        let mut bytes = layer.blob.to_vec();
        bytes[size / 2] ^= 1;
        let digest = Digest::sha256(&bytes);
        for (mirror, blob) in [(&corrupt, bytes), (&truncated, random(3, size))] {
            let blob = bytes::Bytes::from(blob);
            let generate = move |offset: u64, length: usize| {
                let offset = usize::try_from(offset).unwrap();
                blob.slice(offset..offset + length)
            };
            mirror.put_generated(layer.digest.clone(), size as u64, std::sync::Arc::new(generate));
        }
        bench.mirrored(&[&corrupt, &truncated]);
        let said = exits(0, &mut bench.build());
        assert!(said.contains(&digest.to_string()) && said.contains("trying another host"), "{said}");
        succeed(larder().arg("verify").arg(bench.dir.path().join("volume")));
        let served = [&corrupt, &truncated, &bench.registry].map(|registry| registry.served(&layer.digest));
        assert_eq!(served, [size as u64; 3]);

        // If no host has the correct bytes, the error is the digest mismatch, regardless of decoder errors.
        let alone = Bench::new();
        let blob = bytes::Bytes::from(random(4, size));
        let digest = Digest::sha256(&blob);
        let generate = move |offset: u64, length: usize| {
            let offset = usize::try_from(offset).unwrap();
            blob.slice(offset..offset + length)
        };
        alone.registry.put_generated(layer.digest.clone(), size as u64, std::sync::Arc::new(generate));
        let said = exits(65, &mut alone.build());
        assert!(said.contains(&digest.to_string()) && !said.contains("gzip stream"), "{said}");
    });
}

/// The distribution specification: clients should show warnings with code 299 to the user.
#[case]
fn warnings_of_a_registry_are_shown() {
    isolated(&[], || {
        let bench = Bench::new();
        bench.registry.fault(Fault::Warning("299 - \"this repository moves\u{9b}2J on Monday\"".into()));
        let said = exits(0, bench.build().args(["--output", "json"]));
        let shown: Vec<&str> = said.lines().filter(|line| line.contains("this repository moves")).collect();
        assert_eq!(shown.len(), 1, "{said}");
        assert!(shown[0].contains("\"warning\"") && !said.contains('\u{9b}'), "{said}");
    });
}

#[case]
fn a_busy_mirror_is_skipped() {
    isolated(&[], || {
        let (busy, bench) = (Registry::spawn(), Bench::new());
        busy.fault(Fault::Status {
            path: "/v2/".into(),
            status: 429,
            times: u32::MAX,
            retry_after: Some("60".into()),
        });
        bench.mirrored(&[&busy]);
        let started = Instant::now();
        succeed(&mut bench.build());
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        assert!(busy.requests("/v2/") > 0);
    });
}
