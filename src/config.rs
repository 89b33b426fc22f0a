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
mod effective;
pub mod environment;
pub mod log;
mod merge;
pub mod node;
pub mod origin;
pub mod reference;
pub mod registry;
pub mod secrets;
pub mod state;
pub mod telemetry;
pub mod tenant;
pub mod upkeep;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::Table;

pub use effective::Loaded;
use larder_model::class::Class;
use merge::Sources;
use origin::{Origin, Origins};

/// Name of the file in messages, if there is none.
const FILE_NAME: &str = "larder.toml";

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

/// An error in the configuration, and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// Source of the key, or of the table that lacks it.
    pub origin: Origin,
    /// Key and problem of the error.
    pub fault: Fault,
}

impl fmt::Display for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Default => self.fault.fmt(f),
            origin => write!(f, "{origin}: {}", self.fault),
        }
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
    #[error("{}:{line}: not TOML: {message}", path.display())]
    Syntax {
        /// Path of the configuration file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
        /// Message of the parser.
        message: String,
    },
    /// Keys are unknown or have invalid values; contains all such keys.
    #[error("the configuration is invalid: {}", list(.0))]
    Faults(Vec<Located>),
}

fn list(faults: &[Located]) -> String {
    let faults: Vec<String> = faults.iter().map(Located::to_string).collect();
    faults.join("; ")
}

impl ConfigError {
    /// Returns the class of the error, which determines exit code and retries.
    pub fn class(&self) -> Class {
        Class::Invalid
    }

    /// Returns the message as lines, one for each error.
    pub fn lines(&self) -> Vec<String> {
        match self {
            ConfigError::Faults(faults) => faults.iter().map(Located::to_string).collect(),
            other => vec![other.to_string()],
        }
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
        Config::load_with_origins(path, environment).map(|loaded| loaded.config)
    }

