//! `larder config`: checks or shows the configuration. It was loaded before, so errors in it are already
//! reported.

use super::exit;
use super::output::stdout;
use crate::config::Config;
use crate::kubernetes::crd;
use crate::telemetry::Console;
use crate::version::VERSION;
use larder_model::class::Class;

/// Reports that the configuration is valid.
pub(super) fn check(console: &Console) -> u8 {
    stdout::print(console, "the configuration is valid\n")
}

/// Prints the configuration in effect.
pub(super) fn show(config: &Config, console: &Console) -> u8 {
    match toml::to_string(config) {
        Ok(text) => stdout::print(console, &text),
        Err(e) => exit::fail(console, Class::Internal, &format!("writing the configuration: {e}")),
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
