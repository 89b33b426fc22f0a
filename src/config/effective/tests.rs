use super::*;
use crate::config::{cluster, log};

const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Loads a file in which everything optional is given.
fn full() -> Loaded {
    let text = format!(
        r#"
        [api]
        tcp = "127.0.0.1:80"
        metrics_token_sha256 = ["{HASH}"]
        [caches]
        capacity = "1.5TB"
        build_memory = 1073741825
        [[tenant]]
        name = "team-a"
        token_sha256 = ["{HASH}"]
        access_keys = [{{ id = "AK", secret_file = "a \"b\" # c" }}, {{ id = "AL", secret_file = "d" }}]
        [[tenant]]
        name = "team-b"
        [[cluster]]
        uid = "9c"
        runner = "kubernetes"
        builder_image = "larder:1"
        snapshot_class = "fast"
        [[registry.host]]
        name = "r.io"
        mirrors = ["m.io"]
        plain_http = false
        "#
    );
    let variables = [("LARDER_REGISTRY__RETRIES", "3"), ("LARDER_REGISTRY__ALLOW", "['10.0.0.0/8']")];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Config::parse_file(&text, "/etc/larder.toml".as_ref(), variables).unwrap()
}

#[test]
fn the_output_is_a_file_with_the_same_meaning() {
    for loaded in [full(), Config::parse_file("", "f".as_ref(), []).unwrap()] {
        let shown = loaded.to_toml().unwrap();
        let again = Config::parse_file(&shown, "f".as_ref(), []).unwrap();
        assert_eq!(again.config, loaded.config, "{shown}");
    }
}

#[test]
fn each_value_has_its_source() {
    let shown = full().to_toml().unwrap();
    for line in [
        "dir = \"/var/lib/larder\"  # default",
        "tcp = \"127.0.0.1:80\"  # /etc/larder.toml:3",
        "# tls_key = \"/etc/larder/tls.key\"  # not set",
        "capacity = \"1464843750KiB\"  # /etc/larder.toml:6",
        "build_memory = \"1073741825B\"  # /etc/larder.toml:7",
        "min_layer_rate = \"256KiB\"  # default",
        "retries = 3  # LARDER_REGISTRY__RETRIES",
        "allow = [\"10.0.0.0/8\"]  # LARDER_REGISTRY__ALLOW",
        "plain_http = false  # /etc/larder.toml:22",
        "override_path = false  # default",
        "# Maximum number of retries of a request without progress.",
    ] {
        assert!(shown.lines().any(|other| other == line), "{line}\n{shown}");
    }
    assert_eq!(shown.matches("\n[[tenant]]\n").count(), 2, "{shown}");
    assert_eq!(shown.matches("# Tenants that can use the API").count(), 1, "{shown}");
}

#[test]
fn absent_tables_are_shown_as_an_example() {
    let shown = Config::parse_file("", "f".as_ref(), []).unwrap().to_toml().unwrap();
    let example = "\n# [[registry.host]]\n# name = \"registry.example.com\"";
    assert!(shown.contains(example), "{shown}");
}

#[test]
fn each_key_is_shown_once() {
    let config = Config {
        tenant: vec![crate::config::tenant::Tenant::default()],
        cluster: vec![cluster::Cluster::default()],
        ..Config::default()
    };
    let loaded = Loaded { config, origins: Origins::default() };
    let json: Vec<serde_json::Value> = serde_json::from_str(&loaded.to_json().unwrap()).unwrap();
    let hosts = "registry.host";
    let keys = sections().iter().filter(|section| section.name != hosts).map(|section| section.keys.len());
    assert_eq!(json.len(), keys.sum::<usize>());
}

#[test]
fn the_json_has_values_as_in_a_file() {
    let mut loaded = full();
    let flag = Origin::Flag("--log-level");
    loaded.override_key("log.level", flag, |config| config.log.level = log::Level::Debug);
    let json: Vec<serde_json::Value> = serde_json::from_str(&loaded.to_json().unwrap()).unwrap();
    let of = |key: &str| json.iter().find(|entry| entry["key"] == key).unwrap().clone();
    assert_eq!(of("registry.retries")["value"], 3);
    let variable = serde_json::json!({"kind": "variable", "variable": "LARDER_REGISTRY__RETRIES"});
    assert_eq!(of("registry.retries")["origin"], variable);
    let line = serde_json::json!({"kind": "file", "file": "/etc/larder.toml", "line": 10});
    assert_eq!(of("tenant[0].token_sha256")["origin"], line);
    assert_eq!(of("tenant[0].access_keys")["value"][1]["id"], "AL");
    assert_eq!(of("api.tls_key")["value"], serde_json::Value::Null);
    assert_eq!(of("build.max_logical_size")["value"], "1TiB");
    assert_eq!(of("build.max_logical_size")["origin"], serde_json::json!({"kind": "default"}));
    assert_eq!(
        (&of("log.level")["value"], &of("log.level")["origin"]["flag"]),
        (&"debug".into(), &"--log-level".into())
    );
    assert!(of("log.level")["comment"].as_str().unwrap().starts_with("Minimum severity"));
}
