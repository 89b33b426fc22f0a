//! Traces of builds, as an OpenTelemetry collector receives them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use larder_testing::registry::Registry;
use serde_json::Value;

use crate::harness::daemon::{Daemon, ROOMY, Tenant};
use crate::harness::isolated;

const A: Tenant = Tenant("team-a");
const LIMIT: Duration = Duration::from_secs(60);

/// A request to the collector: its head and its body.
type Export = (String, Value);

/// A collector that accepts every export. Returns its URL and the exports.
fn collector() -> (String, Receiver<Export>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, exports) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                assert!(stream.read_line(&mut head).unwrap() > 0, "{head}");
            }
            let lower = head.to_lowercase();
            let length = lower.split_once("content-length: ").unwrap().1.lines().next().unwrap();
            let mut body = vec![0; length.parse().unwrap()];
            stream.read_exact(&mut body).unwrap();
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
            stream.get_mut().write_all(answer.as_bytes()).unwrap();
            if sender.send((lower, serde_json::from_slice(&body).unwrap())).is_err() {
                return;
            }
        }
    });
    (url, exports)
}

fn time(span: &Value, key: &str) -> u64 {
    span[key].as_str().unwrap().parse().unwrap()
}

fn attribute<'a>(span: &'a Value, key: &str) -> &'a Value {
    let mut attributes = span["attributes"].as_array().unwrap().iter();
    let found = attributes.find(|attribute| attribute["key"] == key);
    &found.unwrap_or_else(|| panic!("{key}: {span}"))["value"]["stringValue"]
}

#[case]
fn a_collector_receives_a_trace_of_each_build() {
    isolated(&[], || {
        let mut registry = Registry::spawn();
        let layer = |name| Layer::from(LayerBuilder::new().file(name, name).gzip());
        let layers = ["a", "b"].map(layer);
        Image::builder(Format::Oci).layers(layers).build().push(&mut registry, "team/app", "1").unwrap();
        let image = format!("{}/team/app:1", registry.host());
        let (url, exports) = collector();
        let daemon = Daemon::start(&[A], &format!("{ROOMY}telemetry.otlp_endpoint = '{url}'\n"));
        let id = daemon.order(A, "web", std::slice::from_ref(&image));
        daemon.settle(A, &id, "Available", LIMIT);
        let (head, export) = exports.recv_timeout(LIMIT).unwrap();
        assert!(head.starts_with("post /v1/traces http/1.1") && head.contains("application/json"), "{head}");
        for secret in ["authorization", "x-auth-token", "cookie"] {
            assert!(!head.contains(secret), "{head}");
        }
        assert!(!export.to_string().contains(&A.token()));
        let spans = export["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap();
        let of = |name: &str| spans.iter().filter(|span| span["name"] == name).collect::<Vec<_>>();
        let [build] = of("build")[..] else { panic!("{export}") };
        let [of_image] = of("image")[..] else { panic!("{export}") };
        assert_eq!(attribute(build, "larder.cache.name"), "web");
        assert_eq!(attribute(build, "larder.tenant"), A.0);
        assert_eq!(attribute(build, "larder.cache.id"), &id);
        assert_eq!(attribute(of_image, "larder.image.reference"), &image);
        assert!(build["parentSpanId"].is_null() && build["traceId"].as_str().unwrap().len() == 32, "{build}");
        for (name, count, parent) in [
            ("resolve", 1, build),
            ("layers", 1, build),
            ("seal", 1, build),
            ("image", 1, build),
            ("layer", 2, of_image),
        ] {
            assert_eq!(of(name).len(), count, "{name}: {export}");
            for span in of(name) {
                assert_eq!(span["parentSpanId"], parent["spanId"], "{span}");
                assert_eq!(span["traceId"], build["traceId"], "{span}");
                let (start, end) = (time(span, "startTimeUnixNano"), time(span, "endTimeUnixNano"));
                assert!(start <= end && start >= time(parent, "startTimeUnixNano"), "{span} {parent}");
                assert!(end <= time(parent, "endTimeUnixNano"), "{span} {parent}");
            }
        }
        assert!(of("layer").iter().all(|layer| attribute(layer, "larder.layer.source") == "fetched"));

        // A failed build is also a trace.
        let id = daemon.order(A, "none", &[format!("{}/team/none:1", registry.host())]);
        daemon.settle(A, &id, "Failed", LIMIT);
        let (_, export) = exports.recv_timeout(LIMIT).unwrap();
        let build = &export["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
        assert_eq!((&build["name"], &build["status"]["code"]), (&"build".into(), &2.into()));
        assert_eq!(attribute(build, "error.type"), "not_found");
    });
}

#[case]
fn a_collector_that_is_down_does_not_delay_builds() {
    isolated(&[], || {
        let mut registry = Registry::spawn();
        let layer = Layer::from(LayerBuilder::new().file("a", "a").gzip());
        Image::builder(Format::Oci).layer(layer).build().push(&mut registry, "team/app", "1").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let closed = listener.local_addr().unwrap();
        drop(listener);
        let daemon = Daemon::start(&[A], &format!("{ROOMY}telemetry.otlp_endpoint = 'http://{closed}'\n"));
        for name in ["first", "second"] {
            let id = daemon.order(A, name, &[format!("{}/team/app:1", registry.host())]);
            daemon.settle(A, &id, "Available", LIMIT);
        }
        let deadline = std::time::Instant::now() + LIMIT;
        while !daemon.log().contains("cannot export a trace") {
            assert!(std::time::Instant::now() < deadline, "{}", daemon.log());
            thread::sleep(Duration::from_millis(20));
        }
    });
}
