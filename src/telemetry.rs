//! Logs, metrics and traces. Logs are lines on standard error, as text or JSON, or entries of the systemd
//! journal if standard error is connected to it.

mod console;
mod journal;
mod json;
pub mod metrics;
pub mod notify;
pub mod traces;

use std::fmt;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

pub use console::Console;
pub use json::List;

use crate::config::log::Format;
use journal::Journal;
use json::JsonLines;

/// The environment variable with the log filter, used if no flag sets one.
pub const LEVEL_VARIABLE: &str = "LARDER_LOG";

/// A filter in the syntax of tracing-subscriber: `info`, or `larder=debug,warn`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level(String);

/// The error for a string that is not a log filter.
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
        use crate::config::log::Level as ConfigLevel;
        let name = match level {
            ConfigLevel::Off => "off",
            ConfigLevel::Error => "error",
            ConfigLevel::Warn => "warn",
            ConfigLevel::Info => "info",
            ConfigLevel::Debug => "debug",
            ConfigLevel::Trace => "trace",
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

/// The destination of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Standard error.
    Console,
    /// The systemd journal if standard error is connected to it, else standard error. Only for services: a
    /// process that reads layers needs no socket of the journal.
    Journal,
}

/// Starts logging. A second call in the same process has no effect.
pub fn init(level: &Level, format: Format, destination: Destination, console: &Console) {
    let filter = level.0.parse::<EnvFilter>().unwrap_or_default();
    if destination == Destination::Journal
        && format == Format::Text
        && journal::is_stderr()
        && let Ok(journal) = Journal::connect(console)
    {
        let _ = tracing_subscriber::registry().with(filter).with(journal).try_init();
        return;
    }
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(console.clone())
        .with_ansi(console.is_terminal());
    // The first subscriber of a process is permanent; only tests call this more than once.
    let _ = match format {
        Format::Text => builder.finish().try_init(),
        Format::Json => {
            builder.fmt_fields(JsonFields::new()).event_format(JsonLines::new()).finish().try_init()
        }
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
