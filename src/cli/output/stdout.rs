//! Writes results to standard output.

use std::io::{self, Write as _};

use crate::cli::exit;
use crate::telemetry::Console;
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
