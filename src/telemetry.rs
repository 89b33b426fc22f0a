//! Logs: lines on standard error, as text or JSON.

mod console;

use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::log;

pub use console::Console;

/// The variable that holds the filter where no flag gives one.
pub const LEVEL_VARIABLE: &str = "LARDER_LOG";

/// Form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// A filter as tracing-subscriber reads it: `info`, or `larder=debug,warn`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level(String);

impl From<log::Format> for Format {
    fn from(format: log::Format) -> Self {
        match format {
            log::Format::Text => Format::Text,
            log::Format::Json => Format::Json,
        }
    }
}

impl From<log::Level> for Level {
    fn from(level: log::Level) -> Self {
        let name = match level {
            log::Level::Off => "off",
            log::Level::Error => "error",
            log::Level::Warn => "warn",
            log::Level::Info => "info",
            log::Level::Debug => "debug",
            log::Level::Trace => "trace",
        };
        Level(name.to_owned())
    }
}

/// A string is not a filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a log level: want error, warn, info, debug, trace or target=level,… ({reason})")]
pub struct ParseLevelError {
    given: String,
    reason: String,
}

impl FromStr for Level {
    type Err = ParseLevelError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s.parse::<EnvFilter>() {
            Ok(_) => Ok(Level(s.to_owned())),
            Err(e) => Err(ParseLevelError { given: s.chars().take(200).collect(), reason: e.to_string() }),
        }
    }
}

/// Starts logging to `console`. A second call in one process changes nothing.
pub fn init(level: &Level, format: Format, console: &Console) {
    let filter = level.0.parse::<EnvFilter>().unwrap_or_default();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(console.clone())
        .with_ansi(console.is_terminal());
    // The first subscriber of a process stays; only tests start twice.
    let _ = match format {
        Format::Text => builder.finish().try_init(),
        Format::Json => builder.json().finish().try_init(),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels() {
        for good in ["info", "off", "larder=debug,warn"] {
            assert!(good.parse::<Level>().is_ok(), "{good}");
        }
        for bad in ["larder=loud", "a=b=c"] {
            assert!(bad.parse::<Level>().is_err(), "{bad}");
        }
    }
}
