//! `larder match`: finds the best cache for a workload.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::args::{MatchArgs, SourceArgs};
use super::output::stdout;
use super::{cache, exit};
use crate::api::wire::beyond::Matched;
use crate::blocking;
use crate::caches::layout::Layout;
use crate::config::Config;
use crate::node::matching::{self, BestCache, Incomplete, Location, Sources};
use crate::telemetry::Console;
use larder_model::class::Class;
use larder_model::escape::escape;
use larder_model::matching::Score;
use larder_model::platform::Platform;
use larder_model::reference::ImageReference;
use larder_model::size::ByteSize;

/// The errors of `larder match`.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Volumes(#[from] matching::Error),
    #[error(transparent)]
    Daemon(#[from] cache::Error),
    #[error("no cache contains any of these images")]
    NoMatch,
    #[error(transparent)]
    Incomplete(#[from] Incomplete),
    #[error("starting threads: {0}")]
    Threads(std::io::Error),
}

impl Error {
    pub(super) fn class(&self) -> Class {
        match self {
            Error::Volumes(e) => e.class(),
            Error::Daemon(e) => e.class(),
            Error::NoMatch => Class::NotFound,
            Error::Incomplete(e) => e.class(),
            Error::Threads(_) => Class::Internal,
        }
    }
}

/// Runs the command and returns its exit code.
pub(super) fn run(args: &MatchArgs, config: &Config, console: &Console) -> u8 {
    let found = match find(&args.images, &args.sources, config, console) {
        Ok(found) => found,
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    };
    let shown = match (&found, args.output.is_json()) {
        (_, true) => {
            stdout::print(console, &format!("{:#}\n", json!({"match": found.as_ref().map(document)})))
        }
        (Some(found), false) => stdout::print(console, &text(found)),
        (None, false) => 0,
    };
    let complete = match &found {
        None => Err(Error::NoMatch),
        Some(found) if args.require => found.require_all().map_err(Error::from),
        Some(_) => Ok(()),
    };
    match complete {
        Ok(()) => shown,
        Err(error) => exit::fail(console, error.class(), &error.to_string()),
    }
}

/// Finds the best cache for `images` among the caches of this node and of the given daemon.
pub(super) fn find(
    images: &[ImageReference],
    sources: &SourceArgs,
    config: &Config,
    console: &Console,
) -> Result<Option<BestCache>, Error> {
    let state = Layout::new(&config.state.dir);
    let found = matching::collect(&Sources { state: &state, named: &sources.volumes })?;
    for reason in &found.skipped {
        console.print(&format!("warning: skipping a volume: {}\n", escape(reason)));
    }
    let platform = sources.platform.clone().unwrap_or_else(Platform::host);
    let daemon = request_match(images, sources)?;
    Ok(matching::best_with(&found.volumes, images, &platform, daemon))
}

/// Requests the best cache from the daemon in `sources`. `None` if there is no daemon, or it has no match.
fn request_match(images: &[ImageReference], sources: &SourceArgs) -> Result<Option<BestCache>, Error> {
    let Some(address) = cache::named(sources.host.as_ref())? else { return Ok(None) };
    let host = address.to_string();
    let client = cache::connect(Some(&address), sources.ca.as_deref())?;
    let runtime = blocking::current_thread().map_err(Error::Threads)?;
    let answer = runtime.block_on(Box::pin(cache::request_match(&client, images)));
    runtime.shutdown_background();
    let Matched { found } = answer?.read().map_err(cache::Error::from)?;
    Ok(found.map(|found| BestCache {
        place: Location::Daemon { host, id: found.image_cache.id, name: found.image_cache.name.to_string() },
        volume: None,
        digest: found.digest,
        sealed_at: found.sealed_at,
        score: Score { images: found.images, bytes: found.bytes, missing: found.missing },
    }))
}

/// Formats the result as JSON.
fn document(found: &BestCache) -> Value {
    let missing: Vec<&str> = found.score.missing.iter().map(ImageReference::given).collect();
    let mut document = json!({
        "volume": found.volume.as_ref().map(|path| path.display().to_string()),
        "digest": found.digest,
        "sealed_at": found.sealed_at,
        "images": found.score.images,
        "of": found.of(),
        "bytes": found.score.bytes,
        "missing": missing,
    });
    let place = match &found.place {
        Location::Attached { at } => json!({"place": "attached", "at": at.display().to_string()}),
        Location::Named => json!({"place": "named"}),
        Location::State { tenant, id } => json!({"place": "state", "tenant": tenant, "id": id}),
        Location::Daemon { host, id, name } => {
            json!({"place": "daemon", "host": host, "id": id, "name": name})
        }
    };
    if let (Value::Object(document), Value::Object(place)) = (&mut document, place) {
        document.extend(place);
    }
    document
}

/// Formats the result as text.
fn text(found: &BestCache) -> String {
    let place = match &found.place {
        Location::Attached { at } => format!("attached at {}", at.display()),
        Location::Named => "on this node".to_owned(),
        Location::State { tenant, id } => format!("cache {id} of {tenant}, of the local daemon"),
        Location::Daemon { host, id, name } => format!("cache {name} ({id}) of the daemon at {host}"),
    };
    let mut out = String::new();
    let mut field = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<12}{}", escape(value));
    };
    field("where", &place);
    if let Some(volume) = &found.volume {
        field("volume", &volume.display().to_string());
    }
    field("images", &format!("{} of {}", found.score.images, found.of()));
    field("compressed", &ByteSize(found.score.bytes).to_string());
    field("sealed", &found.sealed_at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true));
    field("digest", &found.digest.to_string());
    for image in &found.score.missing {
        field("missing", image.given());
    }
    out
}
