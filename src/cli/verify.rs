//! `larder verify`: verifies the contents of a volume.

use serde_json::json;

use super::args::VerifyArgs;
use super::args::internal::VerifyChildArgs;
use super::output::stdout;
use super::{exit, sandbox};
use crate::keys;
use crate::telemetry::Console;
use crate::verify::apart::Verdict;
use crate::verify::{Structure, verify_confined, verify_for_use_confined};
use crate::volume::disk;
use larder_model::class::Class;
use larder_model::count::counted;
use larder_model::escape::escape;
use larder_model::size::ByteSize;

/// Runs the command and returns its exit code.
pub(super) fn run(args: &VerifyArgs, console: &Console) -> u8 {
    let trust = match keys::trust(&args.trust) {
        Ok(trust) => trust,
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    };
    let entered = match disk::enter(&args.volume) {
        Ok(entered) => entered,
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    };
    let structure = match Structure::of_path(entered.path()) {
        Ok(structure) => structure,
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    };
    let _confined = match sandbox::reader(entered.path()) {
        Ok(confined) => confined,
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    };
    let report = match verify_confined(entered.path(), &trust, structure) {
        Ok(report) => report,
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    };
    if let Some(expected) = args.digest.as_ref().filter(|expected| **expected != report.digest) {
        let message = format!("the volume contains the cache {}, not {expected}", report.digest);
        return exit::fail(console, Class::Corrupt, &message);
    }
    if args.output.is_json() {
        let document = json!({
            "volume": args.volume.display().to_string(),
            "digest": report.digest,
            "images": report.images,
            "layers": report.layers,
            "entries": report.entries,
            "bytes": report.bytes,
            "signed_by": report.signed_by.as_ref().map(ToString::to_string),
            "trusted": report.signed_by.is_some() && trust.required,
        });
        return stdout::print_json(console, &document);
    }
    let volume = escape(&args.volume.display().to_string());
    let (images, layers) = (counted(report.images, "image"), counted(report.layers, "layer"));
    let (entries, bytes) = (counted(report.entries, "entry"), ByteSize(report.bytes));
    let signed_by = match &report.signed_by {
        Some(key) if trust.required => format!("signed by {key} (trusted)\n"),
        Some(key) => format!("signed by {key} (not checked: use --trust to name trusted keys)\n"),
        None => String::new(),
    };
    let text = format!(
        "{volume}: OK ({images}, {layers}, {entries}, {bytes})\ncache.json {}\n{signed_by}",
        report.digest
    );
    stdout::print(console, &text)
}

/// Verifies the volume for another `larder` process, which reads the verdict.
pub(super) fn run_child(args: &VerifyChildArgs, console: &Console) -> u8 {
    let structure = match Structure::of_path(&args.volume) {
        Ok(structure) => structure,
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    };
    let _confined = match sandbox::reader(&args.volume) {
        Ok(confined) => confined,
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    };
    let (verdict, code) = match verify_for_use_confined(&args.volume, structure) {
        Ok(report) => (Verdict::Verified(report.digest), 0),
        Err(error) => {
            let class = error.class();
            (Verdict::Refused { class, message: error.to_string() }, class.exit_code())
        }
    };
    match serde_json::to_string(&verdict) {
        Ok(json) => stdout::print(console, &json).max(code),
        Err(e) => exit::fail(console, Class::Internal, &format!("writing the verdict: {e}")),
    }
}
