//! `larder build`: one job in, one sealed volume out. This process is the supervisor of the build.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::sync::OnceLock;

use super::args::{BuildArgs, without_creds};
use super::outcome::{carry_out, end, refuse, usage_outcome};
use super::output::Renderer;
use super::output::display::Display;
use super::output::timeline::Recording;
use super::supervisor::BuildParams;
use super::usage::UsageError;
use super::{confine, merge, supervisor};
use crate::archive::{self, Input};
use crate::builder::events;
use crate::builder::order::ImageSource;
use crate::config::Config;
use crate::telemetry::Console;
use crate::volume::disk;
use crate::{blocking, keys};
use larder_model::class::Class;
use larder_model::event::Outcome;
use larder_model::job::VolumeKind;
use larder_model::key::Claims;

/// The reason why a build cannot start.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Usage(Box<UsageError>),
    #[error(transparent)]
    Process(Box<confine::Error>),
    #[error(transparent)]
    Key(#[from] keys::Error),
    #[error(transparent)]
    Archive(Box<archive::Error>),
    #[error(transparent)]
    Disk(Box<disk::Error>),
}

impl Error {
    fn class(&self) -> Class {
        match self {
            Error::Usage(e) => e.class(),
            Error::Process(e) => e.class(),
            Error::Key(e) => e.class(),
            Error::Archive(e) => e.class(),
            Error::Disk(e) => e.class(),
        }
    }
}

/// Runs the command and returns its exit code. `argv` is the command line, from which the children of the
/// build read the same flags.
pub(super) fn run(args: BuildArgs, argv: Vec<OsString>, config: Config, console: &Console) -> u8 {
    let argv = without_creds(argv);
    let display = Display::of(&args.options);
    let fail = |result: Option<&Path>, error: Error| {
        refuse(result, display, error.class(), &error.to_string(), console)
    };
    let job = match start(&args) {
        Ok(job) => job,
        Err(error) => return fail(args.options.result_file.as_deref(), error),
    };
    let result = merge::result_file(&args, job.as_deref());
    let timeline = args.timeline.clone();
    let params = match prepare(args, job.as_deref(), argv, config) {
        Ok(params) => params,
        Err(error) => return fail(result.as_deref(), error),
    };
    let volume = params.request.volume.clone();
    let recording = Recording::default();
    let renderer = match timeline {
        Some(_) => recording.of(display.of_build(console)),
        None => display.of_build(console),
    };
    let outcome = supervise(params, renderer, console);
    if let Some(path) = timeline {
        recording.write(&path, &outcome, &volume);
    }
    end(&outcome, result.as_deref(), display, &volume, console)
}

/// Prepares this process and reads the job. `None` if no job is given.
fn start(args: &BuildArgs) -> Result<Option<Vec<u8>>, Error> {
    // Do this first: reading the job can block on a supervisor that has already ended.
    confine::settle(args).map_err(|e| Error::Process(Box::new(e)))?;
    merge::read_job(args).map_err(|e| Error::Usage(Box::new(e)))
}

/// Merges the parameters of the build, and opens what only this process can open.
fn prepare(
    args: BuildArgs,
    job: Option<&[u8]>,
    argv: Vec<OsString>,
    config: Config,
) -> Result<BuildParams, Error> {
    let (disk_options, starts_over) = (args.options.disk, args.options.force);
    let claims = Claims { name: args.sign_name.clone(), sequence: args.sign_sequence };
    let request = merge::build_request(args, job, &config, merge::Purpose::Build)
        .map_err(|e| Error::Usage(Box::new(e)))?;
    let key = request.sign_key.as_deref().map(keys::signing).transpose()?;
    let archive = archive_on_stdin(&request.source).map_err(|e| Error::Archive(Box::new(e)))?;
    if starts_over && request.volume_kind == VolumeKind::Block {
        return Err(Error::Usage(Box::new(UsageError::ForceForBlock)));
    }
    if request.volume_kind.is_disk() {
        let share = request.share.as_ref().map(|share| &*share.dir);
        supervisor::enter_namespace(share).map_err(|e| Error::Disk(Box::new(e)))?;
    }
    Ok(BuildParams {
        request,
        config,
        disk_options,
        argv,
        job: job.map(|job| String::from_utf8_lossy(job).into_owned()),
        signer: key.map(|key| key.with_claims(claims)),
        archive,
        starts_over,
        computed_size: OnceLock::new(),
    })
}

/// Reads the archive of `source`, if it is on standard input.
fn archive_on_stdin(source: &ImageSource) -> Result<Option<File>, archive::Error> {
    match source {
        ImageSource::Archive { path, .. } if path == Path::new("-") => Input::keep().map(Some),
        _ => Ok(None),
    }
}

fn supervise(params: BuildParams, renderer: Box<dyn Renderer>, console: &Console) -> Outcome {
    // This thread starts the children, and Linux ties them to it. The runtime's thread handles signals even
    // while this one waits for a slow reader of events.
    let runtime = match blocking::multi_thread(Some(1), blocking::MAX_THREADS) {
        Ok(runtime) => runtime,
        Err(e) => return usage_outcome(Class::Internal, &format!("starting the supervisor: {e}")),
    };
    let (events, lines) = events::channel();
    let sender = events.clone();
    let work = move |cancel| supervisor::supervise(params, sender, cancel);
    let outcome = carry_out(&runtime, work, None, (events, lines), renderer, console);
    runtime.shutdown_background();
    outcome
}
