//! The child processes of a build's supervisor. Each opens its files, is confined, and then runs its part of
//! the build.

use std::num::NonZero;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::{io, thread};

use tokio::runtime::{self, Runtime};

use super::args::{OrderArgs, Output};
use super::call::{Call, Role};
use super::outcome::{carry_out, refuse};
use super::output::json::Json;
use super::output::{Renderer as _, stdout};
use super::{confine, exit, keeper, merge, plan};
use crate::builder::cancel::Cancel;
use crate::builder::events::{self, Events};
use crate::builder::order::{BuildRequest, FetcherConnection, Signer};
use crate::builder::remote::{Fetcher, serve};
use crate::builder::supervisor::DescriptorPurpose;
use crate::builder::{Prepared, registry, sweep};
use crate::config::Config;
use crate::telemetry::Console;
use crate::volume::Trust;
use larder_model::class::Class;
use larder_model::event::Event;
use larder_sys::confine::{Confined, Confinement};

/// Runs the part `role` of the build and returns the exit code.
pub(super) fn run(mut args: OrderArgs, role: Role, call: Call, config: Config, console: &Console) -> u8 {
    // The remaining arguments only concern the supervisor.
    args.output = Output::Json;
    args.die_with_parent = Some(call.kept_by);
    args.result_file = None;
    let fail = |class, message: String| refuse(None, Output::Json, class, &message, console);
    if let Err(e) = confine::settle(&args) {
        return fail(e.class(), e.to_string());
    }
    let sandboxed = !args.no_sandbox;
    let (supervisor, greeting, descriptors) = match keeper::meet() {
        Ok(met) => met,
        Err(e) => return fail(Class::Internal, format!("connecting to the supervisor: {e}")),
    };
    let job = greeting.job.as_deref().map(str::as_bytes);
    let mut order = match merge::order(args, job, &config, merge::Purpose::Build) {
        Ok(order) => order,
        Err(e) => return fail(e.class(), e.to_string()),
    };
    if let Some(volume) = call.kept_volume {
        order.volume = volume;
    }
    let mut connection = None;
    for (what, descriptor) in greeting.descriptors.iter().zip(descriptors) {
        match what {
            DescriptorPurpose::Fetching => connection = Some(UnixStream::from(descriptor)),
            DescriptorPurpose::Archive => order.standard_input = Some(Arc::new(descriptor.into())),
        }
    }
    order.signer = greeting.signer.map(|key| Signer::Supervisor(supervisor.clone(), key));
    order.supervisor = Some(supervisor.clone());
    let part = Part { order, config, sandboxed };
    match role {
        Role::Fetch => part.fetch(connection, console),
        Role::Resolve => part.resolve(console),
        Role::Fill | Role::Sweep | Role::Prove => {
            let absent = greeting.absent;
            let connection = connection.map(|stream| FetcherConnection { stream: Arc::new(stream), absent });
            part.extract(role, connection, console)
        }
    }
}

struct Part {
    order: BuildRequest,
    config: Config,
    sandboxed: bool,
}

impl Part {
    /// Fetches layers for the extractor at the other end of `connection`.
    fn fetch(self, connection: Option<UnixStream>, console: &Console) -> u8 {
        let Some(connection) = connection else {
            return exit::fail(console, Class::Internal, "the fetcher has no connection to the extractor");
        };
        let Some(supervisor) = &self.order.supervisor else {
            return exit::fail(console, Class::Internal, "the fetcher has no connection to the supervisor");
        };
        let (events, lines) = events::channel();
        let fetcher = registry::fetcher(&self.order, &self.config, &events, supervisor.clone());
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

    /// Resolves the images of the order and prints the report.
    fn resolve(self, console: &Console) -> u8 {
        let confinement = confine::resolver(&self.order);
        let (events, _) = events::channel();
        let prepared = Prepared::new(self.order.clone(), self.config.clone(), events);
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
    fn extract(mut self, role: Role, fetching: Option<FetcherConnection>, console: &Console) -> u8 {
        let fail = |class, message: &str| refuse(None, Output::Json, class, message, console);
        self.order.fetcher = fetching;
        let (events, lines) = events::channel();
        let confinement = match confine::extractor(&self.order) {
            Ok(confinement) => confinement,
            Err(e) => return fail(e.class(), &e.to_string()),
        };
        let order = self.order.clone();
        let prepared =
            (role == Role::Fill).then(|| Prepared::new(order.clone(), self.config.clone(), events.clone()));
        let deadline = order.deadline;
        let (_confined, runtime) = match self.enter(&confinement, Some(&events)) {
            Ok(entered) => entered,
            Err((class, message)) => return fail(class, &message),
        };
        let work = |cancel: Cancel| async move {
            match (prepared, role) {
                (Some(prepared), _) => prepared.run(cancel).await,
                (None, Role::Prove) => sweep(order, Trust::Synced, cancel).await,
                (None, _) => sweep(order, Trust::ThisBoot, cancel).await,
            }
        };
        let outcome = carry_out(&runtime, work, deadline, (events, lines), Output::Json, console);
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
        let mut runtime = runtime::Builder::new_multi_thread();
        // The runtime counts processors by reading files that are not accessible afterwards.
        runtime.enable_all().worker_threads(thread::available_parallelism().map_or(1, NonZero::get));
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
        let runtime = runtime.build();
        let runtime =
            runtime.map_err(|e| (Class::Internal, format!("starting the threads of the build: {e}")))?;
        Ok((confined, runtime))
    }
}

async fn fetch(connection: UnixStream, fetcher: Fetcher, events: Events) -> io::Result<()> {
    let registry = fetcher.registry();
    let served = serve(connection, fetcher).await;
    for ((host, code), requests) in registry.map(|registry| registry.answers()).unwrap_or_default() {
        events.emit(Event::RegistryAnswers { host, code, requests });
    }
    served
}
