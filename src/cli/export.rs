//! `larder export`: writes a sealed volume as an archive or a disk image.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::runtime::Runtime;

use super::args::{ExportArgs, Output};
use super::output::bar::{self, Bar};
use super::output::stdout;
use super::usage::UsageError;
use super::{exit, sandbox, signals};
use crate::blocking;
use crate::builder::cancel::Cancel;
use crate::export::{self, Error, Format, Monitor, Report, Request};
use crate::telemetry::Console;
use larder_model::class::Class;
use larder_model::escape::escape;
use larder_model::event::milliseconds;
use larder_model::io_error::IoError;
use larder_model::seal::Compression;
use larder_model::size::ByteSize;
use larder_sys::confine::{self, Confined};

/// Runs the command and returns its exit code.
pub(super) fn run(args: ExportArgs, console: &Console) -> u8 {
    let to_stdout = args.out == Path::new("-");
    if let Err(error) = check(&args, to_stdout) {
        return exit::fail(console, error.class(), &error.to_string());
    }
    let _confined = match confine(&args, to_stdout) {
        Ok(confined) => confined,
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    };
    let runtime = match blocking::current_thread() {
        Ok(runtime) => runtime,
        Err(e) => return exit::fail(console, Class::Internal, &format!("starting threads: {e}")),
    };
    let (started, cancel) = (Instant::now(), Cancel::new());
    let exported = carry_out(&runtime, &args, to_stdout, &cancel, console);
    runtime.shutdown_background();
    match exported {
        Ok(report) => report_result(&args, to_stdout, &report, started.elapsed(), console),
        Err(error) => {
            let code = exit::fail(console, error.class(), &error.to_string());
            match error.class() {
                Class::Cancelled => cancel.exit_code().unwrap_or(code),
                _ => code,
            }
        }
    }
}

/// Confines the export of a directory volume to that directory and the output directory. The export of a disk
/// is not confined, because it must mount the disk and run programs that check it.
fn confine(args: &ExportArgs, to_stdout: bool) -> Result<Option<Confined>, confine::Error> {
    if !args.volume.is_dir() || args.volume.join("disk.img").exists() {
        return Ok(None);
    }
    let parent = match args.out.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    if !to_stdout && !parent.is_dir() {
        // The export itself reports the missing directory.
        return Ok(None);
    }
    let outputs = if to_stdout { Vec::new() } else { vec![parent] };
    sandbox::writer(&args.volume, outputs).map(Some)
}

fn check(args: &ExportArgs, to_stdout: bool) -> Result<(), UsageError> {
    if to_stdout && io::stdout().is_terminal() {
        return Err(UsageError::Terminal);
    }
    if args.compression.is_some() && !matches!(args.format, Format::OciLayout | Format::OciArchive) {
        return Err(UsageError::Compression);
    }
    Ok(())
}

/// Exports on a blocking thread, while this one handles signals and updates the progress bar.
fn carry_out(
    runtime: &Runtime,
    args: &ExportArgs,
    to_stdout: bool,
    cancel: &Cancel,
    console: &Console,
) -> Result<Report, Error> {
    let internal = |doing: &'static str, source| Error::from(IoError::new(doing, "the export", source));
    let request = Request {
        format: args.format,
        compression: args.compression.unwrap_or(Compression::Gzip),
        images: args.images.clone(),
        force: args.force,
    };
    let monitor = Arc::new(Monitor::new());
    let (volume, out, watched) = (args.volume.clone(), args.out.clone(), Arc::clone(&monitor));
    runtime.block_on(async {
        signals::watch(cancel.clone(), console.clone()).map_err(|e| internal("handling signals for", e))?;
        let mut work = crate::blocking::spawn(move || match to_stdout {
            true => export::export_to(&volume, Box::new(io::stdout()), &request, &monitor),
            false => export::export(&volume, &out, &request, &monitor),
        });
        let bar = Bar::new(console);
        let mut stopped = false;
        let mut ticks = tokio::time::interval(bar::UPDATE_INTERVAL);
        loop {
            tokio::select! {
                done = &mut work => {
                    return done.unwrap_or_else(|e| Err(internal("running", io::Error::other(e))));
                }
                _ = ticks.tick() => bar.set(watched.progress()),
                () = cancel.cancelled(), if !stopped => {
                    stopped = true;
                    watched.stop();
                }
            }
        }
    })
}

/// The summary as JSON.
#[derive(Serialize)]
struct Summary<'a> {
    format: Format,
    out: &'a Path,
    #[serde(flatten)]
    report: &'a Report,
    elapsed_ms: u64,
}

fn report_result(
    args: &ExportArgs,
    to_stdout: bool,
    report: &Report,
    elapsed: Duration,
    console: &Console,
) -> u8 {
    let text = match args.output.format() {
        Output::Text => text(&args.out, report, elapsed),
        Output::Json => {
            let elapsed_ms = milliseconds(elapsed);
            let result = Summary { format: args.format, out: &args.out, report, elapsed_ms };
            match serde_json::to_string(&result) {
                Ok(json) => json + "\n",
                Err(e) => return exit::fail(console, Class::Internal, &format!("writing the result: {e}")),
            }
        }
    };
    if !to_stdout {
        return stdout::print(console, &text);
    }
    console.print(&text);
    0
}

fn text(out: &Path, report: &Report, elapsed: Duration) -> String {
    let mut text = String::new();
    let (path, size) = (escape(&out.display().to_string()), ByteSize(report.size));
    let _ = writeln!(text, "exported {path}: {size} in {:.1} s", elapsed.as_secs_f64());
    for image in &report.images {
        let _ = write!(text, "  {}  image ID {}", escape(&image.reference), image.config);
        match &image.name {
            Some(name) if *name == image.reference => text.push('\n'),
            Some(name) => {
                let _ = writeln!(text, " as {}", escape(name));
            }
            None => text.push_str(" without a name, because it has no tag\n"),
        }
    }
    if let Some(sha256) = &report.sha256 {
        let _ = writeln!(text, "{sha256}");
    }
    text
}
