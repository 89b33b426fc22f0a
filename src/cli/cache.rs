//! `larder cache`: manages the daemon's image caches.

mod follow;
mod import;
mod table;

use std::path::Path;

use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::args::{CacheArgs, CacheCommand, CreateArgs};
use super::exit;
use super::output::stdout;
use crate::client::address::{self, Address};
use crate::client::credentials::{Credentials, CredentialsError};
use crate::client::{Client, Request};
use crate::telemetry::Console;
use follow::Wanted;
use larder_model::class::Class;
use larder_model::image_cache::CacheId;

/// The errors of `larder cache`.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Client(#[from] crate::client::error::Error),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error("LARDER_HOST: {0}")]
    Address(address::ParseAddressError),
    #[error("there is no image cache {0:?}")]
    NoSuchName(String),
    #[error("image cache {name}: {message}")]
    Ended { name: String, class: Class, message: String },
    #[error("the daemon's answer lacks {0}")]
    Absent(&'static str),
}

impl Error {
    pub(super) fn class(&self) -> Class {
        match self {
            Error::Client(e) => e.class(),
            Error::Credentials(_) | Error::Address(_) => Class::Invalid,
            Error::NoSuchName(_) => Class::NotFound,
            Error::Ended { class, .. } => *class,
            Error::Absent(_) => Class::Internal,
        }
    }
}

/// Runs the command and returns its exit code.
pub(super) fn run(args: CacheArgs, console: &Console) -> u8 {
    let runtime = match Runtime::new() {
        Ok(runtime) => runtime,
        Err(e) => return exit::fail(console, Class::Internal, &format!("starting threads: {e}")),
    };
    let done = runtime.block_on(Box::pin(carry_out(args, console)));
    runtime.shutdown_background();
    match done {
        Ok(text) => stdout::print(console, &text),
        Err(error) => exit::fail(console, error.class(), &error.to_string()),
    }
}

