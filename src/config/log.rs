//! `[log]`: the level and format of the log on stderr.

use serde::{Deserialize, Serialize};

/// The `[log]` section of the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Minimum severity of logged events.
    pub level: Level,
    /// Format of the log lines.
    pub format: Format,
}

/// The severity of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// No events are logged.
    Off,
    /// Failures of a build.
    Error,
    /// Problems that the user should look at.
    Warn,
    /// The steps of a build.
    #[default]
    Info,
    /// Requests and layers of a build.
    Debug,
    /// All events are logged.
    Trace,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// One readable line per event.
    #[default]
    Text,
    /// One JSON object per event.
    Json,
}
