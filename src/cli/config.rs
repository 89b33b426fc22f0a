//! `larder config`: checks or shows the configuration. It was loaded before, so errors in it are already
//! reported.

use serde::Deserialize as _;
use toml::Value;

use super::args::Global;
use super::exit;
use super::output::stdout;
use crate::config::origin::Origin;
use crate::config::{Loaded, log};
use crate::kubernetes::crd;
use crate::telemetry::{Console, LEVEL_VARIABLE};
use crate::version::VERSION;
use larder_model::class::Class;

/// Reports that the configuration is valid.
pub(super) fn check(console: &Console) -> u8 {
    stdout::print(console, "the configuration is valid\n")
}

/// Prints the configuration in effect, as TOML or JSON.
pub(super) fn show(mut loaded: Loaded, global: &Global, json: bool, console: &Console) -> u8 {
    apply_log_flags(&mut loaded, global);
    match if json { loaded.to_json() } else { loaded.to_toml() } {
        Ok(text) => stdout::print(console, &text),
        Err(e) => exit::fail(console, Class::Internal, &format!("writing the configuration: {e}")),
    }
}

/// Applies the flags and variables of the log. A filter that is not a plain level has no key.
fn apply_log_flags(loaded: &mut Loaded, global: &Global) {
    let of_variable = || std::env::var(LEVEL_VARIABLE).ok().filter(|level| !level.is_empty());
    let level = match &global.log_level {
        Some(level) => Some((level.to_string(), Origin::Flag("--log-level"))),
        None => of_variable().map(|level| (level, Origin::Variable(LEVEL_VARIABLE.to_owned()))),
    };
    if let Some((level, origin)) = level
        && let Ok(level) = log::Level::deserialize(Value::String(level))
    {
        loaded.override_key("log.level", origin, |config| config.log.level = level);
    }
    if let Some(format) = global.log_format {
        let origin = Origin::Flag("--log-format");
        loaded.override_key("log.format", origin, |config| config.log.format = format);
    }
}

/// Prints the version of this program, as text or JSON.
pub(super) fn version(json: bool, console: &Console) -> u8 {
    if !json {
        return stdout::print(console, &format!("{VERSION}\n"));
    }
    match serde_json::to_string(&VERSION) {
        Ok(text) => stdout::print(console, &format!("{text}\n")),
        Err(e) => exit::fail(console, Class::Internal, &format!("writing the version: {e}")),
    }
}

/// Prints the CustomResourceDefinition that this version uses.
pub(super) fn crd(console: &Console) -> u8 {
    match crd::yaml() {
        Ok(text) => stdout::print(console, &text),
        Err(e) => exit::fail(console, Class::Internal, &format!("writing the CustomResourceDefinition: {e}")),
    }
}
