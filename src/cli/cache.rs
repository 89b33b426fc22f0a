//! `larder cache`: manages the daemon's image caches.

mod follow;
mod import;
pub(super) mod list;
mod report;
mod table;

use std::path::Path;
use std::time::Duration;

use chrono::Utc;
use reqwest::Method;
use serde::de::DeserializeOwned;

use super::args::{CacheArgs, CacheCommand, CreateArgs, ListFormat, PlanArgs};
use super::output::stdout;
use super::usage::UsageError;
use super::{exit, table as tables};
use crate::api::wire::beyond::Matched;
use crate::api::wire::order::{CreateRequest, PlanRequest};
use crate::api::wire::{BuildingConfig, Many, One};
use crate::blocking;
use crate::client::address::{self, Address};
use crate::client::credentials::{Credentials, CredentialsError};
use crate::client::{Answer, Client, Request};
use crate::telemetry::Console;
use follow::Wanted;
use larder_model::class::Class;
use larder_model::image_cache::CacheId;
use larder_model::io_error::{FileRole, IoError};
use larder_model::reference::ImageReference;
use list::Scope;

/// The errors of `larder cache`.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Client(#[from] crate::client::error::Error),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error("LARDER_HOST: {0}")]
    Address(address::ParseAddressError),
    #[error(transparent)]
    Usage(#[from] UsageError),
    #[error("there is no image cache {0:?}")]
    NoSuchName(String),
    #[error(transparent)]
    Report(#[from] IoError),
    #[error("image cache {name}: {message}")]
    Ended { name: String, class: Class, message: String },
    #[error("no Available image cache contains any of the images")]
    NoMatch,
}

impl Error {
    pub(super) fn class(&self) -> Class {
        match self {
            Error::Client(e) => e.class(),
            Error::Usage(e) => e.class(),
            Error::Report(e) => e.class(FileRole::Given),
            Error::Credentials(_) | Error::Address(_) => Class::Invalid,
            Error::NoSuchName(_) | Error::NoMatch => Class::NotFound,
            Error::Ended { class, .. } => *class,
        }
    }
}

/// Runs the command and returns its exit code.
pub(super) fn run(args: CacheArgs, console: &Console) -> u8 {
    let runtime = match blocking::multi_thread(None, blocking::MAX_THREADS) {
        Ok(runtime) => runtime,
        Err(e) => return exit::fail(console, Class::Internal, &format!("starting threads: {e}")),
    };
    let done = runtime.block_on(Box::pin(async {
        let client = connect(args.daemon.host.as_ref(), args.daemon.ca.as_deref())?;
        Session { client, format: args.output.format(), console }.run(&args.command).await
    }));
    runtime.shutdown_background();
    match done {
        Ok(text) => stdout::print(console, &text),
        Err(error) => exit::fail(console, error.class(), &error.to_string()),
    }
}

/// A connection to the daemon, and the format of its answers.
struct Session<'a> {
    client: Client,
    format: ListFormat,
    console: &'a Console,
}

