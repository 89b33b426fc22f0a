//! `larder import`: fills a volume from an archive, using the builder, or from a disk image.

use std::ffi::OsString;
use std::num::NonZero;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use super::args::ImportArgs;
use super::outcome::{carry_out, end, usage_outcome};
use super::output::display::Display;
use super::usage::UsageError;
use super::{build, exit};
use crate::builder::cancel::Cancel;
use crate::builder::{events, outcome};
use crate::config::Config;
use crate::export::{self, Monitor};
use crate::telemetry::Console;
use crate::{blocking, volume};
use larder_model::class::Class;
use larder_model::event::Outcome;

/// Runs the command and returns its exit code.
pub(super) fn run(args: ImportArgs, argv: Vec<OsString>, config: Config, console: &Console) -> u8 {
    if args.format.is_some() || !export::is_image(&args.input) {
        return build::run(args.into(), argv, config, console);
    }
    if args.options.sign_key.is_some() {
        let error = UsageError::SignKeyForImage;
        return exit::fail(console, error.class(), &error.to_string());
    }
    if args.options.force
        && let Err(e) = volume::start_over(&args.volume, args.options.volume_kind.unwrap_or_default())
    {
        return exit::fail(console, e.class(), &e.to_string());
    }
    let workers = thread::available_parallelism().map_or(1, NonZero::get).min(2);
    let runtime = match blocking::multi_thread(Some(workers), blocking::MAX_THREADS) {
        Ok(runtime) => runtime,
        Err(e) => return exit::fail(console, Class::Internal, &format!("starting threads: {e}")),
    };
    let (input, at) = (args.input, args.volume.clone());
    let work = |cancel: Cancel| async move {
        let started = Instant::now();
        let monitor = Arc::new(Monitor::new());
        let watched = Arc::clone(&monitor);
        let asked = cancel.clone();
        let watch = tokio::spawn(async move {
            asked.cancelled().await;
            watched.stop();
        });
        let done = crate::blocking::spawn(move || export::restore(&input, &at, &monitor)).await;
        watch.abort();
        match done {
            Ok(Ok(sealed)) => outcome::sealed(&sealed, started.elapsed()),
            Ok(Err(error)) => interrupted(&cancel, usage_outcome(error.class(), &error.to_string())),
            Err(e) => usage_outcome(Class::Internal, &format!("the import failed: {e}")),
        }
    };
    let display = Display::of(&args.options);
    let outcome = carry_out(
        &runtime,
        work,
        args.options.deadline,
        events::channel(),
        display.of_build(console),
        console,
    );
    runtime.shutdown_background();
    end(&outcome, args.options.result_file.as_deref(), display, &args.volume, console)
}

fn interrupted(cancel: &Cancel, outcome: Outcome) -> Outcome {
    match (outcome.class, cancel.exit_code()) {
        (Some(Class::Cancelled), Some(exit_code)) => Outcome { exit_code, ..outcome },
        _ => outcome,
    }
}
