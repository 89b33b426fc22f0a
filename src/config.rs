//! The configuration file `larder.toml`, with one module per section. Flags override environment variables,
//! which override the file, which overrides the defaults. Unknown keys are errors.
//!
//! A variable `LARDER_SECTION__KEY` sets `key` of `[section]`: `LARDER_REGISTRY__RETRIES=3`,
//! `LARDER_BUILD__MEMORY_BUDGET=64MiB`. Its value is parsed as TOML, or used as a plain string if that fails.
//! Variables without the double underscore are not configuration.

pub mod api;
pub mod build;
pub mod caches;
pub mod cluster;
pub mod environment;
pub mod log;
mod merge;
pub mod node;
pub mod registry;
pub mod secrets;
pub mod state;
pub mod telemetry;
pub mod tenant;
pub mod upkeep;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use larder_model::class::Class;
use merge::Sources;

/// Maximum size of the file, bytes.
const MAX_BYTES: u64 = 1 << 20;

/// The complete configuration. The command line applies its flags to it later.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Location of the daemon's persistent state.
    pub state: state::State,
    /// Listeners of the API, and limits of its clients.
    pub api: api::Api,
    /// Limits of image caches and builders.
    pub caches: caches::Caches,
    /// Location of pull secrets.
    pub secrets: secrets::Secrets,
    /// Tenants, who can use the API.
    pub tenant: Vec<tenant::Tenant>,
    /// Clusters, with the runner that builds for each.
    pub cluster: Vec<cluster::Cluster>,
    /// Maintenance that the daemon of a cluster does without a request.
    pub upkeep: upkeep::Upkeep,
    /// Settings of the node agent of a cluster.
    pub node: node::Node,
    /// Settings of connections to registries.
    pub registry: registry::Registry,
    /// Settings of builds into a volume.
    pub build: build::Build,
    /// Level and format of the log.
    pub log: log::Log,
    /// Export of traces to a collector.
    pub telemetry: telemetry::Telemetry,
}

/// One error in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Path of the key: `registry.host[0].ca`.
    pub key: String,
    /// Problem with the value, or with the key itself.
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.reason.trim_end())
    }
}

/// The error for a configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// Path of the configuration file.
        path: PathBuf,
        /// Error of the system call.
        r#source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("the configuration is not TOML: {0}")]
    Syntax(toml::de::Error),
    /// Keys are unknown or have invalid values; contains all such keys.
    #[error("the configuration is invalid: {}", list(.0))]
    Faults(Vec<Fault>),
}

fn list(faults: &[Fault]) -> String {
    let faults: Vec<String> = faults.iter().map(Fault::to_string).collect();
    faults.join("; ")
}

impl ConfigError {
    /// Returns the class of the error, which determines exit code and retries.
    pub fn class(&self) -> Class {
        Class::Invalid
    }
}

impl Config {
    /// Reads the file, if a path is given, and applies the environment variables.
    ///
    /// # Errors
    /// Returns a [`ConfigError`], which reports all errors of file and environment together.
    pub fn load(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let text = path.map(read).transpose()?.unwrap_or_default();
        Config::parse(&text, environment)
    }

    /// Parses the text of a file and applies the environment variables.
    ///
    /// # Errors
    /// Returns a [`ConfigError`], which reports all errors of file and environment together.
    pub fn parse(
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut sources = Sources::default();
        sources.merge(&Value::Table(text.parse::<Table>().map_err(ConfigError::Syntax)?));
        let mut variables: Vec<_> = environment.into_iter().collect();
        variables.sort();
        for (name, value) in variables {
            sources.merge_variable(&name, &value);
        }
        let (config, mut faults) = sources.finish();
        config.state.check(&mut faults);
        config.api.check(&mut faults);
        config.caches.check(&mut faults);
        tenant::check(&config.tenant, &mut faults);
        cluster::check(&config.cluster, &mut faults);
        config.upkeep.check(&mut faults);
        config.node.check(&mut faults);
        config.registry.check(&mut faults);
        config.build.check(&mut faults);
        config.telemetry.check(&mut faults);
        if config.build.sign_key().is_some() && cluster::kubernetes(&config.cluster).is_some() {
            let reason = "pods cannot read a file of this host: use sign_secret in [[cluster]]";
            faults.push(Fault { key: "build.sign_key".to_owned(), reason: reason.to_owned() });
        }
        if faults.is_empty() { Ok(config) } else { Err(ConfigError::Faults(faults)) }
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    use std::io::Read as _;
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
    }
    Ok(text)
}

