//! `larder prefetch`: reads the files that containers need at start.

use std::time::Instant;

use serde_json::json;

use super::args::PrefetchArgs;
use super::output::stdout;
use super::{exit, sandbox};
use crate::prefetch::{self, ReadOptions};
use crate::telemetry::Console;
use crate::volume::disk;
use larder_model::size::ByteSize;

/// Runs the command and returns its exit code.
pub(super) fn run(args: PrefetchArgs, console: &Console) -> u8 {
    let began = Instant::now();
    let options = ReadOptions { images: args.images, all: args.all };
    let entered = match disk::enter(&args.volume) {
        Ok(entered) => entered,
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    };
    let _confined = match sandbox::reader(entered.path()) {
        Ok(confined) => confined,
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    };
    let totals = match prefetch::read(entered.path(), &options) {
        Ok(totals) => totals,
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    };
    if args.output.is_json() {
        let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let document = json!({"files": totals.files, "bytes": totals.bytes, "elapsed_ms": elapsed_ms});
        return stdout::print_json(console, &document);
    }
    let (files, bytes, seconds) = (totals.files, ByteSize(totals.bytes), began.elapsed().as_secs_f64());
    stdout::print(console, &format!("{files} files, {bytes} in {seconds:.3} s\n"))
}
