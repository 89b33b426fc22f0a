//! `larder attach` and `larder detach`: mount and unmount a volume on this node.

use std::path::{Path, PathBuf};

use reqwest::Method;
use serde_json::json;

use super::args::{AttachArgs, DetachArgs};
use super::output::stdout;
use super::usage::UsageError;
use super::{attached, cache, exit, matching, merge};
use crate::api::wire::beyond::Snapshots;
use crate::blocking;
use crate::caches::attachments::Attachments;
use crate::caches::layout::Layout;
use crate::client::Request;
use crate::client::address::Address;
use crate::config::Config;
use crate::keys;
use crate::node::access::{self, AccessError};
use crate::node::attach::{self, AttachOptions, Boot, Consent, Host, Plan};
use crate::node::matching::{BestCache, Location};
use crate::node::snapshotter;
use crate::telemetry::Console;
use crate::volume::proofs::Proofs;
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::runtime::Containerd;
use larder_model::trust::Trust;

/// The errors of both commands.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Attach(#[from] attach::Error),
    #[error(transparent)]
    Cache(#[from] cache::Error),
    #[error(transparent)]
    Match(#[from] matching::Error),
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error(transparent)]
    Usage(#[from] UsageError),
    #[error(transparent)]
    Keys(#[from] keys::Error),
    #[error("image cache {0} has no sealed volume: wait until it is built, or create it again")]
    NoVolume(String),
    #[error(
        "the daemon does not report the path of the volume of {0}: connect as root to the Unix socket of a daemon on this host"
    )]
    NoPath(String),
    #[error("finding this program: {0}")]
    Program(std::io::Error),
    #[error("starting threads: {0}")]
    Threads(std::io::Error),
}

impl Error {
    fn class(&self) -> Class {
        match self {
            Error::Attach(e) => e.class(),
            Error::Cache(e) => e.class(),
            Error::Match(e) => e.class(),
            Error::Access(e) => e.class(),
            Error::Usage(e) => e.class(),
            Error::Keys(e) => e.class(),
            Error::NoVolume(_) => Class::NotFound,
            Error::NoPath(_) => Class::Denied,
            Error::Program(_) | Error::Threads(_) => Class::Internal,
        }
    }
}

/// Variable with the state directory, which overrides the configuration.
const STATE: &str = "LARDER_STATE__DIR";

/// Runs `attach` and returns its exit code.
pub(super) fn attach(args: AttachArgs, config_file: Option<&Path>, config: &Config, console: &Console) -> u8 {
    let as_json = args.output.is_json();
    if args.list {
        return attached::run(as_json, config, console);
    }
    match attach_volume(args, config_file, config, console) {
        Ok(Attached::Planned(plan)) if as_json => {
            let steps: Vec<&str> = plan.lines().collect();
            stdout::print_json(console, &json!({"dry_run": true, "steps": steps}))
        }
        Ok(Attached::Planned(plan)) => stdout::print(console, &plan),
        Ok(Attached::Done { at, volume, digest }) if as_json => {
            stdout::print_json(console, &json!({"at": at, "volume": volume, "digest": digest}))
        }
        Ok(Attached::Done { at, .. }) => stdout::print(console, &format!("{}\n", at.display())),
        Err(error) => exit::fail(console, error.class(), &error.to_string()),
    }
}

/// The result of an attach.
enum Attached {
    /// A dry run: the steps as text.
    Planned(String),
    /// The volume is attached.
    Done { at: PathBuf, volume: PathBuf, digest: Digest },
}

/// Attaches the volume, or only plans to.
fn attach_volume(
    args: AttachArgs,
    config_file: Option<&Path>,
    config: &Config,
    console: &Console,
) -> Result<Attached, Error> {
    let order = AttachOptions {
        volume: wanted(&args, config, console)?,
        at: args.at.clone(),
        trust: Trust {
            name: args.name.clone(),
            not_older_than: args.not_older_than,
            ..keys::trust(&args.trust)?
        },
        digest: args.digest.clone(),
        verify_layers: args.verify_layers || (!args.trust.is_empty() && !args.trust_metadata_only),
        runtimes: args.runtimes(),
        containerd: Containerd::from(&args.containerd),
        preload: args.preload,
        boot: if args.no_unit { None } else { Some(boot(&args, config_file)?) },
    };
    let plan = Plan::make(&order, &host(&args.node_root, config))?;
    access::check_blocking(args.access, plan.content(), &merge::registry(args.credentials, config)?, config)?;
    if args.dry_run {
        return Ok(Attached::Planned(plan.to_string()));
    }
    for note in plan.notes() {
        console.print(&format!("note: {note}\n"));
    }
    let done = Attached::Done {
        at: plan.at().to_owned(),
        volume: plan.volume().to_owned(),
        digest: plan.cache().clone(),
    };
    for skipped in plan.carry_out()?.iter().flat_map(|report| report.skipped()) {
        console.print(&format!("warning: {skipped}\n"));
    }
    Ok(done)
}