/// Records a fault unless `value` is in `range`.
fn check_range<T: PartialOrd + fmt::Display>(
    faults: &mut Vec<Fault>,
    key: &str,
    value: T,
    range: std::ops::RangeInclusive<T>,
) {
    if !range.contains(&value) {
        faults.push(Fault {
            key: key.to_owned(),
            reason: format!("{value} is out of range, want {} to {}", range.start(), range.end()),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::size::ByteSize;

    fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let pairs = pairs.iter();
        pairs.map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn the_shipped_file_is_the_default() {
        let shipped = include_str!("../config/larder.toml");
        assert_eq!(Config::parse(shipped, []).unwrap(), Config::default());
        let given: Table = shipped.parse().unwrap();
        let default = Table::try_from(Config::default()).unwrap();
        for (section, keys) in default {
            // Tables that can be repeated are shipped as comments.
            let Some(keys) = keys.as_table() else { continue };
            for key in keys.keys().filter(|key| *key != "host") {
                assert!(given[&section].get(key).is_some(), "{section}.{key} is not shipped");
            }
        }
    }

    #[test]
    fn environment_over_file() {
        let text = "[registry]\nretries = 1\nconnections_per_host = 2\n";
        let environment = variables(&[
            ("LARDER_REGISTRY__RETRIES", "3"),
            ("LARDER_BUILD__MEMORY_BUDGET", "64MiB"),
            ("LARDER_LOG__FORMAT", "json"),
            ("LARDER_ELSE", "x"),
        ]);
        let config = Config::parse(text, environment).unwrap();
        assert_eq!((config.registry.retries, config.registry.connections_per_host), (3, 2));
        assert_eq!(config.build.memory_budget, ByteSize(64 << 20));
        assert_eq!(config.log.format, log::Format::Json);
    }

    #[test]
    fn a_cluster_signs_with_a_secret() {
        let text = "[build]\nsign_key = \"/k\"\n[[cluster]]\nuid = \"a\"\n";
        assert!(Config::parse(text, []).is_ok());
        let cluster = "runner = \"kubernetes\"\nbuilder_image = \"i\"\nsnapshot_class = \"s\"\n";
        let ConfigError::Faults(faults) = Config::parse(&format!("{text}{cluster}"), []).unwrap_err() else {
            panic!("not faults");
        };
        assert_eq!(faults.iter().map(|fault| fault.key.as_str()).collect::<Vec<_>>(), ["build.sign_key"]);
        let signed = format!("{}sign_secret = \"sign\"\n", cluster);
        let text = format!("[[cluster]]\nuid = \"a\"\n{signed}");
        assert_eq!(Config::parse(&text, []).unwrap().cluster[0].sign_secret, "sign");
    }

    #[test]
    fn all_faults_at_once() {
        let text = r#"
            surprise = 1
            [empty]
            [registry]
            retries = "many"
            connections_per_host = 0
            [[registry.host]]
            name = "r.io"
            mirors = []
            client_cert = "/c.pem"
            [build]
            sizing = "maybe"
        "#;
        let environment = variables(&[("LARDER_LOG__LEVEL", "loud"), ("LARDER_LOG__COLOUR", "no")]);
        let ConfigError::Faults(faults) = Config::parse(text, environment).unwrap_err() else {
            panic!("not faults");
        };
        let mut keys: Vec<&str> = faults.iter().map(|fault| fault.key.as_str()).collect();
        keys.sort_unstable();
        assert_eq!(
            keys,
            [
                "build.sizing",
                "empty",
                "log.colour",
                "log.level",
                "registry.connections_per_host",
                "registry.host[0].client_key",
                "registry.host[0].mirors",
                "registry.retries",
                "surprise",
            ]
        );
    }
}
