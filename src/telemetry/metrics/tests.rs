//! Tests of the metrics: their documentation, their naming rules and their limits.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::config::Config;

/// Returns metrics in which `r.example.com` has its own label.
fn configured() -> Metrics {
    let text = "registry.certs_d = ''\nregistry.host = [{ name = 'r.example.com' }]\n";
    let metrics = Metrics::new();
    metrics.registries(&Config::parse(text, []).unwrap().registry);
    metrics
}

/// Encodes at least one value of each metric.
fn all() -> String {
    let metrics = configured();
    // A family is encoded only if it has a member.
    metrics.build(BuildResult::Stopped, Duration::ZERO);
    metrics.build_failure(Class::NotFound, BuildResult::Failed);
    metrics.layer_bytes(ByteSource::Registry, 1);
    metrics.last_successes([("team-a", "web", 1)].into_iter());
    metrics.registry_failure("r.example.com", Class::Transient);
    metrics.stage(Stage::Plan, Duration::ZERO);
    metrics.layer(LayerOrigin::Fetched, 1, 1);
    metrics.caches(|_| 0);
    metrics.node_caches(|_| 0);
    metrics.registry_requests("r.example.com", 200, 1);
    metrics.registry_retry("r.example.com");
    metrics.registry_replacement("r.example.com");
    metrics.api("GET", "/healthz", 200, Duration::ZERO);
    metrics.encode(Exposition::OpenMetrics)
}

/// Returns the names as they are scraped, with their kinds.
fn kinds(text: &str) -> BTreeMap<String, String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let scraped = types.map(|(name, kind)| {
        let name = match kind {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        };
        (name, kind.to_owned())
    });
    scraped.collect()
}

/// Returns the labels of a metric, except `le` of histograms.
fn labels(text: &str, name: &str) -> BTreeSet<String> {
    let samples = text.lines().filter_map(|line| line.strip_prefix(name)?.split_once('{'));
    let samples = samples.filter(|(suffix, _)| matches!(*suffix, "" | "_bucket" | "_sum" | "_count"));
    let pairs = samples.flat_map(|(_, rest)| rest.split_once('}').unwrap().0.split(','));
    let names = pairs.map(|pair| pair.split_once('=').unwrap().0.to_owned());
    names.filter(|label| label != "le").collect()
}

#[test]
fn the_documentation_lists_every_metric() {
    let text = all();
    let told = kinds(&text).into_iter().map(|(name, kind)| (labels(&text, &name), name, kind));
    let told: BTreeSet<_> = told.map(|(labels, name, kind)| (name, kind, labels)).collect();
    let document = include_str!("../../../docs/reference/metrics.md");
    let rows =
        document.lines().filter(|line| line.starts_with("| `larder_") || line.starts_with("| `process_"));
    let documented: BTreeSet<_> = rows
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let quoted = cells[3].split('`').skip(1).step_by(2).map(str::to_owned).collect();
            (cells[1].trim_matches('`').to_owned(), cells[2].to_owned(), quoted)
        })
        .collect();
    assert_eq!(told, documented);
}