impl Session<'_> {
    /// Runs the command and returns the text for standard output.
    async fn run(&self, command: &CacheCommand) -> Result<String, Error> {
        match command {
            CacheCommand::Create { order, wait } => self.create(order, *wait).await,
            CacheCommand::Import { import, wait } => {
                let answer = import::send(&self.client, import, self.console).await?;
                self.created(answer, *wait).await
            }
            CacheCommand::Ls { name } => self.list(name.as_deref()).await,
            CacheCommand::Show { cache } => {
                let answer = self.call_for(Method::GET, cache, "").await?;
                self.format(&answer, table::details)
            }
            CacheCommand::Report { cache, html } => {
                report::write(&self.client, cache, html).await?;
                Ok(String::new())
            }
            CacheCommand::Rm { caches, wait } => self.remove(caches, *wait).await,
            CacheCommand::Wait { caches, timeout } => self.wait(caches, *timeout).await,
            CacheCommand::Events { cache } => {
                let id = resolve(&self.client, cache).await?;
                follow::print(&self.client, id, self.format == ListFormat::Json, self.console).await?;
                Ok(String::new())
            }
            CacheCommand::Refresh { cache, wait } => {
                let answer = self.call_for(Method::POST, cache, "/refresh").await?;
                self.created(answer, *wait).await
            }
            CacheCommand::Snapshots { cache } => {
                let answer = self.call_for(Method::GET, cache, "/snapshots").await?;
                self.format(&answer, table::snapshots)
            }
            CacheCommand::Cancel { cache } => {
                let answer = self.call_for(Method::POST, cache, "/cancel").await?;
                self.format(&answer, table::one)
            }
            CacheCommand::Match { images } => self.find(images).await,
            CacheCommand::Plan(plan) => {
                let request = Request::new(Method::POST, "/larder/v1/plan").with_body(&plan.body())?;
                self.format(&self.client.call(request).await?, table::plan)
            }
        }
    }

    /// Formats an answer as JSON, or as `text` does. The JSON has all fields that the daemon sent.
    fn format<T: DeserializeOwned>(&self, answer: &Answer, text: fn(&T) -> String) -> Result<String, Error> {
        match self.format {
            ListFormat::Json => Ok(format!("{answer}\n")),
            _ => Ok(text(&answer.read()?)),
        }
    }

    /// Sends a request for the cache with the ID or name `cache`.
    async fn call_for(&self, method: Method, cache: &str, action: &str) -> Result<Answer, Error> {
        let path = format!("/larder/v1/caches/{}{action}", resolve(&self.client, cache).await?);
        Ok(self.client.call(Request::new(method, &path)).await?)
    }

    async fn create(&self, order: &CreateArgs, wait: bool) -> Result<String, Error> {
        let request = Request::new(Method::POST, "/v5/imagecaches").with_body(&order.body())?;
        let request = Request { key: order.idempotency_key.as_deref(), ..request };
        let answer = self.client.call(request).await?;
        if self.format == ListFormat::Text {
            self.console.print(&format!("{}\n", self.reservation(order.content.size).await));
        }
        self.created(answer, wait).await
    }

    /// Describes what a new cache of `size_gib` reserves. Only root can read the space of the host.
    async fn reservation(&self, size_gib: u32) -> String {
        let host = list::host(&self.client).await.ok().flatten().map(|host| host.host);
        let all = host.and_then(|host| Some((host.reserved_bytes, host.capacity_bytes?)));
        let all = all.map(|(reserved, capacity)| {
            format!("; all caches reserve {} of {}", tables::bytes(reserved), tables::bytes(capacity))
        });
        format!("reserves {size_gib} GiB{}", all.unwrap_or_default())
    }

    /// Formats the cache in `answer`, which is being built. With `wait`, waits until it is Available.
    async fn created(&self, answer: Answer, wait: bool) -> Result<String, Error> {
        if !wait {
            return self.format(&answer, table::one);
        }
        let One { image_cache } = answer.read()?;
        self.available(image_cache.id, None).await
    }

    async fn available(&self, id: CacheId, limit: Option<Duration>) -> Result<String, Error> {
        let answer = follow::until(&self.client, id, Wanted::Available, limit, self.console).await?;
        let answer = answer.ok_or_else(|| Error::NoSuchName(id.to_string()))?;
        self.format(&answer, table::one)
    }

    async fn list(&self, name: Option<&str>) -> Result<String, Error> {
        let answer = list::request(&self.client, Scope::Own, name).await?;
        match self.format {
            ListFormat::Json => Ok(format!("{answer}\n")),
            ListFormat::Name => Ok(list::names(&answer.read()?)),
            format => {
                Ok(list::table(&answer.read()?, format, Scope::Own, Utc::now(), tables::terminal_width()))
            }
        }
    }

    async fn remove(&self, caches: &[String], wait: bool) -> Result<String, Error> {
        let mut out = String::new();
        for cache in caches {
            let id = resolve(&self.client, cache).await?;
            let path = format!("/v5/imagecaches/{id}");
            let mut answer = self.client.call(Request::new(Method::DELETE, &path)).await?;
            if wait {
                // The cache might be deleted before the first request.
                let last = follow::until(&self.client, id, Wanted::Gone, None, self.console).await?;
                answer = last.unwrap_or(answer);
            }
            out += &self.format(&answer, table::one)?;
        }
        Ok(out)
    }

    async fn wait(&self, caches: &[String], limit: Option<Duration>) -> Result<String, Error> {
        let mut out = String::new();
        for cache in caches {
            let id = resolve(&self.client, cache).await?;
            out += &self.available(id, limit).await?;
        }
        Ok(out)
    }

    async fn find(&self, images: &[ImageReference]) -> Result<String, Error> {
        let answer = request_match(&self.client, images).await?;
        let Matched { found } = answer.read()?;
        if found.is_none() {
            return Err(Error::NoMatch);
        }
        self.format(&answer, table::matched)
    }
}

