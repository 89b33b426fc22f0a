//! Operation of the daemon: its log, its metrics, its configuration, and changes that it applies while it
//! runs.

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use larder_model::digest::Digest;
use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use larder_testing::registry::{Fault, Registry};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::daemon::{Daemon, ROOMY, Tenant};
use crate::harness::http::send;
use crate::harness::served::random;
use crate::harness::{Need, exits, isolated, larder, registry, succeed};

const A: Tenant = Tenant("team-a");
const B: Tenant = Tenant("team-b");
const LIMIT: Duration = Duration::from_secs(120);

fn image(seeds: &[u64]) -> Image {
    let layer =
        |seed: &u64| Layer::from(LayerBuilder::new().file(format!("f{seed}"), random(*seed, 1 << 20)).gzip());
    Image::builder(Format::Oci).layers(seeds.iter().map(layer)).build()
}

fn until(daemon: &Daemon, what: &str, ready: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !ready() {
        assert!(Instant::now() < deadline, "{what}\n{}", daemon.log());
        sleep(Duration::from_millis(20));
    }
}

/// Returns the level and all fields of a log line, including those of its spans.
fn fields(line: &str) -> Value {
    let mut line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    let mut fields = line["fields"].take();
    fields["level"] = line["level"].take();
    for span in line["spans"].as_array().into_iter().flatten() {
        for (name, value) in span.as_object().unwrap() {
            fields[name] = value.clone();
        }
    }
    fields
}

#[case]
fn structured_logs_name_the_tenant_and_the_cache() {
    isolated(&[], || {
        let mut registry = Registry::spawn();
        image(&[1]).push(&mut registry, "team/app", "1").unwrap();
        let [good, bad] = ["1", "none"].map(|tag| format!("{}/team/app:{tag}", registry.host()));
        let daemon = Daemon::start(&[A], &format!("{ROOMY}log.format = 'json'\nlog.level = 'debug'\n"));
        let made = daemon.order(A, "web", std::slice::from_ref(&good));
        daemon.settle(A, &made, "Available", LIMIT);
        let failed = daemon.order(A, "bad", std::slice::from_ref(&bad));
        daemon.settle(A, &failed, "Failed", LIMIT);
        daemon.ask(A, "DELETE", &format!("/v5/imagecaches/{made}"), None).expect(202);
        daemon.ask(A, "POST", &format!("/larder/v1/caches/{failed}/cancel"), None).expect(409);
        until(&daemon, "the cache is deleted", || daemon.log().contains("\"message\":\"deleted\""));
        let log = daemon.log();
        let lines: Vec<Value> = log.lines().map(fields).collect();
        let line = |wanted: &[(&str, &str)]| {
            let has = |line: &&Value| wanted.iter().all(|(name, value)| line[name] == *value);
            lines.iter().find(has).unwrap_or_else(|| panic!("no line has {wanted:?}\n{log}"))
        };
        let ordered = line(&[("message", "ordered"), ("cache", &made), ("tenant", A.0)]);
        let request = ordered["request"].as_str().unwrap();
        assert_eq!(ordered["images"], json!([good]), "{ordered}");
        line(&[("message", "answered"), ("request", request), ("tenant", A.0), ("level", "DEBUG")]);
        line(&[("message", "refused"), ("cache", &failed), ("cache_name", "bad"), ("level", "INFO")]);
        line(&[("message", "deleted"), ("cache", &made), ("cache_name", "web"), ("level", "INFO")]);
        line(&[("message", "resolved"), ("cache", &made), ("tenant", A.0), ("image", &good)]);
        let why = |line: &&Value| line["cache"] == *failed && line["class"] == "not_found";
        let why = lines.iter().find(why).unwrap_or_else(|| panic!("{log}"));
        assert_eq!(why["tenant"], A.0);
        assert_eq!(why["images"], json!([bad]), "{why}");
        for line in lines.iter().filter(|line| !line["cache"].is_null()) {
            assert!(line["cache_name"].is_string(), "{line}");
        }
    });
}

