//! `larder key`: creates and prints keys for signing volumes.

use super::args::KeyAction;
use super::exit;
use super::output::stdout;
use crate::keys;
use crate::telemetry::Console;

/// Runs the command and returns its exit code. Never prints a private key.
pub(super) fn run(action: &KeyAction, console: &Console) -> u8 {
    let (key, pem) = match action {
        KeyAction::Generate { file } => (keys::generate(file), false),
        KeyAction::Public { file, pem } => (keys::signing(file), *pem),
    };
    let public = match key {
        Ok(key) => key.public(),
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    };
    stdout::print(console, &if pem { public.pem() } else { format!("{public}\n") })
}
