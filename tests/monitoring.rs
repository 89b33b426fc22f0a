//! Checks the alert rules and the dashboard: `promtool` accepts them, and they use only metrics that exist.
//! `promtool` is in Debian's package prometheus; without it, its part is skipped unless `LARDER_REQUIRE_ALL`
//! is set.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use regex::Regex;
use serde_json::Value;

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// Returns the names of the metrics in an expression or a text. Suffixes of histograms are removed.
fn metrics(text: &str) -> BTreeSet<String> {
    let names = Regex::new(r"\b(larder|process)_[a-z_]+\b").unwrap();
    let suffix = Regex::new("_seconds_(bucket|sum|count)$").unwrap();
    names.find_iter(text).map(|name| suffix.replace(name.as_str(), "_seconds").into_owned()).collect()
}

fn documented() -> BTreeSet<String> {
    let document = read("docs/reference/metrics.md");
    document
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
        .collect()
}

fn rules() -> Value {
    serde_saphyr::from_str(&read("config/monitoring/alerts.yaml")).unwrap()
}

#[test]
fn promtool_accepts_the_rules() {
    match Command::new("promtool")
        .args(["check", "rules", "config/monitoring/alerts.yaml"])
        .current_dir(root())
        .output()
    {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => assert!(env::var_os("LARDER_REQUIRE_ALL").is_none(), "promtool: {error}"),
    }
}

/// Each rule of the file fires for the samples that describe its problem, and not before.
#[test]
fn rules_fire() {
    match Command::new("promtool")
        .args(["test", "rules", "tests/monitoring.yaml"])
        .current_dir(root())
        .output()
    {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(error) => assert!(env::var_os("LARDER_REQUIRE_ALL").is_none(), "promtool: {error}"),
    }
}

#[test]
fn the_object_for_the_operator_has_the_same_rules() {
    let object: Value =
        serde_saphyr::from_str(&read("config/kubernetes/monitoring/prometheusrule.yaml")).unwrap();
    assert_eq!(object["spec"], rules());
}

#[test]
fn rules_and_panels_use_metrics_that_exist() {
    let documented = documented();
    assert!(documented.len() > 20, "{documented:?}");
    let rules = rules();
    let rules = rules["groups"][0]["rules"].as_array().unwrap().clone();
    let dashboard: Value = serde_json::from_str(&read("config/monitoring/grafana-dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().clone();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let mut used = BTreeSet::new();
    for expression in rules.iter().chain(targets).map(|rule| rule["expr"].as_str().unwrap()) {
        used.extend(metrics(expression));
    }
    let unknown: Vec<_> = used.difference(&documented).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    // Metrics of Larder that no panel and no rule shows.
    let missing: Vec<_> =
        documented.iter().filter(|name| name.starts_with("larder_") && !used.contains(*name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