#[case]
fn the_log_starts_with_the_version_and_ends_with_the_stop() {
    isolated(&[], || {
        let mut daemon = Daemon::start(&[A], &format!("{ROOMY}log.format = 'json'\n"));
        daemon.ask(A, "GET", "/v5/imagecaches", None).expect(200);
        daemon.stop();
        let log = daemon.log();
        let lines: Vec<Value> = log.lines().map(fields).collect();
        let started: Vec<_> = lines.iter().filter(|line| line["message"] == "serving requests").collect();
        let [started] = &started[..] else { panic!("{log}") };
        assert_eq!(started["version"], env!("CARGO_PKG_VERSION"));
        assert!(started["commit"].is_string(), "{started}");
        assert_eq!(started["config"], daemon.config().display().to_string());
        assert_eq!(started["tcp"], daemon.address().to_string());
        for path in ["socket", "state"] {
            assert!(started[path].as_str().unwrap().starts_with('/'), "{started}");
        }
        assert!(lines.last().unwrap()["message"].as_str().unwrap().starts_with("shutting down"), "{log}");
        assert!(lines.iter().all(|line| line["message"] != "answered"), "{log}");
    });
}

#[case]
fn metrics_count_the_work() {
    isolated(&[], || {
        let mut registry = Registry::spawn();
        let image = image(&[1, 2]);
        image.push(&mut registry, "team/app", "1").unwrap();
        let blobs: u64 = image.layers.iter().map(|layer| layer.blob.len() as u64).sum();
        let images = [format!("{}/team/app:1", registry.host())];
        let token = Digest::sha256(b"scrape");
        let more = format!(
            "{ROOMY}api.metrics_token_sha256 = ['{}']\ncaches.build_retry_pause_seconds = 1\n\
             registry.host = [{{ name = '{}', plain_http = true }}]\n",
            token.hex(),
            registry.host()
        );
        let daemon = Daemon::start(&[A], &more);
        // Fetched at the second attempt, reused, and never available.
        let busy = |times| Fault::Status {
            path: "/blobs/".into(),
            status: 503,
            times,
            retry_after: Some("0".into()),
        };
        registry.fault(busy(1));
        let made = ["first", "second"].map(|name| {
            let id = daemon.order(A, name, &images);
            daemon.settle(A, &id, "Available", LIMIT);
            id
        });
        // Only the configured registry has its own label.
        let mut unknown = Registry::spawn();
        image.push(&mut unknown, "team/app", "1").unwrap();
        for (name, host) in [("none", registry.host()), ("elsewhere", unknown.host())] {
            let id = daemon.order(A, name, &[format!("{host}/team/none:1")]);
            daemon.settle(A, &id, "Failed", LIMIT);
        }

        let scrape = || {
            let answer =
                send(daemon.address(), "GET", "/metrics", &[("X-Auth-Token", "scrape")], &[]).unwrap();
            assert_eq!(answer.status, 200);
            String::from_utf8(answer.body).unwrap()
        };
        let value = |text: &str, name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
        };
        until(&daemon, "the metric of running builds is 0", || {
            value(&scrape(), "larder_builds_running") == 0.0
        });
        let text = scrape();
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let (fetched, capacity) = (blobs as f64, (20u64 << 40) as f64);
        let host = registry.host();
        for (name, wanted) in [
            ("larder_builds_total{result=\"sealed\"}", 2.0),
            ("larder_builds_total{result=\"failed\"}", 2.0),
            ("larder_build_failures_total{class=\"not_found\",result=\"failed\"}", 2.0),
            ("larder_build_failures_total{class=\"internal\",result=\"failed\"}", 0.0),
            ("larder_build_duration_seconds_count", 4.0),
            ("larder_layer_bytes_total{source=\"registry\"}", fetched),
            ("larder_layer_bytes_total{source=\"reused\"}", fetched),
            ("larder_layer_bytes_total{source=\"mirror\"}", 0.0),
            (&format!("larder_registry_failures_total{{host=\"{host}\",class=\"not_found\"}}"), 1.0),
            ("larder_registry_failures_total{host=\"other\",class=\"not_found\"}", 1.0),
            ("larder_build_stage_duration_seconds_count{stage=\"seal\"}", 2.0),
            ("larder_fetched_bytes_total", fetched),
            ("larder_layers_total{origin=\"fetched\"}", 2.0),
            ("larder_layers_total{origin=\"reused\"}", 2.0),
            ("larder_queue_length", 0.0),
            ("larder_caches{status=\"available\"}", 2.0),
            ("larder_caches{status=\"failed\"}", 2.0),
            ("larder_reserved_bytes", (40u64 << 30) as f64),
            ("larder_capacity_bytes", capacity),
            (&format!("larder_registry_requests_total{{host=\"{host}\",code=\"503\"}}"), 1.0),
            (&format!("larder_registry_retries_total{{host=\"{host}\"}}"), 1.0),
        ] {
            assert_eq!(value(&text, name), wanted, "{name}\n{text}");
        }
        assert!(value(&text, "larder_written_bytes_total") > 1.5 * fetched, "{text}");
        assert!(value(&text, "larder_content_bytes") > 1.5 * fetched, "{text}");
        // The time of the last success is there until the cache is deleted.
        let sample = |name: &str| {
            format!("larder_cache_last_success_timestamp_seconds{{tenant=\"{}\",name=\"{name}\"}}", A.0)
        };
        assert!(value(&text, &sample("first")) > 1.7e9 && !text.contains(&sample("none")), "{text}");
        daemon.ask(A, "DELETE", &format!("/v5/imagecaches/{}", made[0]), None).expect(202);
        let text = scrape();
        assert!(!text.contains(&sample("first")) && text.contains(&sample("second")), "{text}");
    });
}

