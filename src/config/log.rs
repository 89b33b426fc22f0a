//! `[log]`: what is logged to stderr.

use serde::{Deserialize, Serialize};

/// The section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// The least severe events that are told.
    pub level: Level,
    /// For people or for machines.
    pub format: Format,
}

/// Severity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Nothing at all.
    Off,
    /// What fails a build.
    Error,
    /// What a person should look at.
    Warn,
    /// The steps of a build.
    #[default]
    Info,
    /// Requests and layers.
    Debug,
    /// Everything.
    Trace,
}

/// Form of the lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// One readable line an event.
    #[default]
    Text,
    /// One JSON object an event.
    Json,
}