    /// Loads like [`load`](Config::load), and also returns the sources of the values.
    ///
    /// # Errors
    /// Those of [`load`](Config::load).
    pub fn load_with_origins(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Loaded, ConfigError> {
        let text = path.map(read).transpose()?.unwrap_or_default();
        Config::parse_file(&text, path.unwrap_or(Path::new(FILE_NAME)), environment)
    }

    /// Parses the text of a file and applies the environment variables.
    ///
    /// # Errors
    /// Returns a [`ConfigError`], which reports all errors of file and environment together.
    pub fn parse(
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        Config::parse_file(text, Path::new(FILE_NAME), environment).map(|loaded| loaded.config)
    }

    /// Parses the text of the file at `path` and applies the environment variables.
    fn parse_file(
        text: &str,
        path: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Loaded, ConfigError> {
        let table: Table = text.parse().map_err(|e: toml::de::Error| ConfigError::Syntax {
            path: path.to_owned(),
            line: origin::line(text, e.span().map_or(0, |span| span.start)),
            message: e.message().to_owned(),
        })?;
        let mut sources = Sources::of_file(&table, Origins::of_file(text, path));
        let mut variables: Vec<_> = environment.into_iter().collect();
        variables.sort();
        for (name, value) in variables {
            sources.merge_variable(&name, &value);
        }
        let (config, origins, mut located) = sources.finish();
        let at = |fault: Fault| Located { origin: origins.nearest(&fault.key), fault };
        located.extend(config.faults().into_iter().map(at));
        if located.is_empty() { Ok(Loaded { config, origins }) } else { Err(ConfigError::Faults(located)) }
    }

    /// Returns the part of the configuration that the builders of a daemon read. It contains no tenants. A
    /// daemon waits longer than a user for a registry that cannot be reached.
    pub fn of_builders(&self) -> Config {
        let registry =
            registry::Registry { unreachable_retries: self.registry.retries, ..self.registry.clone() };
        Config { registry, build: self.build.clone(), ..Config::default() }
    }

    /// Checks the values of all sections.
    fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        self.state.check(&mut faults);
        self.api.check(&mut faults);
        self.caches.check(&mut faults);
        tenant::check(&self.tenant, &mut faults);
        cluster::check(&self.cluster, &mut faults);
        self.upkeep.check(&mut faults);
        self.node.check(&mut faults);
        self.registry.check(&mut faults);
        self.build.check(&mut faults);
        self.telemetry.check(&mut faults);
        if self.build.sign_key().is_some() && cluster::kubernetes(&self.cluster).is_some() {
            let reason = "pods cannot read a file of this host: use sign_secret in [[cluster]]";
            faults.push(Fault { key: "build.sign_key".to_owned(), reason: reason.to_owned() });
        }
        faults
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
    fn builders_of_a_daemon_keep_all_retries() {
        let config = Config::parse("[registry]\nretries = 5\n[log]\nlevel = 'debug'\n", []).unwrap();
        let of_builders = config.of_builders();
        assert_eq!((of_builders.registry.retries, of_builders.registry.unreachable_retries), (5, 5));
        assert_eq!(of_builders.log, log::Log::default());
    }

    #[test]
    fn passwords_in_the_url_of_a_mirror_are_refused() {
        for (mirror, is_valid) in [
            ("https://u:hidden@m.io/x", false),
            ("u@m.io", false),
            ("https://m.io/a@b", true),
            ("m.io:1", true),
        ] {
            let text = format!("[[registry.host]]\nname = 'r.io'\nmirrors = ['{mirror}']\n");
            let parsed = Config::parse(&text, []);
            assert_eq!(parsed.is_ok(), is_valid, "{mirror}");
            assert!(!format!("{parsed:?}").contains("hidden"));
        }
    }

    #[test]
    fn a_cluster_signs_with_a_secret() {
        let text = "[build]\nsign_key = \"/k\"\n[[cluster]]\nuid = \"a\"\n";
        assert!(Config::parse(text, []).is_ok());
        let cluster = "runner = \"kubernetes\"\nbuilder_image = \"i\"\nsnapshot_class = \"s\"\n";
        let ConfigError::Faults(faults) = Config::parse(&format!("{text}{cluster}"), []).unwrap_err() else {
            panic!("not faults");
        };
        assert_eq!(
            faults.iter().map(|located| located.fault.key.as_str()).collect::<Vec<_>>(),
            ["build.sign_key"]
        );
        let signed = format!("{}sign_secret = \"sign\"\n", cluster);
        let text = format!("[[cluster]]\nuid = \"a\"\n{signed}");
        assert_eq!(Config::parse(&text, []).unwrap().cluster[0].sign_secret, "sign");
    }

    #[test]
    fn faults_have_a_place_and_a_suggestion() {
        let text = "[registry]\nretrys = 3\n[build]\nsizing = \"enforc\"\n[state]\n\ndir = 3\n\
                    [buidl]\na = 1\nb = 2\n[caches]\nbuild_nice = 20\n[[cluster]]\nrunner = \"host\"\n";
        let environment = variables(&[("LARDER_REGISTRY__RETRIES", "many"), ("LARDER_LOG__LEVL", "info")]);
        let loaded = Config::parse_file(text, Path::new("/etc/l.toml"), environment);
        let mut lines = loaded.unwrap_err().lines();
        lines.sort();
        assert_eq!(
            lines,
            [
                "/etc/l.toml:12: caches.build_nice: 20 is out of range, want 0 to 19",
                "/etc/l.toml:13: cluster[0].uid: required, but missing",
                "/etc/l.toml:2: registry.retrys: unknown key; did you mean retries?",
                "/etc/l.toml:4: build.sizing: unknown value \"enforc\", expected \"enforce\" or \"warn\"; did you mean enforce?",
                "/etc/l.toml:7: state.dir: invalid type: integer `3`, expected path string",
                "/etc/l.toml:8: buidl: unknown key; did you mean build?",
                "LARDER_LOG__LEVL: log.levl: unknown key; did you mean level?",
                "LARDER_REGISTRY__RETRIES: registry.retries: invalid type: string \"many\", expected u32",
            ]
        );
        let syntax = Config::parse_file("a = 1\nb c\n", Path::new("l.toml"), []).unwrap_err();
        assert!(syntax.to_string().starts_with("l.toml:2: not TOML: "), "{syntax}");
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
        let mut keys: Vec<&str> = faults.iter().map(|located| located.fault.key.as_str()).collect();
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
