//! `larder image`: the container image of this program, for maintainers.

use std::env;

use chrono::DateTime;

use super::args::ImageArgs;
use super::exit;
use super::output::stdout;
use super::usage::UsageError;
use crate::export::packaging::Program;
use crate::telemetry::Console;
use larder_model::escape::escape;

/// Variable with the creation time of the image, seconds since 1970 (reproducible-builds.org,
/// "SOURCE_DATE_EPOCH").
const TIME: &str = "SOURCE_DATE_EPOCH";

/// Runs the command and returns its exit code.
pub(super) fn run(args: ImageArgs, console: &Console) -> u8 {
    let created = match env::var(TIME) {
        Ok(seconds) => seconds.parse().ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0)),
        Err(_) => Some(DateTime::UNIX_EPOCH),
    };
    let Some(created) = created else {
        let error = UsageError::CreationTime(TIME);
        return exit::fail(console, error.class(), &error.to_string());
    };
    let ImageArgs { out, authorities, tag, revision, force } = args;
    let program = Program { path: "/proc/self/exe".into(), authorities, tag, revision, created };
    match program.package(&out, force) {
        Ok(digest) => stdout::print(console, &format!("{} {digest}\n", escape(&out.display().to_string()))),
        Err(error) => exit::fail(console, error.class(), &error.to_string()),
    }
}
