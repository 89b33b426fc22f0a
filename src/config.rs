//! `larder.toml`: one section per file; defaults < file < environment < flags; unknown keys refused.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::model::class::Class;
use crate::model::sizing::Sizing;

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `[build]`.
    pub build: Build,
    /// `[registry]`.
    pub registry: Registry,
    /// `[log]`.
    pub log: Log,
}

/// `[build]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Build {
    /// Most layers at once.
    pub concurrency: usize,
    /// What happens when the 3x rule does not hold.
    pub sizing: Sizing,
}

impl Default for Build {
    fn default() -> Self {
        Build { concurrency: 4, sizing: Sizing::Enforce }
    }
}

/// `[registry]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// Most connections to one host.
    pub connections_per_host: usize,
}

impl Default for Registry {
    fn default() -> Self {
        Registry { connections_per_host: 4 }
    }
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Filter, as in `info` or `larder=debug,warn`.
    pub level: String,
    /// Form of a line.
    pub format: crate::telemetry::Format,
}

impl Default for Log {
    fn default() -> Self {
        Log { level: "warn".into(), format: crate::telemetry::Format::Text }
    }
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("reading the configuration {path}: {source}")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file is malformed.
    #[error("the configuration {path}: {source}")]
    Malformed {
        /// Which file.
        path: String,
        /// Why.
        source: toml::de::Error,
    },
}

impl Error {
    /// Always [`Class::Invalid`].
    pub fn class(&self) -> Class {
        Class::Invalid
    }
}

impl Config {
    /// Reads `path`; without one, `/etc/larder/larder.toml` if it is there, else the defaults.
    pub fn load(path: Option<&Path>) -> Result<Self, Error> {
        let default = Path::new("/etc/larder/larder.toml");
        let text = match (path, std::fs::read_to_string(path.unwrap_or(default))) {
            (_, Ok(text)) => text,
            (None, Err(e)) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Config::default()),
            (_, Err(source)) => {
                return Err(Error::Read { path: path.unwrap_or(default).display().to_string(), source });
            }
        };
        toml::from_str(&text).map_err(|source| Error::Malformed {
            path: path.unwrap_or(default).display().to_string(),
            source,
        })
    }
}
