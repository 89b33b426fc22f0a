//! Logs and metrics. Logs are lines on standard error, as text or JSON.

mod console;
pub mod metrics;
pub mod notify;

use std::fmt;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

pub use console::Console;

use crate::config::log::Format;

/// The variable that holds the filter where no flag gives one.
pub const LEVEL_VARIABLE: &str = "LARDER_LOG";

/// A filter as tracing-subscriber reads it: `info`, or `larder=debug,warn`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level(String);

/// A string is not a filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a log level: want error, warn, info, debug, trace or target=level,… ({reason})")]
pub struct ParseLevelError {
    given: String,
    reason: String,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<crate::config::log::Level> for Level {
    fn from(level: crate::config::log::Level) -> Self {
        use crate::config::log::Level as Least;
        let name = match level {
            Least::Off => "off",
            Least::Error => "error",
            Least::Warn => "warn",
            Least::Info => "info",
            Least::Debug => "debug",
            Least::Trace => "trace",
        };
        Level(name.to_owned())
    }
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