/// The rules of <https://prometheus.io/docs/practices/naming/>, and the suffixes that OpenMetrics reserves.
#[test]
fn names_follow_the_rules() {
    let text = all();
    for (name, kind) in kinds(&text) {
        let family = name.strip_suffix("_total").or(name.strip_suffix("_info")).unwrap_or(&name);
        let words: Vec<&str> = family.split('_').collect();
        assert!(["larder", "process"].contains(&words[0]), "{name}");
        let plain = |word: &&str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase());
        assert!(words.iter().all(plain), "{name}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
        assert!(
            !["total", "count", "sum", "bucket", "created", "info"].contains(words.last().unwrap()),
            "{name}"
        );
        // Units are base units, at the end of the name.
        let units = ["seconds", "bytes"];
        let unit = units.into_iter().find(|unit| words.contains(unit));
        assert!(unit.is_none_or(|unit| words.last() == Some(&unit)), "{name}");
        assert_eq!(text.lines().any(|line| line.starts_with(&format!("# UNIT {family} "))), unit.is_some());
        assert!(kind != "histogram" || unit.is_some(), "{name}");
        let help = text.lines().find_map(|line| line.strip_prefix(&format!("# HELP {family} ")));
        assert!(help.is_some_and(|help| help.len() > 10), "{name}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn codes_of_registries_are_bounded() {
    let metrics = configured();
    (0..=u16::MAX).for_each(|code| metrics.registry_requests("r.example.com", code, 1));
    let text = metrics.encode(Exposition::OpenMetrics);
    let rows = text.lines().filter(|line| line.starts_with("larder_registry_requests_total{"));
    assert!(rows.count() < 80, "{text}");
    assert!(text.contains("code=\"429\"} 1\n") && text.contains("code=\"other\"}"), "{text}");
}

#[test]
fn a_host_cannot_inject_a_line() {
    let metrics = Metrics::new();
    metrics.registry_retry("h\"} 1\nlarder_builds_total 9");
    assert!(
        !metrics
            .encode(Exposition::OpenMetrics)
            .lines()
            .any(|line| line.starts_with("larder_builds_total 9"))
    );
}

#[test]
fn hosts_are_bounded() {
    let metrics = configured();
    for number in 0..100 {
        metrics.registry_retry(&format!("r{number}.example.com"));
    }
    metrics.registry_retry("r.example.com");
    metrics.registry_failure("https://user:secret@r9.example.com/v2/team?token=secret", Class::Denied);
    let text = metrics.encode(Exposition::OpenMetrics);
    for line in [
        "larder_registry_retries_total{host=\"other\"} 100",
        "larder_registry_retries_total{host=\"r.example.com\"} 1",
        "larder_registry_failures_total{host=\"other\",class=\"denied\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert_eq!(text.matches("host=").count(), 3, "{text}");
}

#[test]
fn a_deleted_cache_has_no_time() {
    let metrics = Metrics::new();
    let sample = "larder_cache_last_success_timestamp_seconds{tenant=\"a\",name=\"web\"} 7\n";
    metrics.last_successes([("a", "web", 7), ("a", "db", 8)].into_iter());
    assert!(metrics.encode(Exposition::Text).contains(sample));
    metrics.last_successes([("a", "db", 8)].into_iter());
    assert!(!metrics.encode(Exposition::Text).contains("web"));
}

#[test]
fn counts_are_encoded() {
    let metrics = Metrics::new();
    metrics.build(BuildResult::Sealed, Duration::from_secs(2));
    metrics.build_failure(Class::NoSpace, BuildResult::Retried);
    metrics.layer_bytes(ByteSource::Mirror, 20);
    metrics.layer(LayerOrigin::Reused, 0, 30);
    metrics.caches(|status| usize::from(status == Status::Available));
    metrics.api("GET", "/v5/imagecaches", 200, Duration::from_millis(3));
    let text = metrics.encode(Exposition::OpenMetrics);
    for line in [
        "larder_builds_total{result=\"sealed\"} 1",
        "larder_build_duration_seconds_sum 2.0",
        "larder_build_failures_total{class=\"no_space\",result=\"retried\"} 1",
        "larder_build_failures_total{class=\"no_space\",result=\"failed\"} 0",
        "larder_builds_total{result=\"failed\"} 0",
        "larder_layer_bytes_total{source=\"mirror\"} 20",
        "larder_written_bytes_total 30",
        "larder_layers_total{origin=\"reused\"} 1",
        "larder_caches{status=\"available\"} 1",
        "larder_caches{status=\"failed\"} 0",
        "larder_api_requests_total{method=\"GET\",route=\"/v5/imagecaches\",code=\"200\"} 1",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}
