//! `larder preload`: registers the images of an attached volume in containerd, without a registry.

use serde_json::json;

use super::args::PreloadArgs;
use super::exit;
use super::output::stdout;
use crate::telemetry::Console;
use crate::volume::seal;
use larder_model::runtime::Containerd;

/// Runs the command and returns its exit code.
pub(super) fn run(args: &PreloadArgs, console: &Console) -> u8 {
    let sealed = match seal::read(&args.volume) {
        Ok(sealed) => sealed,
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    };
    let containerd = Containerd::from(&args.containerd);
    let done = crate::node::containerd::block_on(&containerd, async |containerd| {
        if args.forget {
            containerd.refuse_if_used(&sealed.content).await?;
            containerd.forget(&sealed.digest).await
        } else {
            containerd.preload(&args.volume, &sealed).await
        }
    });
    match done {
        Ok(report) if args.output.is_json() => {
            stdout::print_json(console, &json!({"images": report.records}))
        }
        Ok(report) => stdout::print(console, &report.to_string()),
        Err(error) => exit::fail(console, error.class(), &error.to_string()),
    }
}