/// Requests the best cache for the images.
pub(super) async fn request_match(client: &Client, images: &[ImageReference]) -> Result<Answer, Error> {
    let query: Vec<(&str, &str)> = images.iter().map(|image| ("image", image.given())).collect();
    let request = Request { query: &query, ..Request::new(Method::GET, "/larder/v1/match") };
    Ok(client.call(request).await?)
}

/// Returns the daemon's address from the flag `host`, or from LARDER_HOST. `None` if neither is set.
pub(super) fn named(host: Option<&Address>) -> Result<Option<Address>, Error> {
    match (host, variable("LARDER_HOST")) {
        (Some(address), _) => Ok(Some(address.clone())),
        (None, Some(text)) => Ok(Some(text.parse().map_err(Error::Address)?)),
        (None, None) => Ok(None),
    }
}

/// Connects to the daemon: a flag takes precedence over a variable, and a variable over the default socket.
pub(super) fn connect(host: Option<&Address>, ca: Option<&Path>) -> Result<Client, Error> {
    let address = match named(host)? {
        Some(address) => address,
        None => address::DEFAULT.parse().map_err(Error::Address)?,
    };
    let ca = ca.map(Path::to_owned).or_else(|| variable("LARDER_CA").map(Into::into));
    Ok(Client::new(address, Credentials::of(variable)?, ca.as_deref())?)
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl CreateArgs {
    fn body(&self) -> CreateRequest {
        CreateRequest {
            name: self.name.to_string(),
            images: self.content.images(),
            image_cache_size: self.content.size,
            retention_days: self.retention_days,
            building_config: self.content.building_config(),
        }
    }
}

impl PlanArgs {
    fn body(&self) -> PlanRequest {
        PlanRequest {
            images: self.images(),
            image_cache_size: self.size,
            building_config: self.building_config(),
        }
    }

    fn images(&self) -> Vec<String> {
        self.images.iter().map(|image| image.given().to_owned()).collect()
    }

    fn building_config(&self) -> BuildingConfig {
        BuildingConfig { cluster: self.cluster.clone(), image_pull_secrets: self.pull_secrets.clone() }
    }
}

/// Returns the ID of the cache with the ID or name `cache`.
pub(super) async fn resolve(client: &Client, cache: &str) -> Result<CacheId, Error> {
    if let Ok(id) = cache.parse() {
        return Ok(id);
    }
    let query = [("name", cache)];
    let request = Request { query: &query, ..Request::new(Method::GET, "/v5/imagecaches") };
    let Many { image_caches } = client.call(request).await?.read()?;
    let first = image_caches.first().ok_or_else(|| Error::NoSuchName(cache.to_owned()))?;
    Ok(first.id)
}
