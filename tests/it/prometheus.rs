//! A real Prometheus scrapes the daemon, as docs/reference/metrics.md describes.

use std::time::Duration;

use larder_model::digest::Digest;
use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use larder_testing::registry::Registry;
use serde_json::json;

use crate::harness::daemon::{Daemon, ROOMY, Tenant};
use crate::harness::http::send;
use crate::harness::prometheus::{Job, Prometheus};
use crate::harness::{Need, isolated};

#[case]
fn prometheus_scrapes_the_daemon_with_a_bearer_token() {
    isolated(&[Need::Program("prometheus")], || {
        let more = format!("api.metrics_token_sha256 = ['{}']\n", Digest::sha256(b"scrape").hex());
        let mut registry = Registry::spawn();
        let layer = Layer::from(LayerBuilder::new().file("f", "content").gzip());
        Image::builder(Format::Oci).layer(layer).build().push(&mut registry, "team/app", "1").unwrap();
        let daemon = Daemon::start(&[Tenant("team-a")], &format!("{ROOMY}{more}"));
        let id = daemon.order(Tenant("team-a"), "web", &[format!("{}/team/app:1", registry.host())]);
        daemon.settle(Tenant("team-a"), &id, "Available", Duration::from_secs(60));
        let job = |name, token| Job { name, address: daemon.address(), token: Some(token) };
        let prometheus = Prometheus::start(&[job("larder", "scrape"), job("guess", "wrong")]);
        daemon.explain(|| {
            let up = prometheus.query("up==1");
            assert_eq!(up.len(), 1, "{up:?}");
            assert_eq!(up[0].0["job"], "larder");
            assert_eq!(prometheus.query("up==0")[0].0["job"], "guess", "a wrong token is refused");
            let build = &prometheus.query("larder_build_info")[0];
            assert_eq!(build.0["version"], env!("CARGO_PKG_VERSION"));
            assert!(prometheus.query("process_resident_memory_bytes")[0].1 > 1e6);
            assert!(prometheus.query("larder_capacity_bytes")[0].1 > 0.0);
            // A counter of failures exists before the first failure, so that an alert sees each increase.
            let failures = prometheus.query("larder_build_failures_total{result=\"failed\"}");
            assert!(failures.len() == 10 && failures.iter().all(|(_, value)| *value == 0.0), "{failures:?}");
            let success = &prometheus.query("larder_cache_last_success_timestamp_seconds")[0];
            assert_eq!((&success.0["tenant"], &success.0["name"]), (&json!("team-a"), &json!("web")));
            let rules = prometheus.get("/api/v1/rules").unwrap();
            let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap();
            assert!(rules.len() > 5 && rules.iter().all(|rule| rule["health"] != "err"), "{rules:?}");
        });
        // Clients that do not accept OpenMetrics get the older format.
        let answer =
            send(daemon.address(), "GET", "/metrics", &[("Authorization", "Bearer scrape")], &[]).unwrap();
        assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        let text = String::from_utf8(answer.body).unwrap();
        assert!(text.contains("# TYPE larder_authentication_failures_total counter\n"), "{text}");
        promtool_accepts(&text);
    });
}

/// Checks metrics with the linter of Prometheus.
fn promtool_accepts(text: &str) {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