/// Runs `detach` and returns its exit code.
pub(super) fn detach(args: &DetachArgs, config: &Config, console: &Console) -> u8 {
    let done = || -> Result<attach::Detached, Error> {
        let wanted = match as_path(&args.source) {
            Some(path) => path,
            None => volume(&args.source, args.host.as_ref(), None)?,
        };
        let consent = Consent { force: args.force, remove_images: args.remove_images };
        Ok(attach::detach(&wanted, &host(&args.node_root, config), consent)?)
    };
    match done() {
        Ok(detached) => {
            if args.output.is_json() {
                let document = json!({"at": detached.at, "notes": detached.notes});
                return stdout::print_json(console, &document);
            }
            detached.notes.iter().for_each(|note| console.print(&format!("note: {note}\n")));
            0
        }
        Err(error) => exit::fail(console, error.class(), &error.to_string()),
    }
}

fn host(root: &Path, config: &Config) -> Host {
    let layout = Layout::new(&config.state.dir);
    Host {
        root: root.to_owned(),
        records: Attachments::new(layout.attached()),
        proofs: Proofs::new(layout.verified()),
        socket: snapshotter::SOCKET.into(),
        snapshots: layout.snapshotter(),
        content_cache: layout.content_cache(),
    }
}

/// Returns how the systemd unit runs this program. The checks with registries and containerd are not repeated
/// at each boot. The record contains the digest of the attached volume, and containerd keeps its own records.
fn boot(args: &AttachArgs, config_file: Option<&Path>) -> Result<Boot, Error> {
    let mut flags = Vec::new();
    let mut flag = |name: &str, value: &str| flags.extend([name.to_owned(), value.to_owned()]);
    for runtime in args.runtimes().unwrap_or_default() {
        flag("--runtime", runtime.name());
    }
    let (containerd, default) = (Containerd::from(&args.containerd), Containerd::default());
    if containerd.address != default.address {
        flag("--containerd", &containerd.address.display().to_string());
    }
    if containerd.namespace != default.namespace {
        flag("--namespace", &containerd.namespace);
    }
    if containerd.snapshotter != default.snapshotter {
        flag("--snapshotter", &containerd.snapshotter);
    }
    for key in &args.trust {
        // A key file needs an absolute path, so that the unit finds it.
        let key = Path::new(key).canonicalize().map_or(key.clone(), |path| path.display().to_string());
        flag("--trust", &key);
    }
    if let Some(path) = config_file {
        let path = std::path::absolute(path).map_err(Error::Program)?;
        flag("--config", &path.display().to_string());
    }
    let switches =
        [(args.trust_metadata_only, "--trust-metadata-only"), (args.verify_layers, "--verify-layers")];
    flags.extend(switches.into_iter().filter(|(given, _)| *given).map(|(_, name)| name.to_owned()));
    // The unit must use the same state directory as this process.
    let environment = std::env::var(STATE).ok().map(|dir| format!("{STATE}={dir}"));
    let environment = environment.into_iter().collect();
    Ok(Boot { program: std::env::current_exe().map_err(Error::Program)?, flags, environment })
}

/// Returns the source as a path if it contains a slash or exists. Other sources are names of image caches.
fn as_path(source: &str) -> Option<PathBuf> {
    let path = PathBuf::from(source);
    (source.contains('/') || path.exists()).then_some(path)
}

/// Returns the volume to attach.
fn wanted(args: &AttachArgs, config: &Config, console: &Console) -> Result<PathBuf, Error> {
    if let Some(source) = &args.source {
        return match as_path(source) {
            Some(path) => Ok(path),
            None => volume(source, args.sources.host.as_ref(), args.sources.ca.as_deref()),
        };
    }
    let found =
        matching::find(&args.matches, &args.sources, config, console)?.ok_or(matching::Error::NoMatch)?;
    if args.require {
        found.require_all().map_err(matching::Error::from)?;
    }
    match found {
        BestCache { volume: Some(volume), .. } => Ok(volume),
        BestCache { place: Location::Daemon { id, .. }, .. } => {
            volume(&id.to_string(), args.sources.host.as_ref(), args.sources.ca.as_deref())
        }
        BestCache { .. } => Err(matching::Error::NoMatch.into()),
    }
}

/// Returns the path of the sealed volume that the daemon serves for an image cache.
fn volume(cache: &str, host: Option<&Address>, ca: Option<&Path>) -> Result<PathBuf, Error> {
    let runtime = blocking::current_thread().map_err(Error::Threads)?;
    let Snapshots { snapshots } = runtime.block_on(Box::pin(snapshots(cache, host, ca)))?;
    let served = snapshots.into_iter().find(|snapshot| snapshot.served);
    let served = served.ok_or_else(|| Error::NoVolume(cache.to_owned()))?;
    served.path.ok_or_else(|| Error::NoPath(cache.to_owned()))
}

async fn snapshots(
    cache: &str,
    host: Option<&Address>,
    ca: Option<&Path>,
) -> Result<Snapshots, cache::Error> {
    let client = cache::connect(host, ca)?;
    let path = format!("/larder/v1/caches/{}/snapshots", cache::resolve(&client, cache).await?);
    Ok(client.call(Request::new(Method::GET, &path)).await?.read()?)
}
