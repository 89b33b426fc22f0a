//! The names of environment variables: those that Larder reads itself, and those that it passes on to its
//! child processes. A child gets no others, so that no secret of the environment reaches a process that
//! parses untrusted data.

use super::reference;
use larder_model::similar::similar;

/// Variables with the prefix `LARDER_` that are not configuration keys.
const PLAIN: [&str; 6] =
    ["LARDER_ACCESS_KEY", "LARDER_CA", "LARDER_HOST", "LARDER_LOG", "LARDER_SECRET_KEY", "LARDER_TOKEN"];

/// Variables of Larder's tests and Makefile, and of its build script, which cargo sets for `cargo test` and
/// `cargo run`.
const DEVELOPMENT: [&str; 8] = [
    "LARDER_BENCH_DIR",
    "LARDER_BUILD_COMMIT",
    "LARDER_BUILD_COMPILER",
    "LARDER_BUILD_TARGET",
    "LARDER_PYTHON_ENV",
    "LARDER_REQUIRE_ALL",
    "LARDER_SCREENSHOTS",
    "LARDER_UPDATE_DOCS",
];

/// Variables for the format of times and errors, and for the location of temporary files.
pub const GENERAL: [&str; 4] = ["TZ", "LANG", "LC_ALL", "TMPDIR"];

/// Variables for proxies and certificate authorities, for children that use the network.
pub const NETWORK: [&str; 10] = [
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
];

/// Returns a warning for each variable with the prefix `LARDER_` that Larder does not read. An unknown key
/// (`LARDER_SECTION__KEY`) is an error of the configuration instead.
pub fn warnings(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut unknown: Vec<String> = names.into_iter().filter(|name| is_unknown(name)).collect();
    unknown.sort_unstable();
    unknown.iter().map(|name| warning(name)).collect()
}

fn is_unknown(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("LARDER_") else { return false };
    let is_known = PLAIN.contains(&name) || DEVELOPMENT.contains(&name) || rest.starts_with("TEST_");
    !is_known && !rest.contains("__") && !is_service_link(rest)
}

/// Reports whether Kubernetes sets the variable in each pod of a namespace with a Service `larder` or
/// `larder-…`.
fn is_service_link(rest: &str) -> bool {
    let parts: Vec<&str> = rest.split('_').collect();
    let is_pair = |pair: &[&str]| matches!(pair, ["SERVICE", "HOST" | "PORT"]);
    let is_address = |pair: &[&str]| pair[0] == "PORT" && pair[1].parse::<u16>().is_ok();
    parts.last() == Some(&"PORT") || parts.windows(2).any(|pair| is_pair(pair) || is_address(pair))
}

fn warning(name: &str) -> String {
    let keys: Vec<String> = reference::variables().collect();
    let candidates = keys.iter().map(String::as_str).chain(PLAIN);
    // All names start with the same prefix, which would make them similar.
    let candidates = candidates.filter_map(|name| name.strip_prefix("LARDER_"));
    let rest = name.strip_prefix("LARDER_").unwrap_or(name);
    match similar(rest, candidates, 1).first() {
        Some(other) => format!("unknown environment variable {name}; did you mean LARDER_{other}?"),
        None => format!("unknown environment variable {name}; LARDER_SECTION__KEY sets a configuration key"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_variables_are_reported_with_a_suggestion() {
        let names = ["LARDER_TOKN", "LARDER_REGISTRY_RETRIES", "LARDER_XQ", "PATH", "LARDER_HOST"];
        assert_eq!(
            warnings(names.map(str::to_owned)),
            [
                "unknown environment variable LARDER_REGISTRY_RETRIES; did you mean LARDER_REGISTRY__RETRIES?",
                "unknown environment variable LARDER_TOKN; did you mean LARDER_TOKEN?",
                "unknown environment variable LARDER_XQ; LARDER_SECTION__KEY sets a configuration key",
            ]
        );
    }

    #[test]
    fn service_links_of_kubernetes_are_not_reported() {
        for name in [
            "LARDER_SERVICE_HOST",
            "LARDER_SERVICE_PORT",
            "LARDER_SERVICE_PORT_HTTP",
            "LARDER_PORT",
            "LARDER_PORT_9650_TCP",
            "LARDER_PORT_9650_TCP_ADDR",
            "LARDER_NODE_PORT_9650_TCP_PROTO",
            "LARDER_NODE_SERVICE_HOST",
        ] {
            assert!(warnings([name.to_owned()]).is_empty(), "{name}");
        }
        assert!(!warnings(["LARDER_EXPORT".to_owned()]).is_empty());
    }

    #[test]
    fn documented_variables_are_known() {
        let page = include_str!("../../docs/reference/environment.md");
        let names = page.split('`').filter(|word| word.starts_with("LARDER_") && *word != "LARDER_");
        let names = names.map(|word| word.split('=').next().unwrap_or_default().to_owned());
        let unknown = warnings(names);
        let of_the_text =
            ["unknown environment variable LARDER_REGISTRY_RETRIES; did you mean LARDER_REGISTRY__RETRIES?"];
        assert_eq!(unknown, of_the_text);
        for name in PLAIN {
            assert!(page.contains(&format!("`{name}`")), "{name}");
        }
    }
}
