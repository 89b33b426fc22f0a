//! Image configs from unknown sources: a build refuses configs that the runtimes cannot read, and the
//! runtimes can read everything that is built.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use bytes::Bytes;
use larder_model::digest::Digest;
use larder_model::manifest::ImageConfig;
use larder_testing::image::{Document, Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use serde_json::{Value, json};

use crate::harness::node::Node;
use crate::harness::registry::Registry;
use crate::harness::served::Served;
use crate::harness::{Need, exits, isolated, larder, succeed};

const NEEDS: [Need; 3] = [Need::Program("podman"), Need::Program("skopeo"), Need::Program("docker-registry")];
const SIZE: u64 = 64 << 20;

fn layer() -> Layer {
    LayerBuilder::new().file("file", "x").gzip().into()
}

/// Returns an image with this config, in which `DIFF` stands for the diff ID.
fn image(format: Format, config: &[u8]) -> Image {
    let layer = layer();
    let text = replace(config, b"DIFF", layer.diff_id.to_string().as_bytes());
    let bytes = Bytes::from(text);
    let config = Document { media_type: format.config().into(), digest: Digest::sha256(&bytes), bytes };
    let plain = Image::builder(format).layer(layer).build();
    let mut manifest: Value = serde_json::from_slice(&plain.manifest.bytes).unwrap();
    manifest["config"] = config.descriptor();
    Image { manifest: Document::new(format.manifest(), &manifest), config, ..plain }
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    [&bytes[..at], to, &bytes[at + from.len()..]].concat()
}

/// Returns a config with more members before `rootfs`, and with more members in `config`.
fn with(more: &str, process: &str) -> Vec<u8> {
    let platform = r#""os":"linux","architecture":"amd64","#;
    format!(r#"{{{platform}{more}"config":{{{process}}},"rootfs":{{"type":"layers","diff_ids":["DIFF"]}}}}"#)
        .into_bytes()
}

/// Returns configs that podman refuses, and the field.
fn refused() -> Vec<(Vec<u8>, &'static str)> {
    let top = |more: &str| with(&format!("{more},"), "");
    let process = |process: &str| with("", process);
    vec![
        (top(r#""created":"2024-01-01 00:00:00Z""#), "created"),
        (top(r#""created":"2024-01-01t00:00:00z""#), "created"),
        (top(r#""created":"2016-12-31T23:59:60Z""#), "created"),
        (top(r#""CREATED":"yesterday""#), "created"),
        (top(r#""history":"x""#), "history"),
        (top(r#""history":[{"created":"yesterday"}]"#), "history[0].created"),
        (top(r#""author":5"#), "author"),
        (top(r#""os.version":5"#), "os.version"),
        (top(r#""os.features":"x""#), "os.features"),
        (process(r#""Entrypoint":"/bin/sh""#), "config.Entrypoint"),
        (process(r#""Labels":{"a":1}"#), "config.Labels"),
        (process(r#""ExposedPorts":["80/tcp"]"#), "config.ExposedPorts"),
        (process(r#""User":0"#), "config.User"),
        (process(r#""Healthcheck":{"Interval":3e10}"#), "config.Healthcheck.Interval"),
        (process(r#""env":["a",5]"#), "config.Env[1]"),
    ]
}

/// Returns configs that podman accepts.
fn accepted() -> Vec<Vec<u8>> {
    let top = |more: &str| with(&format!("{more},"), "");
    let process = |process: &str| with("", process);
    let bare = br#"{"rootfs":{"type":"layers","diff_ids":["DIFF"]}}"#.to_vec();
    let latin_1 = replace(&process(r#""Labels":{"a":"ANDRE"}"#), b"ANDRE", b"Andr\xe9");
    vec![
        with("", ""),
        bare,
        latin_1,
        top(r#""variant":"v1""#),
        top(r#""created":"2024-01-01T1:02:03,5+02:00""#),
        top(r#""created":"2024-01-01T01:02:03.123456789012Z""#),
        top(r#""created":null,"author":null,"history":null"#),
        top(r#""x":1e999,"y":"\ud800","os":"linux""#),
        top(r#""Created":"2024-01-01T01:02:03Z","history":[{},{"empty_layer":true}]"#),
        process(r#""Labels":{"a":"\udc00"},"Cmd":null,"Healthcheck":{"Interval":30000000000}"#),
        process(r#""cmd":["/bin/a"],"CMD":["/bin/b"],"Volumes":{"/v":{}}"#),
    ]
}

fn import(archive: &Path, volume: &Path) -> Command {
    let mut larder = larder();
    larder.arg("import").arg(archive).arg("--volume").arg(volume);
    larder.args(["--sizing", "warn", "--size", &format!("{SIZE}B"), "--image", "localhost/odd:1"]);
    larder
}

/// Writes an OCI layout with one image.
fn layout(image: &Image, at: &Path) {
    let blobs = at.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(at.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let index = json!({"schemaVersion": 2, "manifests": [image.manifest.descriptor()]});
    fs::write(at.join("index.json"), index.to_string()).unwrap();
    let layers = image.layers.iter().map(|layer| (&layer.digest, &layer.blob));
    let documents = [&image.config, &image.manifest].map(|document| (&document.digest, &document.bytes));
    for (digest, bytes) in layers.chain(documents) {
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
    }
}

#[case]
fn what_runtimes_cannot_read_is_not_built() {
    isolated(&NEEDS, || {
        let refused = refused();
        for format in [Format::Oci, Format::Docker] {
            let served = Served::new(refused.iter().map(|(config, _)| image(format, config)));
            let said = exits(65, &mut served.build(&served.volume(), SIZE));
            for (reference, (_, field)) in served.references().iter().zip(&refused) {
                // The reason is on the line after the name of the image.
                let mut lines = said.lines().skip_while(|line| !line.ends_with(&format!("{reference}:")));
                let found = lines.nth(1).unwrap_or_else(|| panic!("no error names {reference}\n{said}"));
                assert!(found.contains(&format!("its field {field}")), "{field}: {found}");
            }
            assert!(!served.volume().join("cache.json").exists());
        }
        // podman also fails: it does not pull them, or cannot read them.
        let registry = Registry::open();
        let podman_takes = |config: &[u8]| {
            let reference = registry.push(&image(Format::Oci, config), "odd", "1");
            let node = Node::with_podman();
            let succeeds = |args: &[&str]| {
                let mut podman = node.command("podman");
                podman.args(args).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
            };
            succeeds(&["pull", "--quiet", "--tls-verify=false", &reference])
                && succeeds(&["images"])
                && succeeds(&["inspect", "--type", "image", &reference])
        };
        assert!(podman_takes(&with("", "")));
        for (config, field) in &refused {
            assert!(!podman_takes(config), "podman accepted {field}");
        }
        let dir = tempfile::tempdir().unwrap();
        for (number, (config, field)) in refused.iter().enumerate() {
            let at = dir.path().join(number.to_string());
            layout(&image(Format::Oci, config), &at);
            let said = exits(65, &mut import(&at, &dir.path().join(format!("volume-{number}"))));
            assert!(said.contains(&format!("its field {field}")), "{field}: {said}");
        }
    });
}

/// Builds all of these into one store, and reads every one with podman and skopeo.
fn all_are_read(images: Vec<Image>) {
    let served = Served::new(images);
    let volume = served.volume();
    succeed(&mut served.build(&volume, SIZE));
    succeed(larder().arg("verify").arg(&volume));
    let (node, at) = (Node::with_podman(), served.beside("v"));
    succeed(node.attach(&volume, &at).args(["--runtime", "podman", "--no-unit"]));
    let mut want = served.references();
    want.sort();
    assert_eq!(node.images(), want);
    let mut inspect = node.command("podman");
    succeed(inspect.args(["inspect", "--type", "image"]).args(&want));
    for reference in want {
        let mut skopeo = node.command("skopeo");
        succeed(skopeo.args(["inspect", &format!("containers-storage:{reference}")]));
    }
    succeed(&mut node.detach(&at));
}

#[case]
fn what_runtimes_can_read_is_built_and_read() {
    isolated(&NEEDS, || {
        let images = |format| accepted().into_iter().map(move |config| image(format, &config));
        all_are_read(images(Format::Oci).chain(images(Format::Docker)).collect());
        let dir = tempfile::tempdir().unwrap();
        for (number, config) in accepted().iter().enumerate() {
            let at = dir.path().join(number.to_string());
            layout(&image(Format::Oci, config), &at);
            succeed(&mut import(&at, &dir.path().join(format!("volume-{number}"))));
        }
    });
}

/// Parts of random configs: (field, value), some of them wrong.
const FIELDS: [&str; 13] = [
    "created",
    "Created",
    "author",
    "os.version",
    "os.features",
    "history",
    "size",
    "id",
    "container_config",
    "comment",
    "docker_version",
    "x",
    "parent",
];
const PROCESS: [&str; 12] = [
    "Entrypoint",
    "cmd",
    "Env",
    "User",
    "Labels",
    "ExposedPorts",
    "Volumes",
    "Healthcheck",
    "StopTimeout",
    "Shell",
    "WorkingDir",
    "Tty",
];
const VALUES: [&str; 26] = [
    "null",
    "true",
    "0",
    "-1",
    "1.5",
    "3e10",
    "1e999",
    "9223372036854775807",
    "9223372036854775808",
    "\"\"",
    "\"a\"",
    "\"\\ud800\"",
    "\"2024-01-01T00:00:00Z\"",
    "\"2024-01-01t00:00:00Z\"",
    "\"2024-02-30T00:00:00Z\"",
    "\"2024-01-01T1:00:00,5+24:00\"",
    "\"0000-01-01T00:00:00Z\"",
    "[]",
    "[null]",
    "[\"a\"]",
    "[1]",
    "{}",
    "{\"a\":{}}",
    "{\"a\":\"b\"}",
    "{\"Interval\":1}",
    "[{\"created\":\"2024-01-01T00:00:00.5-07:00\"}]",
];

/// podman can list everything that is built from random configs.
#[case]
fn podman_lists_every_image_of_a_store_that_was_built() {
    isolated(&NEEDS, || {
        let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut pick = |count: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % count
        };
        let mut configs = Vec::new();
        let mut refused = 0;
        while configs.len() < 60 {
            let mut member = |names: &[&str]| {
                let name = names[pick(names.len())];
                format!("\"{name}\":{}", VALUES[pick(VALUES.len())])
            };
            let number = configs.len() + refused;
            let (top, one, two) = (member(&FIELDS), member(&PROCESS), member(&PROCESS));
            let config = with(&format!("\"number\":{number},{top},"), &format!("{one},{two}"));
            let image = image(if number % 2 == 0 { Format::Oci } else { Format::Docker }, &config);
            match ImageConfig::parse(&image.config.bytes) {
                Ok(_) => configs.push(image),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > 20, "the generator created too few unusual configs");
        all_are_read(configs);
    });
}
