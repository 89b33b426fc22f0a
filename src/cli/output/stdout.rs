//! Writes results to standard output.

use std::io::{self, Write as _};

use serde::Serialize;

use crate::cli::exit;
use crate::telemetry::Console;
use larder_model::class::Class;
use larder_model::io_error::{FileRole, class};

/// Writes all of `text` and returns the exit code. A closed pipe is not an error; any other failure is.
pub(in crate::cli) fn print(console: &Console, text: &str) -> u8 {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => 0,
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(e) => {
            let class = class(&e, FileRole::Own);
            exit::fail(console, class, &format!("writing to standard output: {e}"))
        }
    }
}

/// Writes a document as JSON in one line and returns the exit code, like [`print()`].
pub(in crate::cli) fn print_json(console: &Console, document: &impl Serialize) -> u8 {
    match serde_json::to_string(document) {
        Ok(json) => print(console, &(json + "\n")),
        Err(e) => exit::fail(console, Class::Internal, &format!("writing the result: {e}")),
    }
}
