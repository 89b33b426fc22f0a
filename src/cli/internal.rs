//! `larder internal`: the processes that Larder starts itself.

use std::ffi::OsString;
use std::iter;
use std::path::Path;

use clap::Parser as _;

use super::args::internal::{BuildChildArgs, InternalCli, InternalCommand};
use super::args::{Cli, Command, Global};
use super::{CONFIG_FILE, build_child, exit, load_config, start_logs, verify};
use crate::config::Config;
use crate::telemetry::{Console, Destination};
use larder_model::class::Class;
use larder_sys::process;

/// Runs the process and returns its exit code. `argv` starts with the name of the command.
pub(super) fn main(argv: &[OsString], console: &Console) -> u8 {
    // The process opens its own files, or receives them through standard input.
    if let Err(error) = process::close_inherited() {
        return exit::fail(console, Class::Internal, &format!("closing inherited files: {error}"));
    }
    let command = match InternalCli::try_parse_from(argv) {
        Ok(cli) => cli.command,
        Err(error) => return exit::fail(console, Class::Invalid, &error.to_string()),
    };
    match command {
        InternalCommand::BuildChild(child) => run_build_child(child, console),
        InternalCommand::VerifyChild(args) => match set_up(&Global::default(), console) {
            Ok(_) => verify::run_child(&args, console),
            Err(code) => code,
        },
    }
}

/// Runs a child process of a build, with the flags and the configuration of its supervisor.
fn run_build_child(mut child: BuildChildArgs, console: &Console) -> u8 {
    let arguments = std::mem::take(&mut child.arguments);
    let cli = match Cli::try_parse_from(iter::once("larder".into()).chain(arguments)) {
        Ok(cli) => cli,
        Err(error) => return exit::fail(console, Class::Invalid, &error.to_string()),
    };
    let config = match set_up(&cli.global, console) {
        Ok(config) => config,
        Err(code) => return code,
    };
    match cli.command {
        Command::Build(args) => build_child::run(args, child, config, console),
        Command::Import(args) => build_child::run(args.into(), child, config, console),
        _ => exit::fail(console, Class::Invalid, "only `build` and `import` have child processes"),
    }
}

/// Loads the configuration and starts logging. Reports an error and returns the exit code.
fn set_up(global: &Global, console: &Console) -> Result<Config, u8> {
    let loaded = load_config(global.config.as_deref(), Some(Path::new(CONFIG_FILE)));
    let config = loaded.map_err(|error| exit::fail(console, error.class(), &error.to_string()))?.config;
    start_logs(global, &config, Destination::Console, console)
        .map_err(|error| exit::fail(console, error.class(), &error.to_string()))?;
    Ok(config)
}
