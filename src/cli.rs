//! The command line: one file per command, output for people and for machines.
//!
//! Every command returns an exit code after sysexits.h; `exit` lists the meanings. Usage errors, including
//! clap's own, return 64 and go to standard error.

mod args;
mod attach;
mod attached;
mod bench;
mod build;
mod build_child;
mod cache;
mod completions;
mod config;
mod confine;
mod exit;
mod explain;
mod export;
mod help;
mod image;
mod import;
mod inspect;
mod internal;
mod key;
mod matching;
mod merge;
mod mount;
mod node;
mod outcome;
mod output;
mod plan;
mod prefetch;
mod preload;
mod sandbox;
mod serve;
mod signals;
mod snapshotter;
mod status;
mod supervisor;
mod table;
mod usage;
mod verify;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::FromArgMatches as _;

use crate::config::{Config, ConfigError, Loaded, environment};
use crate::telemetry::{self, Console, Destination};
use args::internal::NAME;
use args::{Cli, Command, ConfigAction, Global};
use exit::USAGE;
use larder_sys::process;
use usage::UsageError;

/// Returns the description of the command line, for documentation.
pub fn command() -> clap::Command {
    help::command()
}

/// Runs the program. `args` starts with the program's name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    process::restrict_umask();
    let argv: Vec<OsString> = args.into_iter().collect();
    let console = Console::default();
    if argv.get(1).is_some_and(|word| word == NAME) {
        return ExitCode::from(internal::main(&argv[1..], &console));
    }
    match parse(&argv) {
        Ok(cli) => ExitCode::from(run(cli, argv, &console)),
        Err(error) => {
            // A closed output must not change the exit code.
            let _ = error.print();
            ExitCode::from(if error.use_stderr() { USAGE } else { 0 })
        }
    }
}

fn parse(argv: &[OsString]) -> Result<Cli, clap::Error> {
    let mut command = help::command();
    let matches = command.try_get_matches_from_mut(argv)?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

fn run(cli: Cli, argv: Vec<OsString>, console: &Console) -> u8 {
    let path = cli.global.config.clone();
    // Clients and `larder key` do not need the daemon's configuration, and might not have the rights to read
    // it.
    let default = cli.command.reads_configuration().then_some(Path::new(CONFIG_FILE));
    let loaded = match load_config(path.as_deref(), default) {
        Ok(loaded) => loaded,
        Err(error) => return refuse(cli.command, &error, console),
    };
    // For the first log line of a service.
    let source =
        config_file(path.as_deref(), default).map_or("defaults".into(), Path::to_string_lossy).into_owned();
    let logs = match start_logs(&cli.global, &loaded.config, cli.command.log_destination(), console) {
        Ok(logs) => logs,
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    };
    for warning in environment::warnings(variables().map(|(name, _)| name)) {
        tracing::warn!("{warning}");
    }
    if let Command::Config { action: ConfigAction::Show { output } } = cli.command {
        return config::show(loaded, &cli.global, output.is_json(), console);
    }
    let config = loaded.config;
    match cli.command {
        Command::Build(args) => build::run(args, argv, config, console),
        Command::Plan(args) => plan::run(args, config, console),
        Command::Bench { kind } => bench::run(kind, config, console),
        Command::Serve => {
            let load = move || load_config(path.as_deref(), default).map(|loaded| loaded.config);
            let reload: serve::Reload = Box::new(load);
            serve::run(&config, &reload, logs, &source, console)
        }
        Command::Ls(args) => status::run(&args, &config, console),
        Command::Cache(args) => cache::run(args, console),
        Command::Verify(args) => verify::run(&args, console),
        Command::Inspect(args) => inspect::run(&args, console),
        Command::Export(args) => export::run(args, console),
        Command::Import(args) => import::run(args, argv, config, console),
        Command::Key { action } => key::run(&action, console),
        Command::Mount(args) => mount::mount(&args, &config, console),
        Command::Umount(args) => mount::unmount(&args, &config, console),
        Command::Match(args) => matching::run(&args, &config, console),
        Command::Attach(args) => attach::attach(args, path.as_deref(), &config, console),
        Command::Detach(args) => attach::detach(&args, &config, console),
        Command::Snapshotter(args) => snapshotter::run(args, &config, &source, console),
        Command::Node(args) => node::run(&args, &config, &source, console),
        Command::Preload(args) => preload::run(&args, console),
        Command::Prefetch(args) => prefetch::run(args, console),
        Command::Explain(args) => explain::run(&args, console),
        Command::Completions { shell } => completions::completions(shell, console),
        Command::Man { dir } => completions::man(&dir, console),
        Command::Version { output } => config::version(output.is_json(), console),
        Command::Image(args) => image::run(args, console),
        // `show` has returned.
        Command::Config { action: ConfigAction::Check | ConfigAction::Show { .. } } => config::check(console),
        Command::Config { action: ConfigAction::Crd } => config::crd(console),
    }
}

/// Reports a configuration that cannot be used, and returns the exit code.
fn refuse(command: Command, error: &ConfigError, console: &Console) -> u8 {
    let class = error.class();
    match command {
        Command::Build(args) => outcome::leave_usage_error(&args, class, &error.to_string()),
        Command::Import(args) => outcome::leave_usage_error(&args.into(), class, &error.to_string()),
        _ => {}
    }
    error.lines().iter().for_each(|line| {
        exit::fail(console, class, line);
    });
    class.exit_code()
}

/// The default path of the configuration file.
const CONFIG_FILE: &str = "/etc/larder/larder.toml";

/// Returns the configuration file to load: `path`, or `default` if it exists.
fn config_file<'a>(path: Option<&'a Path>, default: Option<&'a Path>) -> Option<&'a Path> {
    // If the file exists but cannot be accessed, loading it reports the error.
    path.or_else(|| default.filter(|default| default.try_exists().unwrap_or(true)))
}

/// Loads `path`, or `default` if it exists, and applies environment variables on top.
fn load_config(path: Option<&Path>, default: Option<&Path>) -> Result<Loaded, ConfigError> {
    Config::load_with_origins(config_file(path, default), variables())
}

/// Returns the environment variables.
fn variables() -> impl Iterator<Item = (String, String)> {
    // `std::env::vars` panics on a variable that is not UTF-8. Larder's variables are all UTF-8.
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Starts logging. A flag takes precedence over a variable, and a variable over the file.
fn start_logs(
    global: &Global,
    config: &Config,
    destination: Destination,
    console: &Console,
) -> Result<serve::Logs, UsageError> {
    let level = match (global.level(), std::env::var(telemetry::LEVEL_VARIABLE)) {
        (Some(level), _) => level,
        (None, Ok(level)) if !level.is_empty() => level.parse()?,
        _ => config.log.level.into(),
    };
    let format = global.log_format.unwrap_or(config.log.format);
    telemetry::init(&level, format, destination, console);
    Ok(serve::Logs { level: level.to_string(), format })
}
