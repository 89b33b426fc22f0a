//! The program: arguments, configuration, logs, the command, an exit code.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    larder::cli::main(std::env::args_os())
}
