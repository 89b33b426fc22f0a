//! The child processes of a build's supervisor. Each opens its files, is confined, and then runs its part of
//! the build.

use std::num::NonZero;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::{io, thread};

use tokio::runtime::Runtime;

use super::args::internal::{BuildChildArgs, ChildRole};
use super::args::{BuildArgs, Output};
use super::outcome::{carry_out, refuse, show, usage_outcome};
use super::output::display::Display;
use super::output::json::Json;
use super::output::{Renderer as _, stdout};
use super::{confine, exit, merge, plan};
use crate::blocking;
use crate::builder::cancel::Cancel;
use crate::builder::events::{self, Events};
use crate::builder::order::{BuildRequest, FetcherConnection, Signer};
use crate::builder::remote::{Fetcher, serve};
use crate::builder::supervisor::{DescriptorPurpose, Greeting, SupervisorClient};
use crate::builder::{Prepared, registry, sweep};
use crate::config::Config;
use crate::telemetry::Console;
use crate::volume::Trust;
use larder_model::class::Class;
use larder_model::event::Event;
use larder_model::size::ByteSize;
use larder_sys::confine::{Confined, Confinement};

/// Does the task of `child`, with the flags of its supervisor, and returns the exit code.
pub(super) fn run(mut args: BuildArgs, child: BuildChildArgs, config: Config, console: &Console) -> u8 {
    // The remaining arguments only concern the supervisor.
    args.options.output = Output::Json.into();
    args.options.result_file = None;
    args.die_with_parent = Some(Some(child.supervisor));
    let fail = |class, message: String| refuse(None, Display::CHILD, class, &message, console);
    if let Err(e) = confine::settle(&args) {
        return fail(e.class(), e.to_string());
    }
    let sandboxed = !args.options.no_sandbox;
    let (supervisor, greeting, descriptors) = match meet() {
        Ok(met) => met,
        Err(e) => return fail(Class::Internal, format!("connecting to the supervisor: {e}")),
    };
    let job = greeting.job.as_deref().map(str::as_bytes);
    let mut request = match merge::build_request(args, job, &config, merge::Purpose::Build) {
        Ok(request) => request,
        Err(e) => return fail(e.class(), e.to_string()),
    };
    if let Some(volume) = child.mounted_at {
        request.volume = volume;
    }
    if let Some(size) = child.size {
        request.size = ByteSize(size);
        request.size_is_computed = true;
    }
    let mut connection = None;
    for (what, descriptor) in greeting.descriptors.iter().zip(descriptors) {
        match what {
            DescriptorPurpose::Fetching => connection = Some(UnixStream::from(descriptor)),
            DescriptorPurpose::Archive => request.standard_input = Some(Arc::new(descriptor.into())),
        }
    }
    request.signer = greeting.signer.map(|key| Signer::Supervisor(supervisor.clone(), key));
    request.supervisor = Some(supervisor);
    let task = Task { request, config, sandboxed };
    match child.role {
        ChildRole::Fetch => task.fetch(connection, console),
        ChildRole::Resolve => task.resolve(console),
        role @ (ChildRole::Fill | ChildRole::Sweep | ChildRole::Prove) => {
            let absent = greeting.absent;
            let connection = connection.map(|stream| FetcherConnection { stream: Arc::new(stream), absent });
            task.extract(role, connection, console)
        }
    }
}

/// Connects to the supervisor on standard input, and receives the text of the job. Must be called only once.
///
/// # Errors
/// The connection fails.
fn meet() -> io::Result<(SupervisorClient, Greeting, Vec<OwnedFd>)> {
    SupervisorClient::meet(UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?))
}

/// A task of the build.
struct Task {
    request: BuildRequest,
    config: Config,
    sandboxed: bool,
}