/// Runs the command and returns the text for standard output.
async fn carry_out(args: CacheArgs, console: &Console) -> Result<String, Error> {
    let client = connect(args.host.as_ref(), args.ca.as_deref())?;
    let show = |json: &Value, people: &dyn Fn(&Value) -> String| {
        if args.json { table::json(json) } else { people(json) }
    };
    match &args.command {
        CacheCommand::Create { order, wait } => {
            let body = order.body();
            let key = order.idempotency_key.as_deref();
            let request = Request { body: Some(&body), key, ..Request::new(post(), "/v5/imagecaches") };
            let mut answer = client.call(request).await?;
            if *wait {
                answer = follow::until(&client, &id_of(&answer)?, Wanted::Available, None, console).await?;
            }
            Ok(show(&answer, &table::one))
        }
        CacheCommand::Import { import, wait } => {
            let mut answer = import::send(&client, import, console).await?;
            if *wait {
                answer = follow::until(&client, &id_of(&answer)?, Wanted::Available, None, console).await?;
            }
            Ok(show(&answer, &table::one))
        }
        CacheCommand::Ls { name } => {
            let query: Vec<(&str, &str)> = name.iter().map(|name| ("name", name.as_str())).collect();
            let request = Request { query: &query, ..Request::new(get(), "/v5/imagecaches") };
            Ok(show(&client.call(request).await?, &table::list))
        }
        CacheCommand::Show { cache } => {
            let path = format!("/larder/v1/caches/{}", resolve(&client, cache).await?);
            Ok(show(&client.call(Request::new(get(), &path)).await?, &table::details))
        }
        CacheCommand::Rm { caches, wait } => {
            let mut out = Vec::new();
            for cache in caches {
                let id = resolve(&client, cache).await?;
                let path = format!("/v5/imagecaches/{id}");
                let mut answer = client.call(Request::new(reqwest::Method::DELETE, &path)).await?;
                if *wait {
                    let last = follow::until(&client, &id, Wanted::Gone, None, console).await?;
                    // The cache might be deleted before the first request.
                    if last["image_cache"]["name"].is_string() {
                        answer = last;
                    }
                }
                out.push(show(&answer, &table::one));
            }
            Ok(out.concat())
        }
        CacheCommand::Wait { caches, timeout } => {
            let mut out = Vec::new();
            for cache in caches {
                let id = resolve(&client, cache).await?;
                let answer = follow::until(&client, &id, Wanted::Available, *timeout, console).await?;
                out.push(show(&answer, &table::one));
            }
            Ok(out.concat())
        }
        CacheCommand::Events { cache } => {
            let id = resolve(&client, cache).await?;
            follow::print(&client, &id, args.json, console).await?;
            Ok(String::new())
        }
        CacheCommand::Refresh { cache, wait } => {
            let id = resolve(&client, cache).await?;
            let path = format!("/larder/v1/caches/{id}/refresh");
            let mut answer = client.call(Request::new(post(), &path)).await?;
            if *wait {
                answer = follow::until(&client, &id, Wanted::Available, None, console).await?;
            }
            Ok(show(&answer, &table::one))
        }
        CacheCommand::Snapshots { cache } => {
            let path = format!("/larder/v1/caches/{}/snapshots", resolve(&client, cache).await?);
            Ok(show(&client.call(Request::new(get(), &path)).await?, &table::snapshots))
        }
        CacheCommand::Cancel { cache } => {
            let path = format!("/larder/v1/caches/{}/cancel", resolve(&client, cache).await?);
            Ok(show(&client.call(Request::new(post(), &path)).await?, &table::one))
        }
        CacheCommand::Match { images } => {
            let query: Vec<(&str, &str)> = images.iter().map(|image| ("image", image.given())).collect();
            let request = Request { query: &query, ..Request::new(get(), "/larder/v1/match") };
            let answer = client.call(request).await?;
            if answer["match"].is_null() {
                return Err(Error::Ended {
                    name: "for these images".into(),
                    class: Class::NotFound,
                    message: "no Available image cache contains any of them".into(),
                });
            }
            Ok(show(&answer, &table::matched))
        }
        CacheCommand::Plan { order } => {
            let body = order.body();
            let request = Request { body: Some(&body), ..Request::new(post(), "/larder/v1/plan") };
            Ok(show(&client.call(request).await?, &table::plan))
        }
    }
}

fn get() -> reqwest::Method {
    reqwest::Method::GET
}

fn post() -> reqwest::Method {
    reqwest::Method::POST
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
    fn body(&self) -> Value {
        let images: Vec<&str> = self.images.iter().map(|image| image.given()).collect();
        json!({
            "name": self.name,
            "images": images,
            "image_cache_size": self.size,
            "retention_days": self.retention_days,
            "building_config": {"cluster": self.cluster, "image_pull_secrets": self.pull_secrets},
        })
    }
}

/// Returns the ID of the cache with the ID or name `cache`.
pub(super) async fn resolve(client: &Client, cache: &str) -> Result<String, Error> {
    if cache.parse::<CacheId>().is_ok() {
        return Ok(cache.to_owned());
    }
    let query = [("name", cache)];
    let answer = client.call(Request { query: &query, ..Request::new(get(), "/v5/imagecaches") }).await?;
    let first = answer["image_caches"].as_array().and_then(|caches| caches.first());
    let id = first.and_then(|cache| cache["id"].as_str()).and_then(|id| id.parse::<CacheId>().ok());
    id.map(|id| id.to_string()).ok_or_else(|| Error::NoSuchName(cache.to_owned()))
}

fn id_of(answer: &Value) -> Result<String, Error> {
    let id = answer["image_cache"]["id"].as_str().and_then(|id| id.parse::<CacheId>().ok());
    Ok(id.ok_or(Error::Absent("the ID of an image cache"))?.to_string())
}