#[case]
fn a_full_queue_returns_a_retry_time() {
    isolated(&[], || {
        let mut registry = Registry::spawn();
        let image = image(&[1]);
        image.push(&mut registry, "team/app", "1").unwrap();
        let blob = image.layers[0].digest.clone();
        registry
            .fault(Fault::StallAt { digest: blob.clone(), offsets: (0..100).map(|n| n * 1000).collect() });
        let images = [format!("{}/team/app:1", registry.host())];
        let daemon = Daemon::start(
            &[A, B],
            &format!(
                "{ROOMY}registry.stall_timeout_seconds = 1\ncaches.max_concurrent_builds = 1\ncaches.queue_length = 2\n"
            ),
        );
        daemon.order(A, "first", &images);
        until(&daemon, "the first build is running", || registry.served(&blob) > 0);
        let [second, third] =
            [(A, "second"), (B, "third")].map(|(tenant, name)| daemon.order(tenant, name, &images));
        let order = json!({"name": "fourth", "images": images, "building_config": {"cluster": "here"}});
        for tenant in [A, B] {
            let full = daemon.ask(tenant, "POST", "/v5/imagecaches", Some(&order));
            let wait: u32 = full.0.header("Retry-After").unwrap().parse().unwrap();
            assert!((1..=300).contains(&wait), "{wait}");
            assert_eq!(full.expect(429)["errorCode"], "CCE.01429101");
        }
        registry.heal();
        daemon.settle(A, &second, "Available", LIMIT);
        daemon.settle(B, &third, "Available", LIMIT);
        daemon.ask(A, "POST", "/v5/imagecaches", Some(&order)).expect(201);
    });
}

#[case]
fn builders_use_the_reloaded_configuration() {
    isolated(&[Need::Program("docker-registry"), Need::Program("htpasswd")], || {
        let registry = registry::Registry::with_password();
        let images = [registry.push(&image(&[1]), "team/private", "1")];
        let daemon = Daemon::start(&[A], ROOMY);
        let order = |name: &str| {
            let order = json!({
                "name": name, "images": images,
                "building_config": {"cluster": "here", "image_pull_secrets": ["team-a:registry"]},
            });
            let answer = daemon.ask(A, "POST", "/v5/imagecaches", Some(&order)).expect(201);
            answer["image_cache"]["id"].as_str().unwrap().to_owned()
        };
        daemon.settle(A, &order("before"), "Failed", LIMIT);
        let elsewhere = daemon.config().with_file_name("elsewhere");
        let secret = elsewhere.join("team-a/registry");
        fs::create_dir_all(&secret).unwrap();
        fs::copy(registry.docker_config().join("config.json"), secret.join(".dockerconfigjson")).unwrap();
        let text = fs::read_to_string(daemon.config()).unwrap();
        let (old, new) = (daemon.secrets().display().to_string(), elsewhere.display().to_string());
        fs::write(daemon.config(), text.replace(&old, &new)).unwrap();
        daemon.signal(Signal::SIGHUP);
        until(&daemon, "it is read again", || daemon.log().contains("configuration reloaded"));
        daemon.settle(A, &order("after"), "Available", LIMIT);
    });
}