impl Task {
    /// Fetches layers for the extractor at the other end of `connection`.
    fn fetch(self, connection: Option<UnixStream>, console: &Console) -> u8 {
        let Some(connection) = connection else {
            return exit::fail(console, Class::Internal, "the fetcher has no connection to the extractor");
        };
        let Some(supervisor) = &self.request.supervisor else {
            return exit::fail(console, Class::Internal, "the fetcher has no connection to the supervisor");
        };
        let (events, lines) = events::channel();
        let fetcher = registry::fetcher(&self.request, &self.config, &events, supervisor.clone());
        let runtime = match self.enter(&confine::fetcher(), None) {
            Ok((_confined, runtime)) => runtime,
            Err((class, message)) => return exit::fail(console, class, &message),
        };
        // The supervisor reads the output. When it ends, the kernel kills this process.
        let shown = thread::spawn(move || {
            let mut output = Json(io::stdout());
            for line in lines {
                if output.show(&line).is_err() {
                    return;
                }
            }
        });
        let served = runtime.block_on(Box::pin(fetch(connection, fetcher, events)));
        runtime.shutdown_background();
        let _ = shown.join();
        match served {
            Ok(()) => 0,
            Err(e) => exit::fail(console, Class::Internal, &format!("fetching for the build: {e}")),
        }
    }

    /// Resolves the images of the request and prints the report.
    fn resolve(self, console: &Console) -> u8 {
        let confinement = confine::resolver(&self.request);
        let (events, _) = events::channel();
        let prepared = Prepared::new(self.request.clone(), self.config.clone(), events);
        let (_confined, runtime) = match self.enter(&confinement, None) {
            Ok(entered) => entered,
            Err((class, message)) => return exit::fail(console, class, &message),
        };
        let planned = runtime.block_on(Box::pin(prepared.plan(Cancel::new())));
        runtime.shutdown_background();
        match plan::json(planned) {
            Ok(text) => stdout::print(console, &text),
            Err(e) => exit::fail(console, Class::Internal, &format!("writing the report: {e}")),
        }
    }

    /// Runs a role that works on the volume.
    fn extract(mut self, role: ChildRole, fetching: Option<FetcherConnection>, console: &Console) -> u8 {
        // The supervisor prints the message.
        let fail = |class: Class, message: &str| {
            show(usage_outcome(class, message), Display::CHILD, console);
            class.exit_code()
        };
        self.request.fetcher = fetching;
        let (events, lines) = events::channel();
        let confinement = match confine::extractor(&self.request) {
            Ok(confinement) => confinement,
            Err(e) => return fail(e.class(), &e.to_string()),
        };
        let request = self.request.clone();
        let prepared = (role == ChildRole::Fill)
            .then(|| Prepared::new(request.clone(), self.config.clone(), events.clone()));
        let deadline = request.deadline;
        let (_confined, runtime) = match self.enter(&confinement, Some(&events)) {
            Ok(entered) => entered,
            Err((class, message)) => return fail(class, &message),
        };
        let work = |cancel: Cancel| async move {
            match (prepared, role) {
                (Some(prepared), _) => prepared.run(cancel).await,
                (None, ChildRole::Prove) => sweep(request, Trust::Synced, cancel).await,
                (None, _) => sweep(request, Trust::ThisBoot, cancel).await,
            }
        };
        let renderer = Display::CHILD.of_build(console);
        let outcome = carry_out(&runtime, work, deadline, (events, lines), renderer, console);
        // Do not wait for a thread that is blocked on another process.
        runtime.shutdown_background();
        outcome.exit_code
    }

    /// Confines this process, and only then starts threads. Missing protections are reported once, to
    /// `events`.
    fn enter(
        &self,
        confinement: &Confinement,
        events: Option<&Events>,
    ) -> Result<(Option<Confined>, Runtime), (Class, String)> {
        // The runtime counts processors by reading files that are not accessible afterwards.
        let workers = thread::available_parallelism().map_or(1, NonZero::get);
        let confined = match self.sandboxed {
            true => Some(confinement.enter().map_err(|e| (e.class(), e.to_string()))?),
            false => None,
        };
        let missing = match &confined {
            Some(confined) => confined.isolation.missing(),
            None => Some("it was started with --no-sandbox".to_owned()),
        };
        if let (Some(missing), Some(events)) = (missing, events) {
            let message = format!("the build is not fully confined: {missing}");
            events.emit(Event::Warning { message });
        }
        let runtime = blocking::multi_thread(Some(workers), blocking::MAX_THREADS);
        let runtime =
            runtime.map_err(|e| (Class::Internal, format!("starting the threads of the build: {e}")))?;
        Ok((confined, runtime))
    }
}

async fn fetch(connection: UnixStream, fetcher: Fetcher, events: Events) -> io::Result<()> {
    let client = fetcher.registry();
    let served = serve(connection, fetcher).await;
    if let Some(client) = client {
        registry::report_traffic(&client, &events);
    }
    served
}
