//! `larder attach` and `larder detach`: a volume on this node.

use std::path::{Path, PathBuf};

use reqwest::Method;
use serde_json::Value;
use tokio::runtime::Builder;

use super::args::{AttachArgs, DetachArgs, NodeArgs};
use super::cache;
use super::exit;
use super::output::stdout;
use crate::caches::attachments::Attachments;
use crate::caches::layout::Layout;
use crate::client::Request;
use crate::config::Config;
use crate::model::class::Class;
use crate::node::attach::{self, Boot, Host, Order, Plan};
use crate::telemetry::Console;

/// A command failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Attach(#[from] attach::Error),
    #[error(transparent)]
    Cache(#[from] cache::Error),
    #[error("image cache {0} has no sealed volume: wait for it, or order it again")]
    NoVolume(String),
    #[error(
        "the daemon does not say where the volume of {0} is: name a daemon of this host, by its Unix socket, as root"
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
            Error::NoVolume(_) => Class::NotFound,
            Error::NoPath(_) => Class::Denied,
            Error::Program(_) | Error::Threads(_) => Class::Internal,
        }
    }
}

/// Runs `attach` and answers its exit code.
pub(super) fn attach(
    args: &AttachArgs,
    config_file: Option<&Path>,
    config: &Config,
    console: &Console,
) -> u8 {
    let done = || -> Result<String, Error> {
        let order = Order {
            volume: volume(&args.source, &args.node)?,
            at: args.at.clone(),
            runtimes: args.runtimes(),
            boot: if args.no_unit { None } else { Some(boot(args, config_file)?) },
        };
        let plan = Plan::make(&order, &host(&args.node, config))?;
        if args.dry_run {
            return Ok(plan.to_string());
        }
        for note in plan.notes() {
            tracing::warn!("{note}");
        }
        let at = plan.at().to_owned();
        plan.carry_out()?;
        Ok(format!("{}\n", at.display()))
    };
    match done() {
        Ok(text) => stdout::print(console, &text),
        Err(error) => exit::fail(console, error.class(), &error.to_string()),
    }
}

/// Runs `detach` and answers its exit code.
pub(super) fn detach(args: &DetachArgs, config: &Config, console: &Console) -> u8 {
    let host = host(&args.node, config);
    let done = || -> Result<attach::Detached, Error> {
        let wanted = match as_path(&args.source) {
            Some(path) => path,
            None => volume(&args.source, &args.node)?,
        };
        Ok(attach::detach(&wanted, &host)?)
    };
    match done() {
        Ok(_) => 0,
        Err(error) => exit::fail(console, error.class(), &error.to_string()),
    }
}

fn host(args: &NodeArgs, config: &Config) -> Host {
    let records = Attachments::new(Layout::new(&config.state.dir).attached());
    Host { root: args.node_root.clone(), records }
}

/// How the unit calls this program.
fn boot(args: &AttachArgs, config_file: Option<&Path>) -> Result<Boot, Error> {
    let mut flags = Vec::new();
    for runtime in args.runtimes().unwrap_or_default() {
        flags.extend(["--runtime".to_owned(), runtime.name().to_owned()]);
    }
    if let Some(path) = config_file {
        let path = std::path::absolute(path).map_err(Error::Program)?;
        flags.extend(["--config".to_owned(), path.display().to_string()]);
    }
    Ok(Boot { program: std::env::current_exe().map_err(Error::Program)?, flags })
}

/// What has a slash, or is there, is a path; other names are those of image caches.
fn as_path(source: &str) -> Option<PathBuf> {
    let path = PathBuf::from(source);
    (source.contains('/') || path.exists()).then_some(path)
}

/// The volume that is meant: the one that the daemon serves, for an image cache.
fn volume(source: &str, args: &NodeArgs) -> Result<PathBuf, Error> {
    if let Some(path) = as_path(source) {
        return Ok(path);
    }
    let runtime = Builder::new_current_thread().enable_all().build().map_err(Error::Threads)?;
    let answer = runtime.block_on(snapshots(source, args))?;
    let all = answer["snapshots"].as_array().map(Vec::as_slice).unwrap_or_default();
    let served = all.iter().find(|snapshot| snapshot["served"] == Value::Bool(true));
    let served = served.ok_or_else(|| Error::NoVolume(source.to_owned()))?;
    served["path"].as_str().map(PathBuf::from).ok_or_else(|| Error::NoPath(source.to_owned()))
}

async fn snapshots(cache: &str, args: &NodeArgs) -> Result<Value, cache::Error> {
    let client = cache::connect(args.host.as_ref(), None)?;
    let path = format!("/larder/v1/caches/{}/snapshots", cache::resolve(&client, cache).await?);
    Ok(client.call(Request::new(Method::GET, &path)).await?)
}
