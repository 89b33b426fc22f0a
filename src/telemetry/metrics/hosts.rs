//! The registry hosts with their own label in metrics.
//!
//! Tenants choose the registries of their images, so an arbitrary host has no label of its own. A host has
//! one if the configuration names it or it is a well-known public registry. A label never has a path or a
//! user.

use std::collections::HashSet;
use std::fs;
use std::sync::{PoisonError, RwLock};

use reqwest::Url;

use crate::config::registry::Registry;

/// Maximum number of directories of `registry.certs_d` that are read.
const MAX_DIRECTORIES: usize = 256;
/// Hosts that have a label in every configuration.
const PUBLIC: [&str; 9] = [
    "registry-1.docker.io",
    "gcr.io",
    "ghcr.io",
    "mcr.microsoft.com",
    "nvcr.io",
    "public.ecr.aws",
    "quay.io",
    "registry.gitlab.com",
    "registry.k8s.io",
];
/// The label of all other hosts.
const OTHER: &str = "other";

/// The hosts with their own label.
#[derive(Debug, Default)]
pub(super) struct Hosts(RwLock<HashSet<String>>);

impl Hosts {
    /// Replaces the configured hosts: names and mirrors of `[[registry.host]]`, and directories of `certs_d`.
    pub(super) fn replace(&self, section: &Registry) {
        let given = section.host.iter().flat_map(|host| host.mirrors.iter().chain([&host.name]));
        let given: HashSet<String> = given.filter_map(|given| authority(given)).collect();
        let directories = fs::read_dir(&section.certs_d).into_iter().flatten().take(MAX_DIRECTORIES);
        let names =
            directories.filter_map(|entry| directory_host(&entry.ok()?.file_name().into_string().ok()?));
        let all = given.into_iter().chain(names).collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = all;
    }

    /// Returns the label of a host. `host` can be a URL, for a layer with its own location.
    pub(super) fn label(&self, host: &str) -> String {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let host = authority(host).unwrap_or_default();
        if PUBLIC.contains(&host.as_str()) || known.contains(&host) { host } else { OTHER.to_owned() }
    }
}

/// Returns host and port of `[scheme://]host[:port][/path]`, without the default port of its scheme.
fn authority(given: &str) -> Option<String> {
    let url = match given.contains("://") {
        true => Url::parse(given),
        false => Url::parse(&format!("https://{given}")),
    };
    let url = url.ok()?;
    let host = url.host_str()?;
    Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

/// Returns the host of a directory: `host`, `host:port` or `host_port_` (containerd, docs/hosts.md).
fn directory_host(name: &str) -> Option<String> {
    let with_port = name.strip_suffix('_').and_then(|name| name.rsplit_once('_'));
    match with_port {
        Some((host, port)) => authority(&format!("{host}:{port}")),
        None => authority(name).filter(|_| name != "_default"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn hosts_of_the_configuration_have_a_label() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.example.com", "b.example.com_5000_", "_default"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let text = format!(
            "registry.certs_d = '{}'\n[[registry.host]]\nname = 'r.example.com:5000/team'\n\
             mirrors = ['http://near.example.com/v2', 'https://far.example.com:443']\n",
            dir.path().display()
        );
        let hosts = Hosts::default();
        assert_eq!(hosts.label("r.example.com:5000"), OTHER);
        hosts.replace(&Config::parse(&text, []).unwrap().registry);
        for known in [
            "r.example.com:5000",
            "near.example.com",
            "far.example.com",
            "a.example.com",
            "b.example.com:5000",
            "ghcr.io",
        ] {
            assert_eq!(hosts.label(known), known);
        }
        for unknown in
            ["r.example.com", "r.example.com:5001", "_default", "", "h\"} 1\nlarder_builds_total 9"]
        {
            assert_eq!(hosts.label(unknown), OTHER, "{unknown}");
        }
        assert_eq!(hosts.label("https://u:secret@ghcr.io/v2/a/blobs/b?token=c"), "ghcr.io");
    }
}
