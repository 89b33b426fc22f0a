//! The entry point of the `larder` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    larder::cli::main(std::env::args_os())
}
