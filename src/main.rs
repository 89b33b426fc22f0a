//! The program: arguments, configuration, logs, the command, an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    larder::cli::main(std::env::args_os())
}
