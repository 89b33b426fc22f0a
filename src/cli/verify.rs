//! `larder verify`: proves a volume from its own bytes.

use super::args::VerifyArgs;
use super::exit;
use super::output::stdout;
use crate::model::escape::escape;
use crate::model::size::ByteSize;
use crate::telemetry::Console;
use crate::volume::disk;

/// Runs the command and answers its exit code.
pub(super) fn run(args: &VerifyArgs, console: &Console) -> u8 {
    let entered = match disk::enter(&args.volume) {
        Ok(entered) => entered,
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    };
    let report = match crate::verify::verify(entered.path()) {
        Ok(report) => report,
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    };
    let volume = escape(&args.volume.display().to_string());
    let (images, layers, entries, bytes) =
        (report.images, report.layers, report.entries, ByteSize(report.bytes));
    let text = format!(
        "{volume} is proven: {images} images, {layers} layers, {entries} entries, {bytes}\ncache.json {}\n",
        report.digest
    );
    stdout::print(console, &text)
}
