//! `larder build`: one job in, one sealed volume out.

use std::fmt::Display;
use std::path::Path;

use tokio::runtime;

use super::args::OrderArgs;
use super::call::Call;
use super::outcome::{carry_out, end, refuse, usage_outcome};
use super::{confine, keeper, merge, role};
use crate::archive::Input;
use crate::builder::events;
use crate::builder::order::ImageSource;
use crate::config::Config;
use crate::keys;
use crate::telemetry::Console;
use larder_model::class::Class;
use larder_model::key::Claims;

/// Runs the command and returns its exit code.
pub(super) fn run(args: OrderArgs, call: Call, config: Config, console: &Console) -> u8 {
    match call.kept {
        Some(role) => role::run(args, role, call, config, console),
        None => supervise(args, call, config, console),
    }
}

/// Runs the build in child processes of this process.
fn supervise(args: OrderArgs, call: Call, config: Config, console: &Console) -> u8 {
    let output = args.output;
    let refuse = |result: Option<&Path>, class, message: &dyn Display| {
        refuse(result, output, class, &message.to_string(), console)
    };
    // Do this first: reading the job can block on a supervisor that has already ended.
    if let Err(e) = confine::settle(&args) {
        return refuse(args.result_file.as_deref(), e.class(), &e);
    }
    let job = match merge::read_job(&args) {
        Ok(job) => job,
        Err(e) => return refuse(args.result_file.as_deref(), e.class(), &e),
    };
    let result = merge::result_file(&args, job.as_deref());
    let disk_options = args.disk;
    let claims = Claims { name: args.sign_name.clone(), sequence: args.sign_sequence };
    let order = match merge::order(args, job.as_deref(), &config, merge::Purpose::Build) {
        Ok(order) => order,
        Err(e) => return refuse(result.as_deref(), e.class(), &e),
    };
    let signer = match order.sign_key.as_deref().map(keys::signing).transpose() {
        Ok(key) => key.map(|key| key.with_claims(claims)),
        Err(e) => return refuse(result.as_deref(), e.class(), &e),
    };
    let archive = match &order.source {
        ImageSource::Archive { path, .. } if path == Path::new("-") => match Input::keep() {
            Ok(file) => Some(file),
            Err(e) => return refuse(result.as_deref(), e.class(), &e),
        },
        _ => None,
    };
    if order.volume_kind.is_disk()
        && let Err(e) = keeper::enter_namespace(order.share.as_ref().map(|share| &*share.dir))
    {
        return refuse(result.as_deref(), e.class(), &e);
    }
    let volume = order.volume.clone();
    let job = job.map(|job| String::from_utf8_lossy(&job).into_owned());
    let params = keeper::BuildParams { order, config, disk_options, argv: call.argv, job, signer, archive };
    // This thread starts the children, and Linux ties them to it. The runtime's thread handles signals even
    // while this one waits for a slow reader of events.
    let outcome = match runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => {
            let (events, lines) = events::channel();
            let sender = events.clone();
            let work = move |cancel| keeper::supervise(params, sender, cancel);
            let outcome = carry_out(&runtime, work, None, (events, lines), output, console);
            runtime.shutdown_background();
            outcome
        }
        Err(e) => usage_outcome(Class::Internal, &format!("starting the supervisor: {e}")),
    };
    end(&outcome, result.as_deref(), output, &volume, console)
}
