//! The contract of a pod: the job in a file, pull secrets in a directory, events on stdout, the result in a
//! file.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use serde_json::{Value, json};

use crate::harness::registry::{PASSWORD, Registry, USER};
use crate::harness::{Need, exits, isolated, larder, succeed};

const NEEDS: &[Need] = &[Need::Program("docker-registry"), Need::Program("htpasswd")];

fn secret(dir: &Path, name: &str, key: &str, content: &str) {
    let dir = dir.join("team").join(name);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join(key), content).unwrap();
}

fn auths(host: &str, password: &str) -> String {
    let auth = BASE64_STANDARD.encode(format!("{USER}:{password}"));
    json!({"auths": {host: {"auth": auth}}}).to_string()
}

#[case]
fn a_pod_pulls_with_its_secrets_in_order() {
    isolated(NEEDS, || {
        let registry = Registry::with_password();
        let layer = Layer::from(LayerBuilder::new().file("etc/x", "x").gzip());
        let reference = registry.push(&Image::builder(Format::Oci).layer(layer).build(), "team/app", "1");
        let dir = tempfile::tempdir().unwrap();
        let secrets = dir.path().join("secrets");
        secret(&secrets, "old", ".dockerconfigjson", &auths(&registry.host(), "no longer"));
        secret(&secrets, "broken", ".dockerconfigjson", "{");
        let flat = json!({registry.host(): {"username": USER, "password": PASSWORD}});
        secret(&secrets, "good", ".dockercfg", &flat.to_string());
        let result = dir.path().join("result");
        let job = dir.path().join("job.json");
        let write_job = |secrets: &[&str]| {
            let job_text = json!({
                "images": [reference], "size": "1GiB", "pull_secrets": secrets, "result_file": result,
            });
            fs::write(&job, job_text.to_string()).unwrap();
        };
        let build = |volume: &str| {
            let mut larder = larder();
            larder.arg("build").arg("--job").arg(&job).arg("--volume").arg(dir.path().join(volume));
            larder.arg("--secrets").arg(&secrets).args(["--output", "json"]);
            larder
        };

        write_job(&["team:missing", "team:broken", "team:old", "team:good"]);
        let events = succeed(&mut build("one"));
        let lines: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.iter().all(|line| line["v"] == 1 && line["time"].is_string()));
        assert_eq!(lines.last().unwrap()["event"], "result");
        let line = fs::read_to_string(&result).unwrap();
        assert!(line.len() < 4096 && line.trim_end().lines().count() == 1);
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["status"], "ok");

        // The message is the same for unknown and malformed secrets.
        let mut said = Vec::new();
        for name in ["missing", "broken"] {
            write_job(&[&format!("team:{name}")]);
            let text = exits(77, &mut build(name));
            assert!(text.contains(&format!("team:{name}")), "{text}");
            let line: Value = serde_json::from_str(&fs::read_to_string(&result).unwrap()).unwrap();
            assert_eq!((&line["status"], &line["exit_code"]), (&json!("failed"), &json!(77)));
            said.push(line["message"].as_str().unwrap().replace(name, "NAME"));
        }
        assert_eq!(said[0], said[1]);
        for text in [&events, &said[0]] {
            assert!(!text.contains(PASSWORD) && !text.contains("no longer"));
        }
    });
}
