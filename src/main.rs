//! The entry point of the `larder` program.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    larder::cli::main(std::env::args_os())
}
