//! `larder config`: the configuration, checked or shown. It was loaded before either runs, so a fault was told by then.

use super::exit;
use super::output::stdout;
use crate::config::Config;
use crate::kubernetes::crd;
use crate::telemetry::Console;
use larder_model::class::Class;

/// Says that the configuration holds.
pub(super) fn check(console: &Console) -> u8 {
    stdout::print(console, "the configuration holds\n")
}

/// Prints the configuration in effect.
pub(super) fn show(config: &Config, console: &Console) -> u8 {
    match toml::to_string(config) {
        Ok(text) => stdout::print(console, &text),
        Err(e) => exit::fail(console, Class::Internal, &format!("writing the configuration: {e}")),
    }
}

/// Prints the custom resource that this larder reads and writes.
pub(super) fn crd(console: &Console) -> u8 {
    match crd::yaml() {
        Ok(text) => stdout::print(console, &text),
        Err(e) => exit::fail(console, Class::Internal, &format!("writing the CustomResourceDefinition: {e}")),
    }
}