#[case]
fn a_configuration_is_shown_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("larder.toml");
    let config = |action: &str| {
        let mut command = larder();
        command.args(["config", action, "--config"]).arg(&file);
        command.env("LARDER_CACHES__MAX_CONCURRENT_BUILDS", "7");
        command
    };
    let hash = Digest::sha256(b"a token");
    fs::write(
        &file,
        format!(
            "[[tenant]]\nname = 'team-a'\ntoken_sha256 = ['{}']\n[api]\nheader_timeout_seconds = 3\n",
            hash.hex()
        ),
    )
    .unwrap();
    succeed(&mut config("check"));
    let shown = succeed(&mut config("show"));
    let at = file.display();
    for line in [
        format!("header_timeout_seconds = 3  # {at}:5"),
        "max_concurrent_builds = 7  # LARDER_CACHES__MAX_CONCURRENT_BUILDS".to_owned(),
        format!("name = \"team-a\"  # {at}:2"),
        "retries = 8  # default".to_owned(),
        "build_memory = \"1GiB\"  # default".to_owned(),
    ] {
        assert!(shown.lines().any(|other| other == line), "{line}: {shown}");
    }
    let json = |command: &mut Command| -> Vec<(Value, Value)> {
        let entries: Vec<Value> = serde_json::from_str(&succeed(command.arg("--json"))).unwrap();
        entries.into_iter().map(|entry| (entry["key"].clone(), entry["value"].clone())).collect()
    };
    let values = json(&mut config("show"));
    // The output is a configuration with the same values.
    fs::write(&file, &shown).unwrap();
    assert_eq!(json(&mut config("show")), values);
    let flags = succeed(config("show").args(["--log-level", "debug", "--log-format", "json"]));
    for line in ["level = \"debug\"  # --log-level", "format = \"json\"  # --log-format"] {
        assert!(flags.lines().any(|other| other == line), "{line}: {flags}");
    }

    fs::write(&file, "surprise = 1\n[caches]\nbuild_nice = 20\n[state]\ndir = 'here'\n").unwrap();
    for action in ["check", "show"] {
        let said = exits(64, &mut config(action));
        for (line, fault) in [
            (1, "surprise: unknown key"),
            (3, "caches.build_nice: 20 is"),
            (5, "state.dir: want an absolute path"),
        ] {
            let fault = format!("larder: {}:{line}: {fault}", file.display());
            assert!(said.lines().any(|line| line.starts_with(&fault)), "{fault}: {said}");
        }
    }
    fs::write(&file, "[registry]\nretrys = 1\n").unwrap();
    let said = exits(64, &mut config("check"));
    assert!(said.contains("larder.toml:2: registry.retrys: unknown key; did you mean retries?"), "{said}");
}

#[case]
fn unknown_variables_are_reported_once() {
    let mut check = larder();
    check
        .args(["config", "check"])
        .env("LARDER_REGISTRY_RETRIES", "3")
        .env("LARDER_SERVICE_HOST", "10.0.0.1");
    let output = check.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("did you mean LARDER_REGISTRY__RETRIES?").count(), 1, "{said}");
    assert!(!said.contains("LARDER_SERVICE_HOST"), "{said}");
    let wrong = exits(64, check.env("LARDER_REGISTRY__RETRYS", "3"));
    assert!(
        wrong.contains("LARDER_REGISTRY__RETRYS: registry.retrys: unknown key; did you mean retries?"),
        "{wrong}"
    );
}
